"""The contract on torch tensors, against the definition in float64 on NumPy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="wanted the extra `transformers`")

import reference
import thresher.torch
from reference.backend import FUNCTIONS
from reference.parts import Mixture
from reference.predictor import Predictor
from reference.weights import Expert

RNG = np.random.default_rng(0)
Q, K, V = (RNG.standard_normal(shape) for shape in ((4, 5, 16), (2, 40, 16), (2, 40, 16)))
POSITIONS = np.broadcast_to(np.arange(40), (2, 40))
X, GATE, UP, DOWN = (RNG.standard_normal(shape) for shape in ((5, 32), (48, 32), (48, 32), (32, 48)))
PREDICTOR = Predictor(RNG.standard_normal(32), RNG.standard_normal((32, 4)), RNG.standard_normal((4, 48)))
CHOSEN = np.array([[0], [1], [1], [0], [1]])
CALLS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "attention": ((Q, K, V, np.arange(35, 40), POSITIONS), {"window": 9}),
    "attention_mass": ((Q, K, 35, POSITIONS), {}),
    "select_queries": ((Q, 3), {}),
    "key_scores": ((Q, K, 3), {}),
    "select_keys": ((Q, K, 10, 3), {}),
    "quoka_attention": ((Q, K, V, 35, POSITIONS, 35), {"budget": 12, "n_queries": 3}),
    "keydiff_scores": ((K,), {}),
    "tova_scores": ((Q, K, 35, POSITIONS), {}),
    "snapkv_scores": ((Q, K, 35, POSITIONS), {"window": 4}),
    "caote_scores": ((np.abs(RNG.standard_normal((4, 40))) / 40, V), {}),
    "keep_top": ((RNG.standard_normal((2, 40)), 7), {"sinks": 2, "positions": POSITIONS}),
    "predictor_scores": ((X, PREDICTOR), {}),
    "select_neurons": ((RNG.standard_normal(48), 9), {}),
    "sparse_ffn": ((X, GATE, UP, DOWN, np.arange(0, 48, 3)), {"act": "gelu_tanh"}),
    "layer_densities": ((np.array([1.0, 2.0, 3.0]), 0.5), {}),
    "rms_norm": ((X, RNG.standard_normal(32)), {"eps": 1e-5}),
    "rotate": ((Q, RNG.standard_normal((5, 8)), RNG.standard_normal((5, 8))), {}),
    "linear": ((X, GATE), {}),
    "gated_ffn": ((X, GATE, UP, DOWN), {}),
    "embed": ((np.array([3, 1, 4]), GATE), {}),
    "route": ((RNG.standard_normal((5, 6)), RNG.standard_normal(6)), {"mixture": Mixture((True,), 6, 2, 48)}),
    "mixture_ffn": ((X, [Expert(GATE, UP, DOWN), Expert(UP, GATE, DOWN)], CHOSEN, np.full((5, 1), 0.5)), {}),
}


def tensors(x: Any, dtype: Any = torch.float32) -> Any:
    """An argument as torch has it."""
    if isinstance(x, np.ndarray):
        found = torch.from_numpy(np.array(x))
        return found.to(dtype) if found.is_floating_point() else found
    if isinstance(x, list):
        return [tensors(part) for part in x]
    if isinstance(x, Predictor | Expert):
        return type(x)(*(tensors(getattr(x, name)) for name in x.__dataclass_fields__))
    return x


def test_every_name_is_there() -> None:
    assert set(CALLS) == set(FUNCTIONS) <= set(thresher.torch.__all__)
    assert thresher.torch.attention.__doc__ == reference.attention.__doc__


@pytest.mark.parametrize("name", FUNCTIONS)
def test_it_means_what_the_reference_means(name: str) -> None:
    args, named = CALLS[name]
    wanted = getattr(reference, name)(*args, **named)
    given = [tensors(x) for x in args]
    got = getattr(thresher.torch, name)(*given, **{key: tensors(x) for key, x in named.items()})
    several = isinstance(wanted, tuple)
    for ours, theirs in zip(got, wanted, strict=True) if several else [(got, wanted)]:
        assert isinstance(ours, torch.Tensor)
        assert tuple(ours.shape) == theirs.shape
        if theirs.dtype.kind == "i":
            assert ours.dtype == torch.int64
            np.testing.assert_array_equal(ours.numpy(), theirs)
        else:
            assert np.linalg.norm(ours.numpy() - theirs) <= 1e-5 * np.linalg.norm(theirs)
    for before, after in zip(args, given, strict=True):
        if isinstance(before, np.ndarray):
            assert torch.equal(after, tensors(before))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64])
def test_nothing_is_copied(dtype: Any) -> None:
    tensor = torch.arange(24).reshape(2, 3, 4).to(dtype).transpose(0, 1)
    array = thresher.torch.to_array(tensor)
    assert array.__array_interface__["data"][0] == tensor.data_ptr()
    assert array.dtype.name == str(dtype).removeprefix("torch.")
    back = thresher.torch.to_tensor(array)
    assert (back.data_ptr(), back.dtype, back.stride()) == (tensor.data_ptr(), dtype, tensor.stride())
    assert torch.equal(back, tensor)


def test_sixteen_bits_go_in() -> None:
    q, k, v = (tensors(x, torch.bfloat16) for x in (Q, K, V))
    got = thresher.torch.attention(q, k, v, 35, tensors(POSITIONS))
    wanted = reference.attention(*(x.double().numpy() for x in (q, k, v)), np.arange(35, 40), POSITIONS)
    assert np.linalg.norm(got.float().numpy() - wanted) <= 1e-2 * np.linalg.norm(wanted)


def test_what_is_refused() -> None:
    q, k, v = (tensors(x) for x in (Q, K, V))
    with pytest.raises(ValueError, match="tensor: got one that requires a gradient"):
        thresher.torch.attention(q.requires_grad_(), k, v, 35, tensors(POSITIONS))
    with pytest.raises(ValueError, match="tensors: got some on cpu, meta, wanted all on cpu or all on cuda"):
        thresher.torch.linear(q[0].detach(), k.to("meta"))
    with pytest.raises(ValueError, match="k: got shape"):
        thresher.torch.keydiff_scores(k[0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU")
@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name != "layer_densities"])  # of a few numbers
def test_on_a_gpu_it_says_what_it_says_on_the_processor(name: str) -> None:
    args, named = CALLS[name]
    given = [tensors(x) for x in args], {key: tensors(x) for key, x in named.items()}
    wanted = getattr(thresher.torch, name)(*given[0], **given[1])
    there = [on_gpu(x) for x in given[0]], {key: on_gpu(x) for key, x in given[1].items()}
    got = getattr(thresher.torch, name)(*there[0], **there[1])
    assert got.device.type == "cuda"
    torch.testing.assert_close(got.cpu(), wanted, rtol=1e-4, atol=1e-4)


def on_gpu(x: Any) -> Any:
    if isinstance(x, Predictor):
        return Predictor(*(on_gpu(getattr(x, name)) for name in x.__dataclass_fields__))
    return x.cuda() if isinstance(x, torch.Tensor) else x

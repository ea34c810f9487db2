"""Lists and other libraries' arrays at the door of every contract function: the same numbers come out."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest

import accel.cpu
import reference

BACKENDS = [reference, accel.cpu]
RNG = np.random.default_rng(3)


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


Q, K, V = floats(4, 3, 8), floats(2, 5, 8), floats(2, 5, 8)
AT, HELD = np.array([2, 3, 4]), np.tile(np.arange(5), (2, 1))
X, GATE, UP, DOWN = floats(3, 6), floats(7, 6), floats(7, 6), floats(6, 7)
COS, SIN = floats(3, 4), floats(3, 4)
CALLS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "attention": ((Q, K, V, AT, HELD), {"window": 3}),
    "attention_mass": ((Q, K, 2, HELD), {}),
    "select_queries": ((Q, 2), {}),
    "key_scores": ((Q, K, 2), {}),
    "select_keys": ((Q, K, 3, 2), {}),
    "quoka_attention": ((Q, K, V, AT, HELD, 2), {"budget": 1, "n_queries": 2}),
    "keydiff_scores": ((K,), {}),
    "tova_scores": ((Q, K, AT, HELD), {}),
    "snapkv_scores": ((Q, K, AT, HELD), {"window": 2, "kernel": 3}),
    "caote_scores": ((np.abs(floats(4, 5)), V), {"fast": True}),
    "keep_top": ((floats(2, 5), 3), {"sinks": 1, "positions": HELD}),
    "select_neurons": ((floats(7), 3), {}),
    "sparse_ffn": ((X, GATE, UP, DOWN, np.array([1, 4])), {"act": "silu"}),
    "layer_densities": ((np.abs(floats(4)), 0.5), {}),
    "rms_norm": ((X, floats(6)), {"eps": 1e-5}),
    "rotate": ((floats(2, 3, 8), COS, SIN), {}),
    "linear": ((X, GATE), {"bias": floats(7)}),
    "gated_ffn": ((X, GATE, UP, DOWN), {"act": "silu"}),
    "embed": ((np.array([1, 0]), floats(3, 6)), {}),
    "route": ((floats(3, 4), floats(4)), {"mixture": reference.Mixture((True,), 4, 2, 7, groups=2, groups_chosen=1)}),
    "mixture_ffn": ((X, [reference.Expert(GATE, UP, DOWN)] * 2, np.array([[0], [1], [0]]), floats(3, 1)), {}),
}


class Dlpack:
    """An array of a library that offers DLPack and nothing else."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def __dlpack__(self, **wishes: Any) -> Any:
        return self._array.__dlpack__(**wishes)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._array.__dlpack_device__()


class Arraylike:
    """One that offers `__array__` alone."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self._array


def each(change: Any, call: tuple[tuple[Any, ...], dict[str, Any]]) -> tuple[list[Any], dict[str, Any]]:
    args, options = call
    return (
        [change(x) if isinstance(x, np.ndarray) else x for x in args],
        {name: change(x) if isinstance(x, np.ndarray) else x for name, x in options.items()},
    )


def test_every_function_with_arrays_is_called() -> None:
    assert set(CALLS) == set(reference.backend.FUNCTIONS) - {"predictor_scores"}


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda module: module.__name__)
@pytest.mark.parametrize("name", CALLS)
def test_whatever_holds_the_numbers(backend: ModuleType, name: str) -> None:
    function = getattr(backend, name)
    args, options = CALLS[name]
    wanted = np.asarray(function(*args, **options))
    for change in (Dlpack, Arraylike):
        args, options = each(change, CALLS[name])
        np.testing.assert_array_equal(function(*args, **options), wanted)
    args, options = each(lambda x: x.tolist(), CALLS[name])  # float64, so not to the bit
    np.testing.assert_allclose(np.asarray(function(*args, **options), np.float64), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda module: module.__name__)
def test_torch(backend: ModuleType) -> None:
    torch = pytest.importorskip("torch")
    wanted = backend.attention(Q, K, V, AT, HELD)
    tensors = [torch.from_numpy(x) for x in (Q, K, V, AT, HELD)]
    np.testing.assert_array_equal(backend.attention(*tensors), wanted)
    np.testing.assert_array_equal(backend.attention(Q, tensors[1], V, AT, tensors[4]), wanted)
    with pytest.raises(ValueError, match=r"q: got a Tensor \(.*grad.*\), wanted an array"):
        backend.attention(tensors[0].requires_grad_(), *tensors[1:])


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda module: module.__name__)
@pytest.mark.parametrize(
    ("k", "message"),
    [
        ([[[1.0, 2.0], [1.0]]], r"k: got a list \(.*inhomogeneous.*\), wanted an array"),
        ("keys", "k: got a str of <U4, wanted an array of numbers"),
        ([[["a", "b"]]], "k: got a list of <U1, wanted an array of numbers"),
        ({1: 2}, "k: got a dict of object, wanted an array of numbers"),
        ([[1.0, 2.0]], r"k: got shape \(1, 2\), wanted \(KV, S, D\)"),
    ],
)
def test_what_is_no_array_is_one_line(backend: ModuleType, k: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        backend.keydiff_scores(k)


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda module: module.__name__)
def test_other_mistakes_stay_what_they_are(backend: ModuleType) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'nonsense'"):
        backend.keydiff_scores(K, nonsense=1)
    with pytest.raises(TypeError, match="positional"):
        backend.keydiff_scores()
    assert backend.keydiff_scores.__name__ == "keydiff_scores"
    assert "k (KV, S, D)" in (backend.keydiff_scores.__doc__ or "")

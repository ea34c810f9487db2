"""What needs a GPU of compute capability 9.0: tensor-core instructions and kernels against NumPy.

Everything else is held to the reference by `pytest tests/equivalence --backend cuda`.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import ml_dtypes
import numpy as np
import pytest

import reference
from tests.loaders.cases import CASES

BF16 = np.dtype(ml_dtypes.bfloat16)


def hopper() -> bool:
    """Whether there is such a device."""
    if find_spec("cuda") is None:
        return False
    from accel.cuda.runtime.device import machine

    try:
        return machine().capability[0] == 9
    except RuntimeError:
        return False


pytestmark = pytest.mark.skipif(not hopper(), reason="no GPU of compute capability 9.0")


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(BF16)


@pytest.mark.parametrize("dim", [64, 80, 128, 256])
@pytest.mark.parametrize("n", [16, 64, 128])
def test_wgmma_is_a_matrix_product_in_the_layout_drawn(dim: int, n: int) -> None:
    from accel.cuda import to_backend, to_numpy
    from accel.cuda.runtime.arrays import F32, empty
    from tests.cuda.products import product

    a, b = random(64, dim), random(n, dim)
    there, out = [to_backend(x) for x in (a, b)], empty((64, n), F32)
    product(dim, n)[1, 128](*(x.address for x in there), out)
    wanted = a.astype(np.float64) @ b.astype(np.float64).T
    np.testing.assert_allclose(to_numpy(out), wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize(("dim", "n", "tiles"), [(64, 16, 1), (80, 32, 2), (128, 64, 2), (256, 32, 1)])
def test_mma_is_a_matrix_product_in_the_layout_drawn(dim: int, n: int, tiles: int) -> None:
    from accel.cuda import to_backend, to_numpy
    from accel.cuda.runtime.arrays import F32, empty
    from tests.cuda.products import warp_products

    a, b, c = random(16 * tiles, dim), random(n, dim), random(n, dim)
    there = [to_backend(x) for x in (a, b, c)]
    first, second = empty((16 * tiles, n), F32), empty((16 * tiles, dim), F32)
    warp_products(dim, n, tiles)[1, 32](*(x.address for x in there), first, second)
    wanted = a.astype(np.float64) @ b.astype(np.float64).T
    np.testing.assert_allclose(to_numpy(first), wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    more = to_numpy(first).astype(BF16).astype(np.float64) @ c.astype(np.float64)
    np.testing.assert_allclose(to_numpy(second), more, rtol=0, atol=1e-5 * np.abs(more).max())


@pytest.mark.parametrize("size", [1_100, 8_192, 14_336, 15_361, 32_768, 35_329, 140_001])
@pytest.mark.parametrize("values", ["different", "few", "equal"])
def test_rows_of_one_block_and_of_many_are_ranked(size: int, values: str) -> None:
    """Ties across the borders of blocks and threads, both infinities and zeros, columns beyond 2^16, chunks that end
    within a block."""
    from accel.cuda import to_backend, to_numpy
    from accel.cuda.methods.topk import keep_top_each

    scores = np.random.default_rng(size).standard_normal((3, 2, size)).astype(np.float32)
    if values != "different":
        scores = np.round(scores) if values == "few" else np.full_like(scores, -0.3)
        scores[np.abs(scores) > 1] *= np.inf
    for budget in (1, 1_000, size // 2, size - 40):
        got = to_numpy(keep_top_each(to_backend(scores), size - 40, 20, budget, 0, 1, None))
        for chunk, row in enumerate(scores):
            wanted = reference.keep_top(row[:, : size - 40 + 20 * chunk], budget, recent=1)
            assert np.array_equal(got[chunk], wanted)


@pytest.mark.parametrize("size", [1, 33, 1_024, 1_025, 2_048, 15_360, 35_328])
def test_protected_columns_of_a_row_of_one_block(size: int) -> None:
    from accel.cuda import keep_top, to_backend, to_numpy

    rng = np.random.default_rng(size)
    scores = rng.standard_normal((3, size)).round(1).astype(np.float32)
    places = np.sort(np.stack([rng.permutation(2 * size)[:size] for _ in scores]), axis=1)
    for budget in {1, (size + 1) // 2, size}:
        options = {"sinks": budget // 5, "recent": budget // 2, "positions": places}
        wanted = reference.keep_top(scores, budget, **options)
        got = keep_top(to_backend(scores), budget, **options | {"positions": to_backend(places)})
        assert np.array_equal(to_numpy(got), wanted)


def test_there_may_be_more_long_rows_than_blocks() -> None:
    """A model without groups, and many chunks to a pass."""
    from accel.cuda import to_backend, to_numpy
    from accel.cuda.methods.topk import keep_top_each

    scores = np.random.default_rng(0).standard_normal((5, 60, 35_400)).astype(np.float32)
    got = to_numpy(keep_top_each(to_backend(scores), 35_400, 0, 100, 0, 0, None))
    assert all(np.array_equal(kept, reference.keep_top(rows, 100)) for kept, rows in zip(got, scores, strict=True))


@pytest.mark.parametrize("dim", [64, 80, 128, 256])
@pytest.mark.parametrize("size", [1, 63, 5_000])
@pytest.mark.parametrize("anchor", ["normalised", "raw"])
def test_keys_read_in_pieces_score_as_the_reference_has_it(dim: int, size: int, anchor: str) -> None:
    from accel.cuda import keydiff_scores, to_backend, to_numpy

    k = random(3, size, dim)
    got = to_numpy(keydiff_scores(to_backend(k), anchor=anchor))
    wanted = reference.keydiff_scores(k.astype(np.float64), anchor=anchor)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", [BF16, np.dtype(np.float16)])
@pytest.mark.parametrize(
    ("tokens", "width", "count"), [(1, 64, 1), (70, 192, 64), (128, 128, 130), (300, 320, 201), (130, 64, 7_001)]
)
@pytest.mark.parametrize("act", ["silu", "gelu_tanh"])
def test_chosen_neurons_are_read_where_they_stand(
    form: np.dtype, tokens: int, width: int, count: int, act: str
) -> None:
    from accel.cuda import sparse_ffn, to_backend, to_numpy
    from accel.cuda.ffn.gathered import fits

    wide = count + 132
    x = random(tokens, width).astype(form)
    gate, up, down = (random(wide + n, width)[:wide].astype(form) for n in range(3))  # three different ones
    neurons = np.sort(np.random.default_rng(0).permutation(wide)[:count])
    there = [to_backend(array) for array in (gate, up, down)]
    arguments = to_backend(x), there[0], there[1], there[2].axes(1, 0), to_backend(neurons)
    assert fits(*arguments[1:], arguments[0])
    got = to_numpy(sparse_ffn(*arguments, act=act))
    exact = [array.astype(np.float64) for array in (x, gate, up, down.T)]
    wanted = reference.sparse_ffn(*exact, neurons, act=act)
    # What lies between the products may be less than float16 can hold, and 1 + tanh less than float32 tells from 0.
    between = np.abs((exact[0] @ exact[1][neurons].T) * (exact[0] @ exact[2][neurons].T)).max()
    least = max(float(ml_dtypes.finfo(form).smallest_subnormal), 2**-24 * between * (act == "gelu_tanh"))
    lost = least * np.linalg.norm(exact[3][:, neurons])
    apart = np.linalg.norm(got - wanted, axis=-1)
    assert (apart < 1e-2 * np.linalg.norm(wanted, axis=-1) + lost).all()


@pytest.mark.parametrize("dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("window", [None, 1, 100])
@pytest.mark.parametrize(("tokens", "size", "group"), [(1, 1, 1), (1, 1000, 4), (70, 300, 3), (300, 300, 2)])
def test_attention_is_softmax(dim: int, window: int | None, tokens: int, size: int, group: int) -> None:
    from accel.cuda import attention, to_backend, to_numpy

    q, k, v = random(2 * group, tokens, dim), random(2, size, dim), random(2, size, dim)
    places = np.arange(size - tokens, size), np.broadcast_to(np.arange(size), (2, size))
    exact = reference.attention(*(x.astype(np.float64) for x in (q, k, v)), *places, window=window)
    got = to_numpy(attention(*(to_backend(x) for x in (q, k, v, *places)), window=window))
    apart = np.linalg.norm(got - exact, axis=-1) / np.linalg.norm(exact, axis=-1)
    assert apart.max() < 1e-2


@pytest.mark.parametrize("dim", [64, 80, 128, 256])
@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize(("tokens", "size", "group"), [(1, 1, 1), (1, 1000, 4), (70, 300, 3), (300, 300, 2)])
def test_attention_received_is_right_key_by_key(
    dim: int, window: int | None, tokens: int, size: int, group: int
) -> None:
    """The smallest too: eviction is decided by them."""
    from accel.cuda import attention_mass, to_backend, to_numpy

    q, k = random(2 * group, tokens, dim), random(2, size, dim)
    places = np.arange(size - tokens, size), np.broadcast_to(np.arange(size), (2, size))
    exact = reference.attention_mass(*(x.astype(np.float64) for x in (q, k)), *places, window=window)
    got = to_numpy(attention_mass(*(to_backend(x) for x in (q, k, *places)), window=window))
    np.testing.assert_allclose(got, exact, rtol=1e-2, atol=1e-37)


@pytest.mark.parametrize("dim", [128, 256])
@pytest.mark.parametrize("cap", [0.7, 50.0, 1e6])
@pytest.mark.parametrize(("tokens", "size", "group", "window"), [(1, 1000, 4, None), (70, 300, 3, 100)])
def test_a_soft_cap_bends_scores_on_tensor_cores(
    dim: int, cap: float, tokens: int, size: int, group: int, window: int | None
) -> None:
    """From scores that the cap hardly touches to those that are all but equal to it."""
    from accel.cuda import attention, attention_mass, to_backend, to_numpy
    from accel.cuda.attention import ampere, hopper, received_tensor
    from accel.cuda.runtime.tiers import tier

    q, k, v = random(2 * group, tokens, dim), random(2, size, dim), random(2, size, dim)
    q[:2] *= 8
    places = np.arange(size - tokens, size), np.broadcast_to(np.arange(size), (2, size))
    options = {"cap": cap, "window": window}
    there, exact = [to_backend(x) for x in (q, k, v, *places)], [x.astype(np.float64) for x in (q, k, v)]
    wanted = reference.attention(*exact, *places, **options)
    got = to_numpy(attention(*there, **options))
    apart = np.linalg.norm(got - wanted, axis=-1) / np.linalg.norm(wanted, axis=-1)
    assert apart.max() < 1e-2
    mass = reference.attention_mass(*exact[:2], *places, **options)
    np.testing.assert_allclose(to_numpy(attention_mass(*there[:2], *there[3:], **options)), mass, rtol=1e-2, atol=1e-37)
    cores = hopper if tier() == "wgmma" else ampere
    assert all(one.keys for one in (cores.attend(dim, "bf16", True), *received_tensor.kernels(dim, "bf16", True)))


def test_chosen_columns_are_read_where_they_stand() -> None:
    """Chunks that share a pass, in one launch, against attention over the columns gathered."""
    from accel.cuda import attention_each, new_cache, select_keys_each, to_backend, to_numpy
    from tests.small import small_config

    config = small_config(heads=8, kv_heads=2, head_dim=128, layers=1)
    layer = new_cache(config, BF16).layers[0]
    k, v, q = random(2, 700, 128), random(2, 700, 128), random(8, 200, 128)
    layer.append(to_backend(k), to_backend(v), 0)
    chunks, pasts = [slice(0, 100), slice(100, 200)], [500, 600]
    queries = [to_backend(q)[:, rows] for rows in chunks]
    columns = select_keys_each(queries, layer.keys(), pasts, [64, 64], 16)
    reads = []
    for one, listed, past in zip(queries, columns, pasts, strict=True):
        keys, values, positions = layer.gather(listed)
        reads.append((one, keys, values, past, positions))
    for got, rows, listed, past in zip(attention_each(reads), chunks, columns, pasts, strict=True):
        places = to_numpy(listed)
        held = [np.take_along_axis(x.astype(np.float64), places[:, :, None], axis=1) for x in (k, v)]
        exact = reference.attention(q[:, rows].astype(np.float64), *held, past, places)
        wanted = reference.merge_heads(exact)
        assert np.linalg.norm(to_numpy(got) - wanted) < 1e-2 * np.linalg.norm(wanted)


STEADY = {
    "dense": reference.Policy(),
    "together": reference.Policy(),
    "keydiff": reference.Policy(evict=reference.KeyDiff(100)),
    "h2o": reference.Policy(evict=reference.H2O(100, sinks=2)),
    "tova": reference.Policy(evict=reference.Tova(100)),
    "snapkv": reference.Policy(evict=reference.SnapKV(100)),
    "caote": reference.Policy(evict=reference.Caote(100)),
    "quoka": reference.Policy(select=reference.Quoka(64, sinks=3)),
    "quoka and caote": reference.Policy(select=reference.Quoka(64), evict=reference.Caote(100, base="snapkv")),
}


@pytest.mark.parametrize("name", STEADY)
def test_a_recorded_pass_gives_the_bits_of_one_launched_call_by_call(name: str) -> None:
    """Token by token over buffers that move in between, beside another sequence whose pass is recorded too."""
    import accel.cuda
    from reference import Model, decode, new_state, prefill
    from tests.small import random_weights, small_config

    policy = STEADY[name]
    windows = (None, None if policy.evict else 60, None)  # with a window, prompts are not recorded
    config = small_config(heads=8, kv_heads=2, head_dim=128, width=256, layers=3, windows=windows)
    weights = accel.cuda.prepare_weights(random_weights(config, dtype=BF16))
    plain = ModuleType("plain")
    plain.__dict__.update({key: value for key, value in vars(accel.cuda).items() if key != "run_pass"})
    told = []
    for backend in (accel.cuda, plain):
        model = Model(config, weights, backend)
        states, seen = [new_state(model, policy) for _ in range(3)], []
        for n, state in enumerate(states):
            cache = state.cache
            ids = np.arange(450 + 50 * n) % 50
            prefill(model, state, ids, chunk=4, progress=lambda _, of=cache, to=seen: to.append(of.passed))
        groups = [states[:2], states[2:]] if name == "together" else [[state] for state in states]
        launched = any(one is not None and one._graph is not None for one in seen)
        assert launched == (policy.evict is not None and backend is accel.cuda)
        rows = []
        for token in range(300):  # more than the room that a prompt leaves for an answer
            for group in groups:
                decode(model, group, [(7 * token + n) % 50 for n in range(len(group))])
                rows += [accel.cuda.to_numpy(state.logits) for state in group]
        kept = [accel.cuda.to_numpy(places) for state in states for places in state.positions]
        told.append((np.stack(rows), kept, [vars(state.counts) for state in states]))
        used = [group[0].cache.passed for group in groups]
        assert all(one is not None and one._graph is not None for one in used) == (backend is accel.cuda)
    (got, got_kept, got_counts), (wanted, wanted_kept, wanted_counts) = told
    np.testing.assert_array_equal(got.view(np.uint32), wanted.view(np.uint32))
    for one, other in zip(got_kept, wanted_kept, strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(got_counts, wanted_counts, strict=True):
        for field, counted in one.items():
            np.testing.assert_array_equal(counted, other[field], field)


def test_what_is_wrong_in_a_recorded_pass_is_told_to_whoever_launched_it() -> None:
    """By another thread than the one that recorded it, and only once."""
    from threading import Thread

    from accel.cuda import keep_top, to_backend, to_numpy
    from accel.cuda.runtime.arrays import write
    from accel.cuda.runtime.graph import Graph

    scores, graph = np.random.default_rng(0).random((2, 50)).astype(np.float32), Graph()
    there = to_backend(scores)
    wanted = to_numpy(keep_top(there, 7))  # loads what must be
    with graph.recorded():
        kept = keep_top(there, 7)
    write(there, np.where(np.arange(50) == 20, np.nan, scores).astype(np.float32))
    told: list[str] = []

    def launch() -> None:
        graph.launch()
        try:
            to_numpy(kept)
        except ValueError as error:
            told.append(str(error))

    other = Thread(target=launch)
    other.start()
    other.join()
    assert told == ["scores: got NaN, wanted numbers that can be ranked"]
    write(there, scores)
    graph.launch()
    np.testing.assert_array_equal(to_numpy(kept), wanted)


@pytest.mark.parametrize("form", [BF16, np.dtype(np.float32)])
@pytest.mark.parametrize(("size", "kept"), [(1, 1), (300, 299), (2049, 2048), (2176, 2048), (3000, 1)])
def test_what_stays_moves_to_the_front(form: np.dtype, size: int, kept: int) -> None:
    """In place, by blocks that run at the same time: every row is what it was."""
    from accel.cuda import restore_cache, to_backend, to_numpy

    rng = np.random.default_rng(size)
    arrays = {"k": random(2, size, 80).astype(form), "v": random(2, size + 1, 80)[:, 1:].astype(form)}
    arrays |= {"positions": np.sort(rng.permutation(2 * size)[: 2 * size].reshape(2, size), axis=1)}
    arrays |= {"received": rng.random((6, size))}
    layer = restore_cache([{name: array.copy() for name, array in arrays.items()}]).layers[0]
    columns = np.sort(np.stack([rng.permutation(size)[:kept] for _ in range(2)]), axis=1)
    layer.keep(to_backend(columns))
    each = {"received": np.repeat(columns, 3, axis=0)}
    for name, array in arrays.items():
        listed = each.get(name, columns)
        wanted = np.take_along_axis(array, listed[:, :, None] if array.ndim == 3 else listed, axis=1)
        np.testing.assert_array_equal(to_numpy(getattr(layer, name)), wanted, name)
    np.testing.assert_allclose(
        to_numpy(layer.keys().rates), 1 / np.linalg.norm(to_numpy(layer.k).astype(np.float64), axis=-1), rtol=1e-6
    )


def test_what_is_not_in_device_memory_cannot_be_recorded() -> None:
    """A copy would be of the numbers of the time when it was recorded."""
    from accel.cuda import to_backend
    from accel.cuda.runtime.graph import Graph

    with pytest.raises(RuntimeError, match="recorded"), Graph().recorded():
        to_backend(np.ones(3, np.float32))


def test_the_highest_logit_is_numpys() -> None:
    from accel.cuda import draw, to_backend
    from reference import Sampling

    rng = np.random.default_rng(0)
    for size in (1, 127, 5_000, 128_256):
        logits = rng.standard_normal(size).astype(np.float32).round(1)  # with ties
        assert draw(to_backend(logits), Sampling(), rng) == logits.argmax()
    for wrong in (np.nan, np.inf):
        logits[7] = wrong
        with pytest.raises(ValueError, match="logits"):
            draw(to_backend(logits), Sampling(), rng)


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "float16", "int64"])
def test_tensors_come_in_and_go_out_without_a_copy(kind: str) -> None:
    """Written by PyTorch on a stream of its own just before, read by it just after."""
    torch = pytest.importorskip("torch")
    from accel.cuda import add, to_backend, to_numpy

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        there = torch.zeros(3, 300, device="cuda", dtype=getattr(torch, kind))[:, ::2]
        torch.cuda._sleep(50_000_000)
        there += torch.arange(150, device="cuda").to(there.dtype)
        ours = to_backend(there)
        assert ours.address == there.data_ptr()
        assert ours.strides == tuple(there.element_size() * n for n in there.stride())
        np.testing.assert_array_equal(to_numpy(ours).astype(np.float64), there.double().cpu().numpy())
        back = torch.from_dlpack(ours)
        assert back.data_ptr() == there.data_ptr()
        assert back.dtype == there.dtype
        assert torch.equal(back, there)
        if kind == "float32":
            twice = torch.from_dlpack(add(ours, ours))  # not waited for by the host
            assert torch.equal(twice, 2 * there)
            assert torch.equal(torch.as_tensor(add(ours, ours), device="cuda"), 2 * there)


def test_host_arrays_of_other_libraries_are_copied() -> None:
    torch = pytest.importorskip("torch")
    from accel.cuda import to_backend, to_numpy

    np.testing.assert_array_equal(to_numpy(to_backend(torch.arange(5))), np.arange(5))


def test_weights_that_do_not_fit_are_named_with_what_would(monkeypatch: pytest.MonkeyPatch) -> None:
    from accel.cuda import layers, prepare_weights
    from tests.small import random_weights, small_config

    weights = random_weights(small_config(), dtype="float32")
    monkeypatch.setattr(layers, "free_memory", lambda: 3 * weights.nbytes // 4)
    with pytest.raises(MemoryError, match="are free; dtype='bfloat16' would fit"):
        prepare_weights(weights)
    monkeypatch.setattr(layers, "free_memory", lambda: weights.nbytes // 4)
    with pytest.raises(MemoryError, match="a smaller model"):
        prepare_weights(weights)


def test_a_state_is_saved_and_goes_on_elsewhere(tmp_path: Path) -> None:
    """Logits and cache leave the device with it; another backend draws and continues from there."""
    import thresher
    from tests.checkpoints import write_checkpoint

    directory = write_checkpoint(tmp_path / "small")
    there, here = (thresher.load(directory, backend=name) for name in ("cuda", "reference"))
    state = there.prefill([1, 2, 3, 4])
    state.save(tmp_path / "state")
    wanted = list(there.generate(state.copy(), max_new_tokens=5))
    for model in (there, here):
        assert list(model.generate(thresher.State.load(tmp_path / "state"), max_new_tokens=5)) == wanted
    assert list(here.generate(state, max_new_tokens=5)) == wanted


@pytest.mark.parametrize("case", CASES)
def test_every_family_gives_what_transformers_gives(case: str, tmp_path: Path) -> None:
    import accel.cuda
    from tests.loaders.test_families import CHUNK, PROMPT, check_recorded

    check_recorded(case, tmp_path, (accel.cuda, CHUNK), (accel.cuda, PROMPT))

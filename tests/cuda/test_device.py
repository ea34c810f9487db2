"""What needs a GPU of compute capability 9.0: tensor-core instructions and kernels against NumPy.

Everything else is held to the reference by `pytest tests/equivalence --backend cuda`.
"""

from __future__ import annotations

from importlib.util import find_spec

import ml_dtypes
import numpy as np
import pytest

import reference

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


@pytest.mark.parametrize("size", [8_192, 8_193, 65_537, 140_001])
@pytest.mark.parametrize("values", ["different", "few", "equal"])
def test_rows_shared_out_among_blocks_are_ranked_as_one(size: int, values: str) -> None:
    """Ties across the borders of blocks, columns beyond 2^16, chunks that end within a block."""
    from accel.cuda import to_backend, to_numpy
    from accel.cuda.methods.topk import keep_top_each

    scores = np.random.default_rng(size).standard_normal((3, 2, size)).astype(np.float32)
    if values != "different":
        scores = np.round(scores) if values == "few" else np.full_like(scores, -0.3)
    for budget in (1, 1_000, size // 2, size - 40):
        got = to_numpy(keep_top_each(to_backend(scores), size - 40, 20, budget, 0, 1, None))
        for chunk, row in enumerate(scores):
            wanted = reference.keep_top(row[:, : size - 40 + 20 * chunk], budget, recent=1)
            assert np.array_equal(got[chunk], wanted)


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
@pytest.mark.parametrize(("tokens", "width", "count"), [(1, 64, 1), (70, 192, 64), (128, 128, 130), (300, 320, 201)])
@pytest.mark.parametrize("act", ["silu", "gelu_tanh"])
def test_chosen_neurons_are_read_where_they_stand(
    form: np.dtype, tokens: int, width: int, count: int, act: str
) -> None:
    from accel.cuda import sparse_ffn, to_backend, to_numpy
    from accel.cuda.ffn.gathered import fits

    wide = 333
    x = random(tokens, width).astype(form)
    gate, up, down = (random(wide + n, width)[:wide].astype(form) for n in range(3))  # three different ones
    neurons = np.sort(np.random.default_rng(0).permutation(wide)[:count])
    there = [to_backend(array) for array in (gate, up, down)]
    arguments = to_backend(x), there[0], there[1], there[2].axes(1, 0), to_backend(neurons)
    assert fits(*arguments[1:], arguments[0])
    got = to_numpy(sparse_ffn(*arguments, act=act))
    exact = [array.astype(np.float64) for array in (x, gate, up, down.T)]
    wanted = reference.sparse_ffn(*exact, neurons, act=act)
    apart = np.linalg.norm(got - wanted, axis=-1) / np.linalg.norm(wanted, axis=-1)
    assert apart.max() < 1e-2


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


def test_chosen_columns_are_read_where_they_stand() -> None:
    """Chunks that share a pass, in one launch, against attention over the columns gathered."""
    from accel.cuda import attention_each, new_cache, select_keys_each, to_backend, to_numpy, with_chunk
    from tests.small import small_config

    config = small_config(heads=8, kv_heads=2, head_dim=128, layers=1)
    layer = new_cache(config, BF16).layers[0]
    k, v, q = random(2, 700, 128), random(2, 700, 128), random(8, 200, 128)
    layer.append(to_backend(k), to_backend(v), 0)
    chunks, pasts = [slice(0, 100), slice(100, 200)], [500, 600]
    queries = [to_backend(q)[:, rows] for rows in chunks]
    kept = select_keys_each(queries, layer.keys(), pasts, [64, 64], 16)
    columns = [with_chunk(one, past, past + 100) for one, past in zip(kept, pasts, strict=True)]
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

"""When QUOKA's scores are computed on tensor cores, and the call."""

from __future__ import annotations

from accel.cuda.runtime.arrays import Array
from accel.cuda.runtime.device import machine
from accel.cuda.runtime.tiers import FORMS, tier
from accel.shared.lazy import Keys


def eights(slots: int) -> int:
    """Slots of a chunk with those added that make whole groups of eight."""
    return -(-slots // 8) * 8


def most_slots(dim: int) -> int:
    """Slots that one reading of the keys serves: what one instruction multiplies by, or what shared memory holds."""
    return 256 if tier() == "wgmma" else 16384 // dim


def tensor_fits(k: Array, slots: int) -> bool:
    """Whether keys lie so, and slots are so few, that tensor cores can score them."""
    if tier() == "portable" or k.dtype not in FORMS:
        return False
    from accel.cuda.attention.tiles import DIMS

    if k.shape[2] not in DIMS or eights(slots) > most_slots(k.shape[2]):
        return False
    return k.address % 16 == 0 and all(s % 16 == 0 for s in k.strides[:-1]) and k.strides[-1] == k.dtype.itemsize


def tensor_scores(means: Array, keys: Keys, scores: Array) -> None:
    """means (KV, C, N, D) with N in eights, keys (KV, S, D) -> scores (C, KV, S)."""
    from accel.cuda.methods.score_tensor import KEYS, THREADS, score

    (kv_heads, chunks, places, dim), k, rates = means.shape, keys.held, keys.rates
    size, most = k.shape[1], most_slots(dim) // places
    tiles = -(-size // KEYS)
    each = max(1, -(-tiles * kv_heads // (2 * machine().processors)))  # tiles of a block: two blocks a multiprocessor
    for start in range(0, chunks, most):
        count = min(most, chunks - start)
        padded = 1 << (count - 1).bit_length()  # few different kernels; what is computed too much is not stored
        score(dim, FORMS[k.dtype], min(padded, most), places, tier() == "wgmma").launch(
            (-(-tiles // each), kv_heads), THREADS,
            (
                means[:, start:].address, means.strides[0], count, k.address, k.strides[0], k.strides[1], rates.address,
                rates.strides[0], size, tiles, each, scores[start:].address, scores.strides[0], scores.strides[1],
            ),
        )  # fmt: skip

"""When QUOKA's scores are computed on Hopper's tensor cores, and the call."""

from __future__ import annotations

from accel.cuda.ptx.simulator import SIMULATED
from accel.cuda.runtime.arrays import BF16, F16, Array
from accel.cuda.runtime.device import machine
from accel.shared.lazy import Keys

FORMS = {BF16: "bf16", F16: "f16"}
MOST = 256  # slots that one reading of the keys serves: what one instruction multiplies by


def eights(slots: int) -> int:
    """Slots of a chunk with those added that make whole groups of eight."""
    return -(-slots // 8) * 8


def hopper_fits(k: Array, slots: int) -> bool:
    """Whether keys lie so, and slots are so few, that tensor cores of compute capability 9.0 can score them."""
    if SIMULATED or machine().capability[0] != 9 or k.dtype not in FORMS or eights(slots) > MOST:
        return False
    from accel.cuda.attention.hopper import DIMS

    aligned = k.address % 16 == 0 and all(stride % 16 == 0 for stride in k.strides[:-1])
    return aligned and k.strides[-1] == k.dtype.itemsize and k.shape[2] in DIMS


def hopper_scores(means: Array, keys: Keys, scores: Array) -> None:
    """means (KV, C, N, D) with N in eights, keys (KV, S, D) -> scores (C, KV, S)."""
    from accel.cuda.methods.score_hopper import KEYS, score

    (kv_heads, chunks, places, dim), k, rates = means.shape, keys.held, keys.rates
    size, most = k.shape[1], MOST // places
    tiles = -(-size // KEYS)
    each = max(1, -(-tiles * kv_heads // (2 * machine().processors)))  # tiles of a block: two blocks a multiprocessor
    for start in range(0, chunks, most):
        count = min(most, chunks - start)
        padded = 1 << (count - 1).bit_length()  # few different kernels; what is computed too much is not stored
        score(dim, FORMS[k.dtype], padded, places).launch(
            (-(-tiles // each), kv_heads), 128,
            (
                means[:, start:].address, means.strides[0], count, k.address, k.strides[0], k.strides[1], rates.address,
                rates.strides[0], size, tiles, each, scores[start:].address, scores.strides[0], scores.strides[1],
            ),
        )  # fmt: skip

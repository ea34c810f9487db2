"""What tensor cores ask of an array: 16-bit numbers, a head_dim that there is a kernel for, and rows in whole lines."""

from __future__ import annotations

from accel.cuda.runtime.arrays import Array, empty
from accel.cuda.runtime.moves import put
from accel.cuda.runtime.tiers import FORMS, tier


def on_tensor_cores(k: Array, scale: float) -> bool:
    """Whether there is a kernel for such keys (KV, S, D) on this device's tensor cores."""
    if tier() == "portable" or scale <= 0 or k.dtype not in FORMS:
        return False
    from accel.cuda.attention.tiles import DIMS

    return k.shape[2] in DIMS


def in_lines(x: Array) -> bool:
    """Whether rows lie without gaps at 16-byte boundaries, as they are copied to shared memory."""
    whole = x.address % 16 == 0 and all(stride % 16 == 0 for stride in x.strides[:-1])
    return whole and x.strides[-1] == x.dtype.itemsize


def lined(x: Array) -> Array:
    """x itself where its rows lie so, or a copy."""
    if in_lines(x):
        return x
    out = empty(x.shape, x.dtype)
    put(x, out)
    return out

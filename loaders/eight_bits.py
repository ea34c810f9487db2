"""Weight matrices as `Int8`, quantised a few rows at a time, so that little memory is needed beside a mapped file."""

from __future__ import annotations

import numpy as np

from reference import Int8, quantize
from reference.checks import require
from reference.int8 import GROUP

NUMBERS = 1 << 18  # that are quantised together
Q8_0 = GROUP + 2  # bytes of a group in a GGUF file: its scale, then its numbers


def quantized(where: str, stored: np.ndarray) -> Int8:
    """stored (out, in) -> Int8. ValueError that names the tensor as `quantize` raises it."""
    out, width = stored.shape
    values, scales = np.empty((out, width), np.int8), np.empty((out, -(-width // GROUP)), np.float16)
    step = max(1, NUMBERS // max(width, 1))
    for first in range(0, out, step):
        try:
            part = quantize(stored[first : first + step])
        except ValueError as error:
            raise ValueError(f"{where}: {str(error).removeprefix('weight: ')}") from None
        values[first : first + step], scales[first : first + step] = part.values, part.scales
    return Int8(values, scales)


def from_q8_0(where: str, blocks: np.ndarray, width: int) -> Int8:
    """The matrix as it stands in a GGUF file: blocks (out, in / 32 · Q8_0) bytes. ValueError where a scale is no
    number."""
    each = blocks.reshape(len(blocks), -1, Q8_0)
    scales = np.ascontiguousarray(each[:, :, :2]).view(np.float16)[:, :, 0]
    bad = np.argwhere(~np.isfinite(scales))
    require(not len(bad), f"{where}: got a scale of {scales[tuple(bad[0])] if len(bad) else 0}, wanted finite numbers")
    return Int8(np.ascontiguousarray(each[:, :, 2:]).view(np.int8).reshape(len(blocks), width), scales)

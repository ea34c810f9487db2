"""Weights in 8 bits: groups of 32 numbers along a row share a scale, as in the Q8_0 of GGUF files.

    s = the smallest float16 that is at least max|w| / 127        n = round(w / s), ties to even        ŵ = n · s

So no number is cut off, |ŵ - w| ≤ s / 2, and 34 bytes hold what takes 128 in float32. llama.cpp rounds s to the nearest
float16, and cuts off what then exceeds 127 (chosen: rounded up; files hold either, and both read alike).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from reference.checks import require

GROUP = 32  # numbers that share a scale; the last of a row may be fewer
_MOST = 127


@dataclass(frozen=True)
class Int8:
    """A weight matrix in 8 bits."""

    stored: ClassVar[str] = "int8"
    values: np.ndarray  # (out, in) int8, -127 to 127
    scales: np.ndarray  # (out, ⌈in / 32⌉) float16

    def __post_init__(self) -> None:
        out, width = self.values.shape
        wanted = out, -(-width // GROUP)
        require(self.values.dtype == np.int8, f"values: got {self.values.dtype}, wanted int8")
        require(self.scales.dtype == np.float16, f"scales: got {self.scales.dtype}, wanted float16")
        require(self.scales.shape == wanted, f"scales: got shape {self.scales.shape}, wanted {wanted}")

    @property
    def shape(self) -> tuple[int, ...]:
        """(out, in)."""
        return self.values.shape

    @property
    def dtype(self) -> np.dtype:
        """Of the numbers that it stands for."""
        return np.dtype(np.float32)

    @property
    def nbytes(self) -> int:
        """Bytes of values and scales."""
        return self.values.nbytes + self.scales.nbytes

    def __len__(self) -> int:
        return len(self.values)

    def rows(self, chosen: np.ndarray | slice) -> Int8:
        """Some of its rows: chosen (K,), or a slice -> (K, in)."""
        return Int8(self.values[chosen], self.scales[chosen])


Matrix = np.ndarray | Int8  # what a linear map may be stored as


def quantize(weight: np.ndarray) -> Int8:
    """weight (out, in), any floating dtype -> Int8. ValueError for NaN, infinity, and numbers too large for a scale."""
    require(weight.ndim == 2, f"weight: got shape {weight.shape}, wanted (out, in)")
    exact = np.asarray(weight, np.float64)
    largest = _grouped(np.abs(exact)).max(axis=-1, initial=0)  # (out, groups)
    most = float(np.finfo(np.float16).max) * _MOST
    found = largest.max(initial=0)
    require(bool(found <= most), f"weight: got {found}, wanted finite numbers of at most {most:g}")
    scales = (largest / _MOST).astype(np.float16)
    scales = np.where(scales.astype(np.float64) * _MOST < largest, np.nextafter(scales, np.float16(np.inf)), scales)
    by = np.where(scales > 0, scales, 1).astype(np.float64)  # a group of zeros stays one
    values = np.rint(exact / _each(by, exact.shape[1])).astype(np.int8)
    return Int8(values, scales)


def dequantize(weight: Int8) -> np.ndarray:
    """The numbers that are stored: (out, in) float32, each exact, as 7 bits times 11 fit its 24."""
    return weight.values * _each(weight.scales.astype(np.float32), weight.values.shape[1])


def plain(weight: Matrix) -> np.ndarray:
    """A weight matrix as an array: as it is, or the numbers that 8 bits stand for."""
    return dequantize(weight) if isinstance(weight, Int8) else weight


def _grouped(x: np.ndarray) -> np.ndarray:
    """(out, in) -> (out, groups, 32), zeros after the end."""
    out, width = x.shape
    return np.pad(x, ((0, 0), (0, -width % GROUP))).reshape(out, -(-width // GROUP), GROUP)


def _each(scales: np.ndarray, width: int) -> np.ndarray:
    """The scale of every number: (out, groups) -> (out, in)."""
    return np.repeat(scales, GROUP, axis=1)[:, :width]

"""One GGUF file, read with the `gguf` package: metadata by key, and tensors dequantised when they are asked for.

The package raises whatever a damaged file makes it stumble over; here that is one ValueError that names the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, dequantize

from loaders.eight_bits import from_q8_0
from loaders.tensors import forgetting
from reference import Int8
from reference.checks import require

PLAIN = {
    GGMLQuantizationType.F64: np.dtype(np.float64),
    GGMLQuantizationType.F32: np.dtype(np.float32),
    GGMLQuantizationType.F16: np.dtype(np.float16),
    GGMLQuantizationType.BF16: np.dtype(ml_dtypes.bfloat16),
}


class _Reader(GGUFReader):
    """The package's reader, but what would lie beyond the file's end is an error instead of an empty array: a lying
    count of 2⁶⁰ would else be filled with them."""

    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
        end = int(offset) + np.dtype(dtype).itemsize * int(count)
        if end > len(self.data):
            raise ValueError(f"it ends at byte {len(self.data)}, before what it says lies up to {end}")
        return super()._get(offset, dtype, count, override_order)


def _refuse_foreign_bytes(reader: GGUFReader) -> None:
    """The package reads the metadata of a file whose numbers start with their high byte, but not its tensors."""
    if reader.byte_order != "I":
        raise ValueError("its bytes are in the other order: gguf-convert-endian turns them")


class GGUFFile:
    """A GGUF file: `metadata` by key and `shapes` by tensor name, matrices as (out, in). ValueError where the file is
    truncated or is not GGUF, OSError where it is not there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        require(path.stat().st_size > 0, f"{path}: got an empty file, wanted a GGUF file")
        try:
            # Copy on write: to a compiled kernel the arrays are as writable as any, and the file stays as it is.
            reader = _Reader(path, "c")
            _refuse_foreign_bytes(reader)
            self.metadata: dict[str, Any] = {key: field.contents() for key, field in reader.fields.items()}
            self._tensors = {tensor.name: tensor for tensor in reader.tensors}
            self.let_go = forgetting(reader.data)
        except (ValueError, KeyError, IndexError, OverflowError, TypeError, MemoryError) as error:
            raise ValueError(
                f"{path}: got a file that `gguf` cannot read ({error}), wanted a whole GGUF file"
            ) from None
        self.shapes = {name: tuple(map(int, reversed(tensor.shape))) for name, tensor in self._tensors.items()}

    def eight_bits(self, name: str, part: int | None = None) -> Int8 | None:
        """A matrix that is stored as Q8_0, as it stands, or that part of a stack of them; None for any other."""
        tensor, axes = self._tensors.get(name), 2 if part is None else 3
        if tensor is None or tensor.tensor_type is not GGMLQuantizationType.Q8_0 or len(self.shapes[name]) != axes:
            return None
        blocks = np.asarray(tensor.data) if part is None else np.asarray(tensor.data)[part]
        return from_q8_0(f"{self.path}: tensor {name!r}", blocks, self.shapes[name][-1])

    def tensor(self, name: str, part: int | None = None) -> np.ndarray:
        """The tensor, or x[part] of it: a view of the file where it is stored as floats, or else its blocks as
        float32."""
        require(name in self.shapes, f"{self.path}: tensor {name!r}: got no such tensor, wanted it here")
        tensor, kind = self._tensors[name], self._tensors[name].tensor_type
        if kind in PLAIN:
            whole = np.asarray(tensor.data).view(PLAIN[kind]).reshape(self.shapes[name])
            return np.require(whole if part is None else whole[part], requirements="A")
        try:
            return dequantize(tensor.data if part is None else tensor.data[part], kind)
        except NotImplementedError:
            raise ValueError(
                f"{self.path}: tensor {name!r}: got quantisation {kind.name}, wanted one that `gguf` reads"
            ) from None

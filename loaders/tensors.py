"""One safetensors file, memory-mapped: eight bytes of header length, a JSON header, then the tensors' bytes.

    {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, …}

The header is believed only after it has been checked against the file: every tensor as long as its shape says, the
tensors side by side from the header's end to the file's. A truncated or lying file is one ValueError that names it.

Source: the format's description at github.com/huggingface/safetensors.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import ml_dtypes
import numpy as np

from loaders.settings import shown
from reference.checks import require

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
MAX_HEADER = 100_000_000  # bytes, the limit of the format


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies: bytes `start` to `stop` of the data that follows the header."""

    dtype: np.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


class TensorFile:
    """A safetensors file: ValueError where it is not what its header says, OSError where it is not there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        size = path.stat().st_size
        header, self._data_start = _read_header(path, size)
        given = header.get("__metadata__")
        self.metadata: dict[str, str] = {} if given is None else given
        require(isinstance(self.metadata, dict), f"{path}: __metadata__: got {shown(self.metadata)}, wanted an object")
        self.entries = {
            name: _entry(f"{path}: tensor {shown(name)}", description)
            for name, description in header.items()
            if name != "__metadata__"
        }
        _check_layout(path, self.entries, size - self._data_start)
        # Copy on write: to a compiled kernel the arrays are as writable as any, and the file stays as it is.
        mapped = np.memmap(path, np.uint8, mode="c")
        self._bytes, self.let_go = mapped.view(np.ndarray), forgetting(mapped)

    def tensor(self, name: str, part: int | None = None) -> np.ndarray:
        """The tensor, or x[part] of it, as a view of the file, or a copy where the file does not align it for its
        dtype."""
        require(name in self.entries, f"{self.path}: tensor {shown(name)}: got no such tensor, wanted it here")
        entry = self.entries[name]
        raw = self._bytes[self._data_start + entry.start : self._data_start + entry.stop]
        whole = raw.view(entry.dtype).reshape(entry.shape)
        return np.require(whole if part is None else whole[part], requirements="A")

    def arrays(self, kind: str) -> dict[str, np.ndarray]:
        """All tensors, in memory, of a file whose metadata says that its format is `kind`; ValueError for another."""
        found = self.metadata.get("format")
        require(found == kind, f"{self.path}: got format {found!r}, wanted a {kind} file")
        return {name: self.tensor(name).copy() for name in self.entries}


def forgetting(mapped: np.memmap) -> Callable[[], None]:
    """What makes the system forget the pages of a mapped file that were read, where it can; they are read again when
    they are asked for."""

    def let_go() -> None:
        if hasattr(mmap, "MADV_DONTNEED") and isinstance(held := getattr(mapped, "_mmap", None), mmap.mmap):
            held.madvise(mmap.MADV_DONTNEED)

    return let_go


def write_tensors(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file whose bytes follow from what it holds: header in the order given, tensors likewise.

    The format's own writer shuffles the metadata, so that two files with the same content differ.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, array in arrays.items():
        start, end = end, end + array.nbytes
        kind = next(kind for kind, dtype in DTYPES.items() if dtype == array.dtype)
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the tensors start at a multiple of eight bytes
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in arrays.values():
            file.write(np.ascontiguousarray(array).tobytes())


def _read_header(path: Path, size: int) -> tuple[dict[str, Any], int]:
    """The JSON header and the byte at which the tensors' data starts."""
    require(size >= 8, f"{path}: got {size} bytes, wanted a safetensors file, which has at least 8")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        require(
            length <= min(size - 8, MAX_HEADER),
            f"{path}: got a header of {length} bytes in a file of {size}, wanted one that fits: "
            "the file is truncated or not safetensors",
        )
        text = file.read(length)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: got a header that is not JSON ({error}), wanted a safetensors header") from None
    require(isinstance(header, dict), f"{path}: got a header that is a {type(header).__name__}, wanted an object")
    return header, 8 + length


def _entry(where: str, description: Any) -> Entry:
    """One header entry, checked by itself."""
    fields: dict[str, Any] = description if isinstance(description, dict) else {}
    dtype, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"{where}: got dtype {shown(dtype)}, wanted one of {', '.join(DTYPES)}")
    if not _sizes(shape):
        raise ValueError(f"{where}: got shape {shown(shape)}, wanted a list of whole numbers")
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"{where}: got data_offsets {shown(offsets)}, wanted [start, stop]")
    entry = Entry(DTYPES[dtype], tuple(shape), *offsets)
    wanted = math.prod(entry.shape) * entry.dtype.itemsize
    require(
        entry.stop - entry.start == wanted,
        f"{where}: got {entry.stop - entry.start} bytes, wanted {wanted} for {dtype} of shape {entry.shape}",
    )
    return entry


def _sizes(value: Any) -> TypeGuard[list[int]]:
    """Whether this is a list of whole numbers that are not negative."""
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)


def _check_layout(path: Path, entries: dict[str, Entry], size: int) -> None:
    """The tensors must lie side by side and end where the file ends."""
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        where = f"{path}: tensor {shown(name)}"
        require(
            entry.start == end,
            f"{where}: got data from byte {entry.start}, wanted it from {end}, where the tensor before it ends",
        )
        require(
            entry.stop <= size,
            f"{where}: got {size} bytes of data in the file, wanted {entry.stop} to hold it: the file is truncated",
        )
        end = entry.stop
    require(end == size, f"{path}: got {size} bytes of data, wanted {end}, where the last tensor ends")

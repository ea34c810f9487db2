"""One GGUF file, memory-mapped: metadata by key, then a table of tensors, then their bytes, quantised in blocks.

    "GGUF" | version | tensors | keys | (key, type, value)… | (name, axes, type, offset)… | padding | data

Only the blocks' arithmetic is the `gguf` package's. Its reader makes an array of every string, which takes seconds for
a large vocabulary, and believes what a damaged file says of its own lengths; here nothing is believed before it has
been checked against the file. A truncated or lying file is one ValueError that names it and, where there is one, the
tensor.

Source: the format's description, docs/gguf.md of github.com/ggml-org/ggml (versions 2 and 3, little-endian).
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

from reference.checks import require

VERSIONS = (2, 3)
STRING, ARRAY = 8, 9
SCALARS = {0: "u1", 1: "i1", 2: "u2", 3: "i2", 4: "u4", 5: "i4", 6: "f4", 7: "?", 10: "u8", 11: "i8", 12: "f8"}
PLAIN = {
    GGMLQuantizationType.F64: np.dtype(np.float64),
    GGMLQuantizationType.F32: np.dtype(np.float32),
    GGMLQuantizationType.F16: np.dtype(np.float16),
    GGMLQuantizationType.BF16: np.dtype(ml_dtypes.bfloat16),
}
MAX_AXES = 4


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies: bytes `start` to `stop` of the file. `shape` has matrices as (out, in)."""

    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    start: int
    stop: int


class GGUFFile:
    """A GGUF file: `metadata` by key and `entries` by tensor name. Raises ValueError where the file is not what it
    says, OSError where it is not there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        require(path.stat().st_size > 0, f"{path}: got an empty file, wanted a GGUF file")
        # Copy on write: to a compiled kernel the arrays are as writable as any, and the file stays as it is.
        self._bytes = np.memmap(path, np.uint8, mode="c").view(np.ndarray)
        cursor = _Cursor(path, self._bytes.data)
        tensors, keys = _read_counts(cursor)
        self.metadata: dict[str, Any] = {}
        for _ in range(keys):
            key = cursor.string("a key")
            require(key not in self.metadata, f"{path}: {key}: got the key twice, wanted it once")
            self.metadata[key] = cursor.value(key, cursor.number("u4", key))
        self.entries = self._read_table(cursor, tensors)

    def tensor(self, name: str) -> np.ndarray:
        """The tensor: a view of the file where it is stored as floats, or else its blocks as float32."""
        require(name in self.entries, f"{self.path}: tensor {name!r}: got no such tensor, wanted it here")
        entry = self.entries[name]
        raw = self._bytes[entry.start : entry.stop]
        if entry.kind in PLAIN:
            return np.require(raw.view(PLAIN[entry.kind]).reshape(entry.shape), requirements="A")
        try:
            return dequantize(raw.reshape(*entry.shape[:-1], -1), entry.kind)
        except NotImplementedError:
            raise ValueError(
                f"{self.path}: tensor {name!r}: got quantisation {entry.kind.name}, wanted one that `gguf` reads"
            ) from None

    def _read_table(self, cursor: _Cursor, count: int) -> dict[str, Entry]:
        """Where every tensor lies, checked to be inside the file and apart from the others."""
        table: dict[str, tuple[GGMLQuantizationType, tuple[int, ...], int]] = {}
        for _ in range(count):
            name = cursor.string("a tensor's name")
            require(name not in table, f"{self.path}: tensor {name!r}: got it twice, wanted it once")
            table[name] = cursor.tensor_line(f"tensor {name!r}")
        alignment = self.metadata.get("general.alignment", 32)
        require(
            type(alignment) is int and alignment > 0 and alignment % 8 == 0,
            f"{self.path}: general.alignment: got {alignment!r}, wanted a multiple of 8",
        )
        data = math.ceil(cursor.at / alignment) * alignment
        entries: dict[str, Entry] = {}
        end = data
        for name, (kind, shape, offset) in sorted(table.items(), key=lambda line: line[1][2]):
            where = f"{self.path}: tensor {name!r}"
            block, size = GGML_QUANT_SIZES[kind]
            require(
                shape[-1] % block == 0, f"{where}: got rows of {shape[-1]}, wanted a multiple of {kind.name}'s {block}"
            )
            start = data + offset
            stop = start + math.prod(shape) // block * size
            require(offset % alignment == 0, f"{where}: got offset {offset}, wanted a multiple of {alignment}")
            require(start >= end, f"{where}: got data from byte {start}, wanted it after the tensor before, from {end}")
            require(
                stop <= len(self._bytes),
                f"{where}: got {len(self._bytes)} bytes in the file, wanted {stop} to hold it: the file is truncated",
            )
            entries[name] = Entry(kind, shape, start, stop)
            end = stop
        return entries


@dataclass
class _Cursor:
    """The next byte to read of a file."""

    path: Path
    data: memoryview
    at: int = 0

    def take(self, size: int, what: str) -> memoryview:
        """The next `size` bytes."""
        require(
            size <= len(self.data) - self.at,
            f"{self.path}: {what}: got {len(self.data) - self.at} bytes before the file's end, wanted {size}: "
            "the file is truncated or lies about its lengths",
        )
        self.at += size
        return self.data[self.at - size : self.at]

    def numbers(self, code: str, count: int, what: str) -> list[Any]:
        """`count` scalars of a NumPy type code."""
        dtype = np.dtype(code).newbyteorder("<")
        return np.frombuffer(self.take(count * dtype.itemsize, what), dtype).tolist()

    def number(self, code: str, what: str) -> Any:
        """One scalar."""
        return self.numbers(code, 1, what)[0]

    def string(self, what: str) -> str:
        """A length and that many bytes of UTF-8."""
        (length,) = struct.unpack("<Q", self.take(8, what))
        try:
            return str(self.take(length, what), "utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"{self.path}: {what}: got bytes that are not UTF-8, wanted text") from None

    def value(self, key: str, kind: int) -> Any:
        """A metadata value of this type: a scalar, a string or an array of either."""
        if kind == STRING:
            return self.string(key)
        if kind == ARRAY:
            item, count = self.number("u4", key), self.number("u8", key)
            if item == STRING:
                return [self.string(key) for _ in range(count)]
            require(item in SCALARS, f"{self.path}: {key}: got an array of type {item}, wanted scalars or strings")
            return self.numbers(SCALARS[item], count, key)
        require(kind in SCALARS, f"{self.path}: {key}: got value type {kind}, wanted one of GGUF's 0 to 12")
        return self.number(SCALARS[kind], key)

    def tensor_line(self, what: str) -> tuple[GGMLQuantizationType, tuple[int, ...], int]:
        """A tensor's type, shape and offset into the data, after its name."""
        axes = self.number("u4", what)
        require(1 <= axes <= MAX_AXES, f"{self.path}: {what}: got {axes} axes, wanted 1 to {MAX_AXES}")
        shape = tuple(reversed(self.numbers("u8", axes, what)))  # the file names the fastest axis first
        require(0 not in shape, f"{self.path}: {what}: got shape {shape}, wanted no empty axis")
        kind = self.number("u4", what)
        known = {int(k) for k in GGMLQuantizationType}
        require(kind in known, f"{self.path}: {what}: got tensor type {kind}, wanted one that the gguf package knows")
        return GGMLQuantizationType(kind), shape, self.number("u8", what)


def _read_counts(cursor: _Cursor) -> tuple[int, int]:
    """Tensors and metadata keys, from the first 24 bytes."""
    magic = bytes(cursor.take(4, "magic"))
    require(magic == b"GGUF", f"{cursor.path}: got a file that starts with {magic!r}, wanted a GGUF file")
    version = cursor.number("u4", "version")
    require(version in VERSIONS, f"{cursor.path}: got GGUF version {version}, wanted little-endian 2 or 3")
    tensors, keys = cursor.numbers("u8", 2, "counts")
    return tensors, keys

"""Machine code as an image: one block of memory that is copied, told where it stands, and run.

LLVM could load its own object files, but its library takes 50 MB of every process that loads it. A kernel's object file
has a section of code, a few of constants, and a list of the places where addresses stand. `image_of` lays the sections
out one after another. What lies as far away wherever the block stands is settled there and then; `loaded` fills in the
rest, addresses in the block and functions of the system's library of C.

Only for object files of Linux on x86-64 (ELF; "System V ABI, AMD64 supplement", 4.4). Elsewhere LLVM loads what it
made.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import struct
import sys
from collections import defaultdict
from typing import NamedTuple

from reference.checks import require

IMAGES = sys.platform == "linux" and os.uname().machine == "x86_64" and sys.maxsize > 2**32
_PROGRAM, _SYMBOLS, _RELOCATIONS = 1, 2, 4  # kinds of sections
_WRITTEN, _IN_MEMORY = 1, 2  # flags of sections
_ABSOLUTE, _RELATIVE = 1, {2: "<i", 4: "<i", 24: "<q"}  # kinds of relocations: 64; PC32, PLT32, PC64


class _Section(NamedTuple):
    name: int
    kind: int
    flags: int
    address: int
    offset: int
    size: int
    link: int  # to the table of symbols that relocations name, or of the names of symbols
    info: int  # the section that relocations are for
    align: int
    entry: int


def image_of(code: bytes, symbol: str) -> bytes:
    """An object file as an image of the function `symbol`: a line of JSON (where the function begins, the places of
    addresses in the block, those of functions elsewhere by name), and the block. ValueError for what an image cannot
    hold."""
    (start,), (count,) = struct.unpack_from("<Q", code, 40), struct.unpack_from("<H", code, 60)
    sections = [_Section(*struct.unpack_from("<IIQQQQIIQQ", code, start + 64 * n)) for n in range(count)]
    (table,) = (section for section in sections if section.kind == _SYMBOLS)
    symbols = [
        (_text(code, sections[table.link].offset + name), section, value)
        for name, _, _, section, value, _ in struct.iter_unpack("<IBBHQQ", _of(code, table))
    ]
    block, begins = bytearray(), {}
    for n, section in enumerate(sections):
        if section.kind == _PROGRAM and section.flags & (_WRITTEN | _IN_MEMORY) == _IN_MEMORY:
            block += bytes(-len(block) % max(section.align, 1))
            begins[n] = len(block)
            block += _of(code, section)
    inside: list[int] = []
    outside: dict[str, list[int]] = defaultdict(list)
    for section in sections:
        if section.kind != _RELOCATIONS or section.info not in begins:
            continue
        for at, info, addend in struct.iter_unpack("<QQq", _of(code, section)):
            kind, place, (name, home, value) = info % 2**32, begins[section.info] + at, symbols[info >> 32]
            if home not in begins:
                require(kind == _ABSOLUTE and addend == home == 0, f"{symbol}: got {name}, wanted a function of C")
                outside[name].append(place)
            elif kind == _ABSOLUTE:
                struct.pack_into("<q", block, place, begins[home] + value + addend)
                inside.append(place)
            else:
                require(kind in _RELATIVE, f"{symbol}: got relocation {kind}, wanted 1, 2, 4 or 24 of x86-64")
                struct.pack_into(_RELATIVE[kind], block, place, begins[home] + value + addend - place)
    (entry,) = (begins[home] + value for name, home, value in symbols if name == symbol)
    return json.dumps([entry, inside, outside]).encode() + b"\n" + bytes(block)


def _of(code: bytes, section: _Section) -> bytes:
    return code[section.offset : section.offset + section.size]


def _text(code: bytes, at: int) -> str:
    return code[at : code.index(b"\0", at)].decode()


def loaded(image: bytes) -> int:
    """The address at which an image's function stands from now on. The memory is never given back: helper threads run
    what is in it even while Python ends."""
    head, _, code = image.partition(b"\n")
    entry, inside, outside = json.loads(head)
    block, size, system = bytearray(code), ctypes.c_size_t(len(code)), ctypes.CDLL(None, use_errno=True)
    system.mmap.restype = ctypes.c_void_p
    how = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    base = system.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, how, -1, ctypes.c_long(0))
    if base == ctypes.c_void_p(-1).value:
        raise MemoryError(f"kernels: the system gave no {len(code)} bytes of memory")
    for place in inside:
        struct.pack_into("<q", block, place, base + struct.unpack_from("<q", block, place)[0])
    for name, places in outside.items():
        for place in places:
            struct.pack_into("<q", block, place, ctypes.cast(getattr(system, name), ctypes.c_void_p).value)
    ctypes.memmove(base, bytes(block), len(block))
    if system.mprotect(ctypes.c_void_p(base), size, mmap.PROT_READ | mmap.PROT_EXEC):
        raise OSError(ctypes.get_errno(), "kernels: the system lets this process run no code that it wrote")
    return int(base) + int(entry)

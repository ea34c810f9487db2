"""Rows of stored numbers, as all kernels read, widen, add and list them."""

from __future__ import annotations

import numpy as np

from accel.cpu.simd import (
    BF16,
    F16,
    F32,
    GROUP,
    LANES,
    PAIRS,
    Q8,
    ROUNDED,
    carray,
    exp2,
    fma,
    highest,
    load,
    load_bf16,
    load_bytes,
    load_f16,
    load_some,
    load_some_bf16,
    load_some_f16,
    njit,
    prefetch,
    scale_at,
    splat,
    store,
    store_some,
    total,
    words_at,
)


@njit(forceinline=True)
def padded(n, step):
    """n rounded up to a multiple of step."""
    return (n + step - 1) // step * step


@njit(forceinline=True)
def rounded(kind):
    """The form of a product whose one side is stored as `kind`, and whose other may be rounded as much: bfloat16 and 8
    bits are multiplied as bfloat16, where the machine does that faster. float16 is not: rounded on both sides, rows of
    small networks were up to 1.2 % off, beyond the 1 % that is allowed."""
    return kind + ROUNDED if PAIRS and kind in (BF16, Q8) else kind


@njit(forceinline=True)
def kind_of(form):
    """How the stored side of a product is stored. A kind is a form too, of a product as exact as what is stored."""
    return form % ROUNDED


@njit(forceinline=True)
def number_size(kind):
    """Bytes of a stored number that is no 8-bit one."""
    return 4 if kind == F32 else 2


@njit(forceinline=True)
def bytes_of(kind, count):
    """Bytes of so many stored numbers of a row, of which 8-bit ones come in whole groups of 32."""
    return (count + 31) // 32 * GROUP if kind == Q8 else count * number_size(kind)


@njit(forceinline=True)
def group_part(group, i):
    """LANES numbers of an 8-bit group, from its number i on, as float32."""
    return load_bytes(group + 2 + i) * scale_at(group)


@njit(forceinline=True)
def load_kind(at, kind, left):
    """LANES stored numbers as float32, or zeros after the `left` that there are."""
    if left >= LANES:
        return load(at) if kind == F32 else load_f16(at) if kind == F16 else load_bf16(at)
    if kind == F32:
        return load_some(at, max(left, 0))
    return load_some_f16(at, max(left, 0)) if kind == F16 else load_some_bf16(at, max(left, 0))


@njit(forceinline=True)
def load_part(row, kind, i, left):
    """LANES numbers of a stored row from its number i on, a multiple of LANES, or zeros after the `left` that there
    are."""
    return (
        group_part(row + i // 32 * GROUP, i % 32) if kind == Q8 else load_kind(row + i * number_size(kind), kind, left)
    )


@njit(forceinline=True)
def ahead(row, kind, dim):
    """Fetch a row that will be read soon, so that memory works while the tile does."""
    for at in range(row, row + dim * number_size(kind), 64):
        prefetch(at)


@njit(forceinline=True)
def widen(source, kind, count, out, factor):
    """A row of `count` stored numbers times `factor`, as float32 with zeros up to a multiple of LANES."""
    by, size = splat(factor), number_size(kind)
    if kind == Q8:  # a row ends with a whole group, filled up with zeros
        for g in range(0, count, 32):
            for i in range(g, min(g + 32, padded(count, LANES)), LANES):
                store(out + 4 * i, group_part(source + g // 32 * GROUP, i - g) * by)
        return
    if kind == F32 and count % LANES == 0:  # the common case, without a question per vector
        for i in range(0, count, LANES):
            store(out + 4 * i, load(source + 4 * i) * by)
        return
    for i in range(0, count, LANES):
        store(out + 4 * i, load_kind(source + size * i, kind, count - i) * by)


@njit(forceinline=True)
def copy_row(source, target, count, factor):
    """Copy `count` float32, times `factor`."""
    by = splat(factor)
    for i in range(0, count, LANES):
        if count - i >= LANES:
            store(target + 4 * i, load(source + 4 * i) * by)
        else:
            store_some(target + 4 * i, count - i, load_some(source + 4 * i, count - i) * by)


@njit(forceinline=True)
def add_row(source, kind, count, weight, out):
    """out += weight · a stored row of `count` numbers."""
    by, size = splat(weight), 4 if kind == F32 else 2
    for i in range(0, count // LANES * LANES, LANES):
        store(out + 4 * i, fma(load_kind(source + size * i, kind, LANES), by, load(out + 4 * i)))
    rest = count % LANES
    if rest:
        at, to = source + size * (count - rest), out + 4 * (count - rest)
        store_some(to, rest, fma(load_kind(at, kind, rest), by, load_some(to, rest)))


@njit(forceinline=True)
def list_rows(lines, base, row, first, count, chosen):
    """Write the addresses of `count` rows of an array to `lines`: rows first, first + 1, … of it, or, where `chosen` is
    not 0, those that a list at this address names."""
    stand, list_of = carray(words_at(lines), count), carray(words_at(chosen or lines), first + count)
    for i in range(count):
        stand[i] = base + (list_of[first + i] if chosen else first + i) * row


@njit(forceinline=True)
def product(x, y, dim):
    """Dot product of two widened rows."""
    sums = splat(np.float32(0.0))
    for i in range(0, dim, LANES):
        sums = fma(load(x + 4 * i), load(y + 4 * i), sums)
    return total(sums)


@njit(forceinline=True)
def power(x):
    """2^x of one number."""
    return highest(exp2(splat(x)))

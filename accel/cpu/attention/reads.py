"""What kernels are told of the reads that one call attends to: a table with a row of words for each.

Sequences that decode together and chunks that chose their own columns are reads of one call: (q, k, v, positions) each,
with their own numbers of tokens and keys. A kernel finds an item's read, and then it is as if there were no other.
"""

from __future__ import annotations

from typing import NamedTuple

from accel.cpu.simd import carray, njit, to_fixed_tuple, words_at


class Read(NamedTuple):
    """A row of the table. Addresses, and bytes from head to head and from row to row; 0 where there is none."""

    items: int  # of this read
    q: int  # (H, T, D)
    q_head: int
    q_row: int
    q_kind: int
    k: int  # (KV, S, D)
    k_head: int
    k_row: int
    k_kind: int
    v: int  # alike, or 0: then only peaks and sums are computed
    v_head: int
    v_row: int
    v_kind: int
    chosen: int  # columns of k and v that are read (KV, S), or 0 for all
    seen: int  # first and one past the last key that each query sees (KV, T, 2), or (1, T, 2)
    seen_head: int
    out: int  # (H, T, D)
    out_head: int
    out_row: int
    partial: int  # (P, H, T, D), what each range of keys gives, or 0 where there is one
    stats: int  # peaks and sums of every range (P, H, T, 2)
    heads: int
    kv_heads: int
    tokens: int
    keys: int
    dim: int
    block: int  # tokens per item
    blocks: int
    parts: int  # ranges of keys
    span: int  # keys per range
    scale: int  # log2(e) times the scale, a float64
    cap: int  # log2(e) times the cap, a float64, 0 where there is none


WORDS = len(Read._fields)


@njit
def read_at(table, n):
    """Row n of the table."""
    return Read(*to_fixed_tuple(carray(words_at(table + 8 * WORDS * n), WORDS), WORDS))


@njit(forceinline=True)
def group_of(one):
    """Query heads per KV head."""
    return one.heads // one.kv_heads


@njit
def find(table, reads, item):
    """Which read an item belongs to, and its number there; `reads` where there is no such item."""
    words, n = carray(words_at(table), (reads, WORDS)), 0
    while n < reads and item >= words[n, 0]:
        item -= words[n, 0]
        n += 1
    return n, item

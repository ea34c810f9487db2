"""What `thresher verify` draws for the moves of the forward pass and for a cache, as `cases` does for the contract."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from thresher.verify.cases import linear as one_map
from thresher.verify.drawing import ALONE, PRODUCTS, Case, Drawing
from thresher.verify.life import STEPS


def add(d: Drawing) -> Case:
    """Two blocks of rows."""
    tokens, width = d.tokens(), d.width("E")
    return d.case(*(d.normal(tokens, width, positive=width <= ALONE) for _ in range(2)))


def concatenate(d: Drawing) -> Case:
    """Rows of several sequences, some of which have none."""
    counts, width = d.pick("rows", st.lists(st.integers(0, 40), min_size=1, max_size=5)), d.width("E")
    d.dtype = "float32"  # activations always are
    return d.case([d.normal(count, width) for count in counts])


def split_heads(d: Drawing) -> Case:
    """The rows that a projection gives."""
    heads, _, dim = d.heads()
    return d.case(d.normal(d.tokens(PRODUCTS // (heads * dim)), heads * dim), heads)


def merge_heads(d: Drawing) -> Case:
    """The heads' outputs."""
    heads, _, dim = d.heads()
    return d.case(d.normal(heads, d.tokens(PRODUCTS // (heads * dim)), dim))


def linear_each(d: Drawing) -> Case:
    """Several maps of one input, some with a bias, stored in different ways."""
    case = one_map(d)
    x, *first = case.arguments
    width, few = x.shape[1], d.chosen["out"] <= ALONE
    more = [d.pick(f"out {n + 2}", st.integers(1, 130)) for n in range(d.pick("more maps", st.integers(0, 3)))]
    positive = few or any(outs <= ALONE for outs in more)
    if positive:
        x, first = d.store(np.abs(x)), [None if a is None else d.store(np.abs(a)) for a in first]
    others = [
        (
            d.normal(outs, width, size=width**-0.5, positive=positive),
            d.normal(outs, positive=positive) if d.rng.random() < 0.5 else None,
        )
        for outs in more
    ]
    return d.case(x, [tuple(first), *others])


def scatter(d: Drawing) -> Case:
    """Scores of some columns."""
    (heads, kv_heads, _), keys = d.heads(), d.keys()
    read = d.pick("read", st.integers(1, keys))
    columns = np.sort(d.rng.permuted(np.tile(np.arange(keys), (kv_heads, 1)), axis=1)[:, :read], axis=1)
    d.dtype = "float32"
    return d.case(d.normal(heads, read), columns, keys)


def group_mean(d: Drawing) -> Case:
    """Scores per head, none below 0."""
    (heads, kv_heads, _), keys = d.heads(), d.keys()
    d.dtype = "float32"  # scores always are
    return d.case(d.normal(heads, keys, positive=True), kv_heads)


def with_chunk(d: Drawing) -> Case:
    """Columns kept of a past, and how far the chunk after it reaches."""
    kv_heads, past = d.pick("KV", st.integers(1, 3)), d.keys()
    kept = d.pick("kept", st.integers(1, past))
    columns = np.sort(d.rng.permuted(np.tile(np.arange(past), (kv_heads, 1)), axis=1)[:, :kept], axis=1)
    return d.case(columns, past, past + d.tokens())


def last_queries(d: Drawing) -> Case:
    """Queries held, or none yet, and those of a chunk."""
    heads, _, dim = d.heads()
    d.dtype = "float32"
    held = d.normal(heads, d.pick("held", st.integers(1, 40)), dim) if d.perhaps("some held") else None
    return d.case(held, d.normal(heads, d.tokens(PRODUCTS // (heads * dim)), dim), d.pick("window", st.integers(1, 50)))


def new_cache(d: Drawing) -> Case:
    """How a cache is stored, its G, KV and D, and the steps of its life."""
    dtype = d.pick("stored", st.sampled_from(["float32", "float16", "bfloat16"]))
    shape = [d.pick(name, sizes) for name, sizes in (("G", st.sampled_from([1, 2, 4])), ("KV", st.integers(1, 3)))]
    dim = d.pick("head_dim", st.sampled_from([16, 18, 32, 64, 96, 254]))
    step = st.tuples(st.sampled_from(STEPS), st.integers(0, 2**31))
    return d.case((dtype, *shape, dim), d.pick("steps", st.lists(step, max_size=20)))

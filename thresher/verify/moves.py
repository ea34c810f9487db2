"""What `thresher verify` draws for the moves of the forward pass and for a cache, as `cases` does for the contract."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from reference import (
    Compensator,
    Expert,
    FastForwardLayer,
    FastForwardWeights,
    LayerWeights,
    Predictor,
    Rope,
    Sampling,
    Weights,
)
from thresher.verify.cases import ACTS, CAPS, gated_ffn, kept_besides, sparse_ffn
from thresher.verify.cases import attention_mass as one_mass
from thresher.verify.cases import linear as one_map
from thresher.verify.drawing import PRODUCTS, Case, Drawing
from thresher.verify.life import STEPS


def add(d: Drawing) -> Case:
    """Two blocks of rows."""
    tokens, width = d.tokens(), d.width("E")
    d.dtype = "float32"  # activations always are
    rows = (d.normal(tokens, width, positive=d.alone(width)) for _ in range(2))
    return d.case(*rows, scale=d.pick("scale", st.sampled_from([1.0, 0.22])))


def soft_cap(d: Drawing) -> Case:
    """Logits, some of them far beyond the cap, and perhaps a factor."""
    d.dtype = "float32"
    x = d.normal(d.tokens(), d.width("V"), size=d.size("logits", -3, 8))
    cap = d.pick("cap", st.none() | st.sampled_from([0.5, 30.0]))
    return d.case(x, scale=d.pick("scale", st.sampled_from([1.0, 0.125])), cap=cap)


def concatenate(d: Drawing) -> Case:
    """Rows of several sequences, some of which have none."""
    counts, width = d.pick("rows", st.lists(st.integers(0, 40), min_size=1, max_size=5)), d.width("E")
    d.dtype = "float32"
    return d.case([d.normal(count, width) for count in counts])


def split_heads(d: Drawing) -> Case:
    """The rows that a projection gives."""
    heads, _, dim = d.heads()
    return d.case(d.normal(d.tokens(PRODUCTS // (heads * dim)), heads * dim), heads)


def merge_heads(d: Drawing) -> Case:
    """The heads' outputs."""
    heads, _, dim = d.heads()
    return d.case(d.normal(heads, d.tokens(PRODUCTS // (heads * dim)), dim))


def join_dims(d: Drawing) -> Case:
    """Heads, what is joined to each or to all of them, and perhaps room for zeros."""
    heads, _, dim = d.heads()
    tokens = d.tokens(PRODUCTS // (heads * dim))
    d.dtype = "float32"
    more = d.pick("R", st.integers(1, 40))
    own = d.normal(d.pick("heads of y", st.sampled_from([1, heads])), tokens, more)
    return d.case(d.normal(heads, tokens, dim), own, dim + more + d.pick("zeros", st.integers(0, 9)))


def linear_each(d: Drawing) -> Case:
    """Several maps of one input, some with a bias, stored in different ways."""
    case = one_map(d)
    x, *first = case.arguments
    width, few = x.shape[1], d.alone(d.chosen["out"])
    more = [d.pick(f"out {n + 2}", st.integers(1, 130)) for n in range(d.pick("more maps", st.integers(0, 3)))]
    positive = few or any(d.alone(outs) for outs in more)
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


def group_mean(d: Drawing) -> Case:
    """Scores per head, none below 0."""
    (heads, kv_heads, _), keys = d.heads(), d.keys()
    d.dtype = "float32"  # scores always are
    return d.case(d.normal(heads, keys, positive=True), kv_heads)


def last_queries(d: Drawing) -> Case:
    """Queries held, or none yet, and those of a chunk."""
    heads, _, dim = d.heads()
    d.dtype = "float32"
    held = d.normal(heads, d.pick("held", st.integers(1, 40)), dim) if d.perhaps("some held") else None
    return d.case(held, d.normal(heads, d.tokens(PRODUCTS // (heads * dim)), dim), d.pick("window", st.integers(1, 50)))


def attention_each(d: Drawing) -> Case:
    """Several reads of one layer, each with its own tokens and keys: sequences that decode together, or chunks that
    have chosen. All are stored alike."""
    d.dtype = "float32" if d.dtype == "mixed" else d.dtype
    heads, kv_heads, dim = d.heads()
    reads = []
    for n in range(d.pick("reads", st.integers(1, 5))):
        keys = d.pick(f"S {n}", st.integers(1, 9) | st.integers(10, 1_500))
        tokens = d.pick(f"T {n}", st.just(1) | st.integers(1, 40))
        q, k, v = d.vectors(f"q {n}", heads, tokens, dim), d.normal(kv_heads, keys, dim), d.normal(kv_heads, keys, dim)
        reads.append((q, k, v, *d.positions(kv_heads, tokens, keys)))
    return d.case(reads, window=d.pick("window", st.none() | st.integers(1, 300)), cap=d.pick("cap", CAPS))


def attention_and_mass_each(d: Drawing) -> Case:
    """Several reads as those of attention_each, or one as that of attention_mass, with values."""
    if d.perhaps("several reads"):
        return attention_each(d)
    case = one_mass(d)
    q, k, *places = case.arguments
    return d.case([(q, k, d.normal(*k.shape), *places)], **case.options)


def select_keys_each(d: Drawing) -> Case:
    """Chunks that choose one after another from the columns before them."""
    (heads, kv_heads, dim), keys = d.heads(), d.keys()
    k, count = d.directions("k", kv_heads, keys, dim), d.pick("chunks", st.integers(1, 4))
    q = [d.vectors(f"q {n}", heads, d.pick(f"T {n}", st.integers(1, 40)), dim) for n in range(count)]
    pasts = sorted(d.pick(f"past {n}", st.just(keys) | st.integers(1, keys)) for n in range(count))
    shared = d.budget(min(pasts)) if d.perhaps("one budget") else None
    budgets = [shared or d.budget(past) for past in pasts]
    d.chosen["budget"] = min(budgets)
    return d.case(q, k, pasts, budgets, d.pick("n_queries", st.integers(1, 40)), **kept_besides(d, kv_heads, keys))


def rotation_tables(d: Drawing) -> Case:
    """Ropes, and spans of positions far from zero."""
    rope = Rope(
        d.pick("theta", st.sampled_from([10_000.0, 1e6])),
        factor=d.pick("factor", st.sampled_from([1.0, 8.0])),
        share=d.pick("share", st.sampled_from([1.0, 0.5])),
    )
    first = st.integers(0, 9) | st.integers(0, 2_000_000)
    spans = [(d.pick(f"first {n}", first), d.tokens(), 4096) for n in range(d.pick("spans", st.integers(1, 4)))]
    return d.case(rope, 4 * d.pick("D/4", st.integers(1, 65)), spans)


def griffin_statistic(d: Drawing) -> Case:
    """A block and two matrices. Every number is the length of a column, so none may come of terms that cancel, and
    a NaN would spoil them all."""
    d.dtype = "float32" if d.dtype == "mixed" else d.dtype
    x, gate, up, _ = gated_ffn(d).arguments
    x, gate, up = (d.store(np.abs(np.nan_to_num(array.astype(np.float64)))) for array in (x, gate, up))
    return d.case(x, gate, up, act=d.pick("act", ACTS))


def fastforward_blocks(d: Drawing) -> Case:
    """Tokens, how many make a block, a predictor, how many neurons to keep, three matrices, perhaps a compensator."""
    case = sparse_ffn(d)
    x, gate, up, down, neurons = case.arguments
    x = d.store(np.nan_to_num(x.astype(np.float64)))  # of a NaN no scores can be ranked
    width, rank, few = x.shape[1], d.width("r", 64), d.alone(1)
    w1, w2 = d.normal(width, rank, size=width**-0.5, positive=few), d.normal(rank, len(gate), positive=few)
    block = d.pick("block", st.integers(1, 40) | st.sampled_from([32, 64, 128, 256]))
    return d.case(x, block, Predictor(d.normal(width), w1, w2), len(neurons), gate, up, down, **case.options)


def neuron_magnitudes(d: Drawing) -> Case:
    """Three matrices."""
    return d.case(*gated_ffn(d).arguments[1:])


def draw(d: Drawing) -> Case:
    """Logits with ties, how to draw, and the generator's seed."""
    d.dtype, d.layout = "float32", "contiguous"
    logits = d.store(d.rng.standard_normal(d.pick("V", st.integers(1, 300))).round(1) * 4)
    sampling = Sampling(
        temperature=d.pick("temperature", st.sampled_from([0.0, 0.7, 1.0])),
        top_k=d.pick("top_k", st.none() | st.integers(1, 20)),
        top_p=d.pick("top_p", st.none() | st.sampled_from([0.1, 0.9])),
        min_p=d.pick("min_p", st.none() | st.sampled_from([0.05, 0.5])),
    )
    return d.case(logits, sampling, d.pick("generator", st.integers(0, 99)))


def to_backend(d: Drawing) -> Case:
    """Numbers of every kind, to the backend and back."""
    shape = d.pick("shape", st.lists(st.integers(1, 9), min_size=1, max_size=3))
    d.dtype = "float32" if d.dtype in ("float64", "mixed") else d.dtype
    return d.case(d.lay(np.arange(shape[0])) if d.perhaps("integers") else d.normal(*shape))


to_numpy = to_backend


def prepare_weights(d: Drawing) -> Case:
    """A model of one or two layers, whose output may be its embedding."""
    width, neurons, rows = d.width("E", 300), d.width("F", 300), d.pick("V", st.integers(1, 300))

    experts = d.pick("X", st.integers(0, 2))  # of every layer, none in most models

    def ffn() -> Expert:
        gate, up = (d.normal(neurons, width) for _ in range(2))
        return Expert(gate, up, d.normal(width, neurons))

    def layer() -> LayerWeights:
        square = {name: d.normal(width, width) for name in ("w_q", "w_k", "w_v", "w_o")}
        norms = {name: d.normal(width) for name in ("attention_norm", "ffn_norm")}
        bias = {"b_q": d.normal(width)} if d.rng.random() < 0.5 else {}
        routed = {"router": d.normal(experts, width)} if experts else {}
        arrays = {**square, **norms, **bias, **routed, **vars(ffn())}
        return LayerWeights(**arrays, experts=tuple(ffn() for _ in range(experts)) or None)

    table = d.normal(rows, width)
    output = table if d.perhaps("tied") else d.normal(rows, width)
    layers = tuple(layer() for _ in range(d.pick("L", st.integers(1, 2))))
    return d.case(Weights(table, layers, d.normal(width), output))


def prepare_fastforward(d: Drawing) -> Case:
    """Predictors, with and without a compensator."""
    width, rank, neurons = d.width("E", 300), d.width("r", 40), d.width("F", 300)

    def layer() -> FastForwardLayer:
        compensator = Compensator(d.normal(9, width), d.normal(width, 9)) if d.rng.random() < 0.5 else None
        return FastForwardLayer(
            Predictor(d.normal(width), d.normal(width, rank), d.normal(rank, neurons)), compensator, 0.5
        )

    return d.case(FastForwardWeights([layer() for _ in range(d.pick("L", st.integers(1, 2)))]))


def new_cache(d: Drawing) -> Case:
    """How a cache is stored, its G, KV and D, and the steps of its life."""
    dtype = d.pick("stored", st.sampled_from(["float32", "float16", "bfloat16"]))
    shape = [d.pick(name, sizes) for name, sizes in (("G", st.sampled_from([1, 2, 4])), ("KV", st.integers(1, 3)))]
    dim = d.pick("head_dim", st.sampled_from([16, 18, 32, 64, 96, 254]))
    step = st.tuples(st.sampled_from(STEPS), st.integers(0, 2**31))
    return d.case((dtype, *shape, dim), d.pick("steps", st.lists(step, max_size=20)))


restore_cache = new_cache

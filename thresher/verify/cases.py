"""What `thresher verify` draws for every function of the kernel contract, one builder each under its name."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from reference import Compensator, Expert, Mixture, Predictor
from thresher.verify.drawing import PAIRS, PRODUCTS, Case, Drawing

WORK = 150_000_000  # multiplications of a product, so that the reference answers in a moment
CAPS = st.none() | st.sampled_from([0.7, 3.0, 50.0])  # of scores
ACTS = st.sampled_from(["silu", "gelu_tanh"])


def _attended(d: Drawing, *, window: bool, values: bool, most: int = PAIRS) -> Case:
    """Arguments of attention. Scores stay below about 15: beyond, one rounding of float32 shows in the softmax."""
    (heads, kv_heads, dim), keys = d.heads(), d.keys()
    tokens = d.tokens(most // (heads * keys))
    steep = d.pick("steepness", st.sampled_from([0.0, 1.0, 3.0]))
    tilt = d.size("key norms")
    q = d.vectors("q", heads, tokens, dim, size=steep / tilt, spoiled=values)
    k = d.vectors("k", kv_heads, keys, dim, size=tilt)
    places = d.positions(kv_heads, tokens, keys)
    options: dict[str, Any] = {"scale": d.pick("scale", st.none() | st.just(0.5 / dim**0.5))}
    options["cap"] = d.pick("cap", CAPS)
    if window:
        options["window"] = d.pick("window", st.none() | st.integers(1, 9) | st.integers(1, keys + 5))
    v = (d.normal(kv_heads, keys, dim, size=d.size("values")),) if values else ()
    return d.case(q, k, *v, *places, **options)


def attention(d: Drawing) -> Case:
    """q, k, v and positions."""
    return _attended(d, window=True, values=True)


def attention_mass(d: Drawing) -> Case:
    """q, k and positions."""
    return _attended(d, window=True, values=False)


def tova_scores(d: Drawing) -> Case:
    """As attention_mass, without a window."""
    return _attended(d, window=False, values=False)


def snapkv_scores(d: Drawing) -> Case:
    """As tova_scores, with SnapKV's own window and kernel."""
    case = _attended(d, window=False, values=False)
    case.options["window"] = d.pick("voters", st.integers(1, 40))
    case.options["kernel"] = d.pick("kernel", st.sampled_from([1, 5, 7]))
    return case


def select_queries(d: Drawing) -> Case:
    """Queries of a chunk, and how many to choose."""
    heads, _, dim = d.heads()
    return d.case(d.directions("q", heads, d.tokens(), dim), d.pick("n_queries", st.integers(1, 70)))


def key_scores(d: Drawing) -> Case:
    """Queries, keys, and how many queries choose."""
    (heads, kv_heads, dim), keys = d.heads(), d.keys()
    q = d.directions("q", heads, d.tokens(PRODUCTS // (heads * dim)), dim)
    return d.case(q, d.directions("k", kv_heads, keys, dim, spoiled=True), d.pick("n_queries", st.integers(1, 70)))


def select_keys(d: Drawing) -> Case:
    """As key_scores, and a budget."""
    (heads, kv_heads, dim), keys = d.heads(), d.keys()
    q = d.directions("q", heads, d.tokens(PRODUCTS // (heads * dim)), dim)
    k = d.directions("k", kv_heads, keys, dim)
    return d.case(q, k, d.budget(keys), d.pick("n_queries", st.integers(1, 70)), **kept_besides(d, kv_heads, keys))


def quoka_attention(d: Drawing) -> Case:
    """A past with ragged positions and a chunk after it."""
    (heads, kv_heads, dim), past = d.heads(), d.keys()
    tokens = d.tokens(PAIRS // (heads * past))
    q, k = d.vectors("q", heads, tokens, dim), d.vectors("k", kv_heads, past + tokens, dim)
    v = d.normal(kv_heads, past + tokens, dim, size=d.size("values"))
    before = np.cumsum(d.rng.integers(1, 4, (kv_heads, past)), axis=1) - 1
    own = int(before.max()) + 1 + np.arange(tokens)
    k_positions = np.concatenate([before, np.broadcast_to(own, (kv_heads, tokens))], axis=1)
    first = int(own[0]) if d.perhaps("first position alone") else d.integers(own)
    options = {"budget": d.budget(past), "n_queries": d.pick("n_queries", st.integers(1, 40))}
    options["cap"] = d.pick("cap", CAPS)
    if d.perhaps("protect"):
        options["sinks"] = d.pick("sinks", st.integers(0, options["budget"] // 2))
        options["recent"] = d.pick("recent", st.integers(0, options["budget"] // 2))
    return d.case(q, k, v, first, d.integers(k_positions), past, **options)


def keydiff_scores(d: Drawing) -> Case:
    """Keys of any length."""
    _, kv_heads, dim = d.heads()
    k = d.directions("k", kv_heads, d.keys(), dim)
    return d.case(k, anchor=d.pick("anchor", st.sampled_from(["normalised", "raw"])))


def caote_scores(d: Drawing) -> Case:
    """Base scores, some of them nearly everything, and values, of which no two are alike: one that equals the output
    has the score 0, which says nothing."""
    if d.layout in ("one row", "mixed"):
        d.layout = "contiguous"
    (heads, kv_heads, dim), keys = d.heads(), d.keys()
    h = d.rng.random((heads, keys)) ** d.pick("steepness", st.sampled_from([1, 4, 12]))
    if d.perhaps("one holds nearly all"):
        h[:, d.rng.integers(keys)] = min(1e3 * keys, 6e4)  # the most that float16 holds
    if d.perhaps("a head of zeros"):
        h[d.rng.integers(heads)] = 0
    if d.dtype in ("float32", "float64", "bfloat16"):
        h *= 10.0 ** d.pick("log10 of h", st.sampled_from([0, -30, -39, 30]))
    v = d.normal(kv_heads, keys, dim, size=d.size("values", -15, 15))
    options = {"fast": d.perhaps("fast"), "group": d.pick("group", st.sampled_from(["mean", "max", "rss"]))}
    return d.case(d.store(h), v, **options)


def keep_top(d: Drawing) -> Case:
    """Scores with ties, infinities, both zeros and neighbouring numbers, a budget, and protected columns."""
    rows, keys = d.pick("KV", st.integers(1, 3)), d.keys()
    kind = d.pick("scores", st.sampled_from(["normal", "few values", "neighbours"]))
    if kind == "few values":
        scores = d.rng.choice(np.array([-np.inf, -1.5, -0.0, 0.0, 2.0, np.inf]), (rows, keys))
    elif kind == "neighbours":  # that differ in their last bits, so that every digit of a radix counts
        scores = np.float32(d.rng.choice([1.0, -1.0, 1e-40])) * (1 + d.rng.integers(0, 4096, (rows, keys)) * 2.0**-23)
    else:
        scores = d.rng.standard_normal((rows, keys)) * d.size("scores", -40, 30)
    return d.case(d.store(scores), d.budget(keys), **kept_besides(d, rows, keys))


def kept_besides(d: Drawing, rows: int, keys: int) -> dict[str, Any]:
    """Sinks and recent columns that fit into the budget."""
    if not d.perhaps("protect"):
        return {}
    most = min(d.chosen["budget"], keys) // 2
    some = st.just(0) | st.integers(0, most)
    sinks, recent = d.pick("sinks", some), d.pick("recent", some)
    gaps = d.rng.integers(1, 4, (rows, keys))  # so that heads have different sinks
    return {"sinks": sinks, "recent": recent, "positions": d.integers(np.cumsum(gaps, axis=1) - 1)}


def select_neurons(d: Drawing) -> Case:
    """Scores of neurons, and how many to keep."""
    neurons = d.keys()
    return d.case(d.store(d.rng.standard_normal(neurons).round(1)), d.budget(neurons))


def predictor_scores(d: Drawing) -> Case:
    """A block and a predictor."""
    width = d.width("E")
    rank, tokens = d.width("r", min(512, PRODUCTS // width)), d.tokens(PRODUCTS // width)
    neurons = d.width("F", PRODUCTS // rank)
    few = d.alone(rank)
    w1, w2 = d.normal(width, rank, size=width**-0.5, positive=few), d.normal(rank, neurons, positive=d.alone(neurons))
    return d.case(d.normal(tokens, width, positive=few), Predictor(d.normal(width), w1, w2))


def _ffn(d: Drawing, choose: bool) -> tuple[Any, ...]:
    """x, W_gate, W_up, W_down and neurons, all where there is nothing to choose."""
    width = d.width("E")
    neurons = d.width("F", PRODUCTS // width)
    tokens = d.tokens(WORK // (3 * width * neurons))
    kept = d.pick("kept", st.just(neurons) | st.integers(1, neurons)) if choose else neurons
    few = d.alone(min(kept, width))
    x = d.rows("x", tokens, width, size=d.size("x", -3, 1), positive=few)
    gate, up = (d.normal(neurons, width, size=width**-0.5, positive=few) for _ in range(2))
    down = d.normal(width, neurons, positive=d.alone(width))
    return x, gate, up, down, d.integers(np.sort(d.rng.choice(neurons, kept, replace=False)))


def gated_ffn(d: Drawing) -> Case:
    """A block and three matrices."""
    return d.case(*_ffn(d, choose=False)[:-1], act=d.pick("act", ACTS))


def sparse_ffn(d: Drawing) -> Case:
    """A block, three matrices, neurons, and perhaps a compensator."""
    x, *others = _ffn(d, choose=True)
    compensator = None
    if d.perhaps("compensator"):
        width = x.shape[1]
        hidden, few = d.width("hidden", PRODUCTS // width), d.alone(min(d.chosen["kept"], width))
        c1 = d.normal(hidden, width, size=width**-0.5, positive=few)
        compensator = Compensator(c1, d.normal(width, hidden, positive=d.alone(width)))
    return d.case(x, *others, compensator=compensator, act=d.pick("act", ACTS))


def route(d: Drawing) -> Case:
    """Logits of a router, perhaps a bias, and how experts are chosen by them."""
    groups, each = d.pick("groups", st.sampled_from([1, 2, 4])), d.pick("experts of a group", st.integers(1, 9))
    groups_chosen = d.pick("groups chosen", st.integers(1, groups))
    mixture = Mixture(
        (True,), groups * each, d.pick("K", st.integers(1, groups_chosen * each)), 1, groups=groups,
        groups_chosen=groups_chosen, score=d.pick("score", st.sampled_from(["softmax", "sigmoid"])),
        normalised=d.perhaps("normalised"), scale=d.pick("scale", st.sampled_from([1.0, 2.5])),
    )  # fmt: skip
    logits = d.normal(d.tokens(), groups * each, size=d.pick("steepness", st.sampled_from([0.3, 3.0])))
    bias = d.normal(groups * each, size=0.1) if d.perhaps("bias") else None
    return d.case(logits, bias, mixture=mixture)


def mixture_ffn(d: Drawing) -> Case:
    """A block, experts, and which of them each token runs with what share."""
    width, count = d.width("E"), d.pick("X", st.integers(1, 9))
    neurons = d.width("F", PRODUCTS // (width * count))
    tokens = d.tokens(WORK // (3 * width * neurons))
    few = d.alone(min(neurons, width))
    x = d.rows("x", tokens, width, size=d.size("x", -3, 1), positive=few)

    def expert() -> Expert:
        gate, up = (d.normal(neurons, width, size=width**-0.5, positive=few) for _ in range(2))
        return Expert(gate, up, d.normal(width, neurons, positive=few or d.alone(width)))

    chosen = d.pick("K", st.integers(1, count))
    listed = np.sort(np.argsort(d.rng.random((tokens, count)), axis=1)[:, :chosen], axis=1)
    shares = d.normal(tokens, chosen, positive=True)
    return d.case(x, [expert() for _ in range(count)], d.integers(listed), shares, act=d.pick("act", ACTS))


def layer_densities(d: Drawing) -> Case:
    """Importance of layers, some of them nothing, and a density."""
    importance = d.rng.random(d.pick("L", st.integers(1, 40))) ** d.pick("steepness", st.sampled_from([1, 8]))
    importance[d.rng.random(importance.size) < 0.2] = 0
    return d.case(importance, d.pick("density", st.sampled_from([0.05, 0.5, 0.9, 1.0])))


def rms_norm(d: Drawing) -> Case:
    """Rows of one matrix, or of every head."""
    heads, width = d.pick("heads", st.sampled_from([(), (3,)])), d.width("E")
    shape = (*heads, d.tokens(), width)
    x = d.rows("x", *shape, size=d.size("x", -8, 8))
    return d.case(x, d.normal(width), eps=d.pick("eps", st.sampled_from([1e-6, 1e-5])))


def rotate(d: Drawing) -> Case:
    """Heads, and the cosines and sines of their angles."""
    heads, tokens, half = d.pick("H", st.integers(1, 4)), d.tokens(), d.width("R/2", 300)
    angles = d.rng.random((tokens, half)) * 7
    rest = d.pick("D - R", st.just(0) | st.integers(1, 40))  # numbers of a head that do not turn
    x = d.rows("x", heads, tokens, 2 * half + rest, size=d.size("x"))
    return d.case(x, d.lay(np.cos(angles)), d.lay(np.sin(angles)))


def linear(d: Drawing) -> Case:
    """A block, a matrix and perhaps a bias."""
    width = d.width("in")
    outs = d.width("out", PRODUCTS // width)
    tokens = d.tokens(WORK // (width * outs))
    few, size = d.alone(outs), d.size("x")
    x = d.rows("x", tokens, width, size=size, positive=few)
    weight = d.normal(outs, width, size=width**-0.5, positive=few)
    return d.case(x, weight, d.normal(outs, size=size, positive=few) if d.perhaps("bias") else None)


def embed(d: Drawing) -> Case:
    """Token ids and a table."""
    rows, width = d.pick("V", st.integers(1, 9) | st.integers(10, 300)), d.width("E")
    ids = d.integers(d.rng.integers(0, rows, d.tokens()))
    return d.case(ids, d.rows("table", rows, width), scale=d.pick("scale", st.sampled_from([1.0, 24.0])))

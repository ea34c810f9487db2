"""What `thresher verify` draws: arguments of every contract function, awkward ones among them.

Shapes: T and S from 1, G of 1, 2, 3, 4 and 8, D of 16 to 256 and odd; budgets 1, S - 1, S, S + 1. Numbers: equal
keys, zero vectors, huge and tiny norms, float32, float16 and bfloat16. Memory: contiguous, every other row, a
transposed view, a strided last axis, unaligned, read-only. Positions: ragged, with gaps, and queries that see nothing.

Numbers come from a seeded generator, so that a failing case is printed as the few values that it was drawn from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
from hypothesis import strategies as st

from reference import Compensator, Predictor

DTYPES = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
LAYOUTS = ("contiguous", "every other row", "transposed", "strided", "unaligned", "read-only")
HEAD_DIMS = (16, 17, 32, 33, 48, 64, 80, 96, 127, 128, 255, 256)
ALONE = 16  # sums that are all of an answer: one may cancel, and says nothing then, so that their terms are positive
WIDTHS = (1, 2, 15, 16, 17, 40, 64, 96, 130, 256)


@dataclass(repr=False)
class Case:
    """One call: positional and keyword arguments, and what they were drawn from."""

    drawn: dict[str, Any]
    arguments: tuple[Any, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def dtype(self) -> str:
        """How the arrays are stored."""
        return self.drawn["dtype"]

    def __repr__(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.drawn.items())


class Drawing:
    """One case being drawn: remembers every choice, and makes arrays in the drawn dtype and memory layout."""

    def __init__(self, draw: st.DrawFn, dtypes: tuple[str, ...] = tuple(DTYPES)) -> None:
        self.draw, self.chosen = draw, {}  # type: ignore[var-annotated]
        self.dtype = self.pick("dtype", st.sampled_from(dtypes))
        self.layout = self.pick("layout", st.sampled_from(LAYOUTS))
        self.rng = np.random.default_rng(self.pick("seed", st.integers(0, 2**31)))

    def pick(self, name: str, strategy: st.SearchStrategy) -> Any:
        """Draw a value under a name."""
        self.chosen[name] = self.draw(strategy)
        return self.chosen[name]

    def case(self, *arguments: Any, **options: Any) -> Case:
        """The finished case."""
        return Case(self.chosen, arguments, options)

    def heads(self) -> tuple[int, int, int]:
        """H, KV and D."""
        kv_heads = self.pick("KV", st.integers(1, 3))
        group = self.pick("G", st.sampled_from([1, 2, 3, 4, 8]))
        return kv_heads * group, kv_heads, self.pick("D", st.sampled_from(HEAD_DIMS))

    def tokens(self) -> int:
        """T, mostly small, and often one, as in decoding."""
        return self.pick("T", st.just(1) | st.integers(1, 9) | st.integers(10, 70) | st.sampled_from([128, 200]))

    def keys(self) -> int:
        """S, mostly small, and around the sizes of tiles."""
        sizes = st.integers(1, 9) | st.integers(10, 150) | st.sampled_from([127, 128, 129, 256, 300, 520, 1100])
        return self.pick("S", sizes)

    def budget(self, keys: int) -> int:
        """1, S - 1, S, S + 1 or anything between."""
        return self.pick("budget", st.sampled_from([1, max(keys - 1, 1), keys, keys + 1]) | st.integers(1, keys + 1))

    def store(self, values: np.ndarray) -> np.ndarray:
        """The values in the drawn dtype and layout."""
        with np.errstate(over="ignore", under="ignore"):
            stored = values.astype(DTYPES[self.dtype])
        return laid_out(stored, self.layout)

    def normal(self, *shape: int, size: float = 1.0, positive: bool = False) -> np.ndarray:
        """Stored numbers of about `size`."""
        x = self.rng.standard_normal(shape) * size
        return self.store(np.abs(x) if positive else x)

    def directions(self, name: str, *shape: int) -> np.ndarray:
        """Vectors of which only the direction counts: norms from tiny to huge, some zero, some equal."""
        largest = 3 if self.dtype == "float16" else 25
        x = self.rng.standard_normal(shape)
        if self.pick(f"norms of {name}", st.booleans()):
            x *= 10.0 ** self.rng.integers(-largest, largest + 1, (*shape[:-1], 1))
        return self.store(self._with_odd_rows(name, x))

    def vectors(self, name: str, *shape: int, size: float = 1.0) -> np.ndarray:
        """Vectors of about `size`, some zero, some equal."""
        return self.store(self._with_odd_rows(name, self.rng.standard_normal(shape) * size))

    def _with_odd_rows(self, name: str, x: np.ndarray) -> np.ndarray:
        rows = x.shape[-2]
        if self.pick(f"zero among {name}", st.booleans()):
            x[..., self.rng.integers(rows), :] = 0
        if self.pick(f"equal among {name}", st.booleans()):
            x[..., self.rng.integers(rows), :] = x[..., self.rng.integers(rows), :]
        return x

    def positions(self, kv_heads: int, tokens: int, keys: int) -> tuple[np.ndarray, np.ndarray]:
        """q_positions (T,) and ragged k_positions (KV, S); some queries may come before every key."""
        span = keys + self.pick("gaps", st.integers(0, 40))
        k_positions = np.stack([np.sort(self.rng.choice(span, keys, replace=False)) for _ in range(kv_heads)])
        first = self.pick("first position", st.integers(0, span) | st.just(max(span - tokens, 0)))
        return np.arange(first, first + tokens), k_positions


def laid_out(x: np.ndarray, layout: str) -> np.ndarray:
    """The same values in another arrangement of memory."""
    if layout == "every other row" and x.ndim > 1:
        wide = np.zeros((*x.shape[:-2], 2 * x.shape[-2], x.shape[-1]), x.dtype)
        wide[..., ::2, :] = x
        return wide[..., ::2, :]
    if layout == "transposed" and x.ndim > 1:
        axes = (1, 0, *range(2, x.ndim))
        return np.ascontiguousarray(x.transpose(axes)).transpose(axes)
    if layout == "strided":
        wide = np.zeros((*x.shape[:-1], 3 * x.shape[-1]), x.dtype)
        wide[..., ::3] = x
        return wide[..., ::3]
    if layout == "unaligned":
        raw = np.zeros(x.nbytes + 1, np.uint8)
        view = raw[1:].view(x.dtype).reshape(x.shape)
        view[...] = x
        return view
    if layout == "read-only":
        x.flags.writeable = False
    return x


def strategy(build: Callable[[Drawing], Case], *dtypes: str) -> st.SearchStrategy[Case]:
    """A strategy from a function that fills in a Drawing."""

    @st.composite
    def cases(draw: st.DrawFn) -> Case:
        return build(Drawing(draw, dtypes or tuple(DTYPES)))

    return cases()


def _attended(d: Drawing, *, window: bool, values: bool, tokens: int | None = None) -> Case:
    """Arguments of attention. Scores stay below about 30, beyond which one rounding of float32 shows in the softmax."""
    (heads, kv_heads, dim), tokens, keys = d.heads(), tokens or d.tokens(), d.keys()
    steep = d.pick("steepness", st.sampled_from([0.0, 1.0, 6.0]))
    largest = 1 if d.dtype == "float16" else 12
    tilt = 10.0 ** d.pick("log10 of key norms", st.integers(-largest, largest))
    q = d.vectors("q", heads, tokens, dim, size=steep / tilt)
    k = d.vectors("k", kv_heads, keys, dim, size=tilt)
    q_positions, k_positions = d.positions(kv_heads, tokens, keys)
    options: dict[str, Any] = {"scale": d.pick("scale", st.none() | st.just(0.5 / dim**0.5))}
    if window:
        options["window"] = d.pick("window", st.none() | st.integers(1, keys + 5))
    v = (d.normal(kv_heads, keys, dim, size=10.0 ** d.pick("log10 of values", st.integers(-2, 2))),) if values else ()
    return d.case(q, k, *v, q_positions, k_positions, **options)


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
    case.options |= {
        "window": d.pick("voters", st.integers(1, 40)),
        "kernel": d.pick("kernel", st.sampled_from([1, 5, 7])),
    }
    return case


def select_queries(d: Drawing) -> Case:
    """Queries of a chunk, and how many to choose."""
    heads, _, dim = d.heads()
    return d.case(d.directions("q", heads, d.tokens(), dim), d.pick("n_queries", st.integers(1, 70)))


def key_scores(d: Drawing) -> Case:
    """Queries, keys, and how many queries choose."""
    (heads, kv_heads, dim), tokens, keys = d.heads(), d.tokens(), d.keys()
    q, k = d.directions("q", heads, tokens, dim), d.directions("k", kv_heads, keys, dim)
    return d.case(q, k, d.pick("n_queries", st.integers(1, 70)))


def select_keys(d: Drawing) -> Case:
    """As key_scores, and a budget."""
    case = key_scores(d)
    q, k, n = case.arguments
    return d.case(q, k, d.budget(k.shape[1]), n)


def quoka_attention(d: Drawing) -> Case:
    """A past with ragged positions and a chunk after it."""
    (heads, kv_heads, dim), tokens, past = d.heads(), d.tokens(), d.keys()
    q, k = d.vectors("q", heads, tokens, dim), d.vectors("k", kv_heads, past + tokens, dim)
    v = d.normal(kv_heads, past + tokens, dim)
    _, before = d.positions(kv_heads, tokens, past)
    own = np.arange(before.max() + 1, before.max() + 1 + tokens)
    k_positions = np.concatenate([before, np.broadcast_to(own, (kv_heads, tokens))], axis=1)
    options = {"budget": d.budget(past), "n_queries": d.pick("n_queries", st.integers(1, 40))}
    return d.case(q, k, v, own, k_positions, past, **options)


def keydiff_scores(d: Drawing) -> Case:
    """Keys of any length."""
    _, kv_heads, dim = d.heads()
    return d.case(d.directions("k", kv_heads, d.keys(), dim))


def caote_scores(d: Drawing) -> Case:
    """Base scores, some of them nearly everything, and values."""
    (heads, kv_heads, dim), keys = d.heads(), d.keys()
    h = d.rng.random((heads, keys)) ** d.pick("steepness", st.sampled_from([1, 4, 12]))
    if d.pick("one holds nearly all", st.booleans()):
        h[:, d.rng.integers(keys)] = min(1e3 * keys, 6e4)  # the most that float16 holds
    if d.pick("a head of zeros", st.booleans()):
        h[d.rng.integers(heads)] = 0
    v = d.normal(kv_heads, keys, dim, size=10.0 ** d.pick("log10 of values", st.integers(-2, 2)))
    options = {"fast": d.pick("fast", st.booleans()), "group": d.pick("group", st.sampled_from(["mean", "max", "rss"]))}
    return d.case(d.store(h), v, **options)


def keep_top(d: Drawing) -> Case:
    """Scores with ties, infinities and both zeros, a budget, and protected columns."""
    rows, keys = d.pick("KV", st.integers(1, 3)), d.keys()
    budget = d.budget(keys)
    few = np.array([-np.inf, -1.5, -0.0, 0.0, 2.0, np.inf])
    scores = d.rng.choice(few, (rows, keys)) if d.pick("ties", st.booleans()) else d.rng.standard_normal((rows, keys))
    sinks = d.pick("sinks", st.integers(0, budget))
    recent = d.pick("recent", st.integers(0, budget - sinks))
    positions = np.cumsum(d.rng.integers(1, 4, (rows, keys)), axis=1) - 1
    return d.case(d.store(scores), budget, sinks=sinks, recent=recent, positions=positions)


def select_neurons(d: Drawing) -> Case:
    """Scores of neurons, and how many to keep."""
    neurons = d.keys()
    return d.case(d.store(d.rng.standard_normal(neurons).round(1)), d.budget(neurons))


def predictor_scores(d: Drawing) -> Case:
    """A block and a predictor."""
    width, rank, neurons = (d.pick(name, st.sampled_from(WIDTHS)) for name in "ErF")
    few_hidden, few = rank <= ALONE, neurons <= ALONE
    w1, w2 = d.normal(width, rank, size=width**-0.5, positive=few_hidden), d.normal(rank, neurons, positive=few)
    return d.case(d.normal(d.tokens(), width, positive=few_hidden), Predictor(d.normal(width), w1, w2))


def _ffn(d: Drawing, choose: bool) -> tuple[np.ndarray, ...]:
    """x, W_gate, W_up, W_down and neurons, all where there is nothing to choose."""
    width, neurons = d.pick("E", st.sampled_from(WIDTHS)), d.pick("F", st.sampled_from(WIDTHS))
    tokens, kept = d.tokens(), d.pick("kept", st.integers(1, neurons)) if choose else neurons
    few, size = tokens * min(kept, width) <= ALONE, width**-0.5
    x = d.normal(tokens, width, positive=few)
    gate, up = (d.normal(neurons, width, size=size, positive=few) for _ in range(2))
    down = d.normal(width, neurons, positive=tokens * width <= ALONE)
    return x, gate, up, down, np.sort(d.rng.choice(neurons, kept, replace=False))


def gated_ffn(d: Drawing) -> Case:
    """A block and three matrices."""
    return d.case(*_ffn(d, choose=False)[:-1], act=d.pick("act", st.sampled_from(["silu", "gelu_tanh"])))


def sparse_ffn(d: Drawing) -> Case:
    """A block, three matrices, neurons, and perhaps a compensator."""
    x, *others = _ffn(d, choose=True)
    compensator = None
    if d.pick("compensator", st.booleans()):
        hidden, (tokens, width) = d.pick("hidden", st.sampled_from(WIDTHS)), x.shape
        few, alone = tokens * min(hidden, width) <= ALONE, tokens * width <= ALONE
        c1 = d.normal(hidden, width, size=width**-0.5, positive=few)
        compensator = Compensator(c1, d.normal(width, hidden, positive=alone))
    act = d.pick("act", st.sampled_from(["silu", "gelu_tanh"]))
    return d.case(x, *others, compensator=compensator, act=act)


def layer_densities(d: Drawing) -> Case:
    """Importance of layers, some of them nothing, and a density."""
    importance = d.rng.random(d.pick("L", st.integers(1, 40))) ** d.pick("steepness", st.sampled_from([1, 8]))
    importance[d.rng.random(importance.size) < 0.2] = 0
    return d.case(importance, d.pick("density", st.sampled_from([0.05, 0.5, 0.9, 1.0])))


def rms_norm(d: Drawing) -> Case:
    """Rows of one matrix, or of every head."""
    heads, width = d.pick("heads", st.sampled_from([(), (3,)])), d.pick("E", st.sampled_from(WIDTHS))
    shape = (*heads, d.tokens(), width)
    x = d.normal(*shape, size=10.0 ** d.pick("log10 of x", st.integers(-2, 3)))
    return d.case(x, d.normal(shape[-1]), eps=d.pick("eps", st.sampled_from([1e-6, 1e-5])))


def rotate(d: Drawing) -> Case:
    """Heads, and the cosines and sines of their angles."""
    heads, tokens, half = d.pick("H", st.integers(1, 4)), d.tokens(), d.pick("D/2", st.sampled_from(WIDTHS))
    angles = d.rng.random((tokens, half)) * 7
    return d.case(d.normal(heads, tokens, 2 * half), np.cos(angles), np.sin(angles))


def linear(d: Drawing) -> Case:
    """A block, a matrix and perhaps a bias."""
    width, outs = (d.pick(name, st.sampled_from(WIDTHS)) for name in ("in", "out"))
    tokens = d.tokens()
    few = tokens * outs <= ALONE
    x, weight = d.normal(tokens, width, positive=few), d.normal(outs, width, size=width**-0.5, positive=few)
    return d.case(x, weight, d.normal(outs, positive=few) if d.pick("bias", st.booleans()) else None)


def embed(d: Drawing) -> Case:
    """Token ids and a table."""
    rows, width = d.keys(), d.pick("E", st.sampled_from(WIDTHS))
    ids = d.rng.integers(0, rows, d.tokens())
    return d.case(ids, d.normal(rows, width), scale=d.pick("scale", st.sampled_from([1.0, 24.0])))

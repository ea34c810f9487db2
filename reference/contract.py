"""What every contract function demands of its arguments: checked once, here, from shapes and dtypes alone.

Each check bears the name of its function, takes what that takes, and returns the sizes of the axes by their letters.
Every backend calls it first, so that the same mistake is the same ValueError everywhere. Nothing here looks at the
numbers in an array: on a device that would be a wait. A decoding step makes a thousand of these checks, so a message
is put together only when it is needed. What only numbers can tell is checked where they enter: order of
positions by `attention` and the cache's `append`, token ids by `check_tokens`, NaN by whoever ranks scores.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from reference.checks import is_float, match, one_of, require, whole
from reference.experts import Experts, StoredExperts

Sizes = Mapping[str, int]

ACTIVATIONS = ("silu", "gelu_tanh")
ANCHORS = ("normalised", "raw")
JOINS = ("mean", "max", "rss")


def attention_mass(
    q: Any, k: Any, q_positions: Any, k_positions: Any, scale: float | None, window: int | None, cap: float | None
) -> Sizes:
    """H, T, D, KV and S. `q_positions` are (T,), or the first of them where they follow one another."""
    arguments = {"q": (q, "H T D"), "k": (k, "KV S D")}
    if isinstance(q_positions, int):
        whole("q_positions", q_positions, least=0)
    else:
        arguments["q_positions"] = (q_positions, "T")
    sizes = match(**arguments, k_positions=(k_positions, "KV S"))
    finite("scale", scale)
    positive("cap", cap)
    if window is not None:
        whole("window", window)
    return sizes


def attention(
    q: Any,
    k: Any,
    v: Any,
    q_positions: Any,
    k_positions: Any,
    scale: float | None,
    window: int | None,
    cap: float | None,
) -> Sizes:
    """As `attention_mass`, and v like k."""
    if v.shape != k.shape or not is_float(v.dtype):
        match(k=(k, "KV S D"), v=(v, "KV S D"))
    return attention_mass(q, k, q_positions, k_positions, scale, window, cap)


def select_queries(q: Any, n_queries: int) -> Sizes:
    """H, T of at least 1, D."""
    sizes = match(q=(q, "H T D"))
    _some_queries(q)
    whole("n_queries", n_queries)
    return sizes


def key_scores(q: Any, k: Any, n_queries: int) -> Sizes:
    """H, T of at least 1, D, KV and S."""
    sizes = match(q=(q, "H T D"), k=(k, "KV S D"))
    select_queries(q, n_queries)
    return sizes


def quoka_attention(
    q: Any,
    k: Any,
    v: Any,
    q_positions: Any,
    k_positions: Any,
    past: int,
    budget: int,
    scale: float | None,
    cap: float | None,
) -> Sizes:
    """As `attention`; past is 0 to S."""
    sizes = attention(q, k, v, q_positions, k_positions, scale, None, cap)
    whole("budget", budget)
    require(whole("past", past, 0) <= sizes["S"], f"past: got {past}, wanted at most the {sizes['S']} keys")
    return sizes


def keydiff_scores(k: Any, anchor: str) -> Sizes:
    """KV, S and D."""
    one_of("anchor", anchor, ANCHORS)
    return match(k=(k, "KV S D"))


def tova_scores(q: Any, k: Any, q_positions: Any, k_positions: Any, scale: float | None, cap: float | None) -> Sizes:
    """As `attention_mass`, with T of at least 1."""
    sizes = attention_mass(q, k, q_positions, k_positions, scale, None, cap)
    _some_queries(q)
    return sizes


def snapkv_scores(
    q: Any,
    k: Any,
    q_positions: Any,
    k_positions: Any,
    window: int,
    kernel: int,
    scale: float | None,
    cap: float | None,
) -> Sizes:
    """As `tova_scores`; kernel is odd."""
    whole("window", window)
    odd("kernel", kernel)
    return tova_scores(q, k, q_positions, k_positions, scale, cap)


def caote_scores(h: Any, v: Any, group: str) -> Sizes:
    """H, S, KV and D."""
    one_of("group", group, JOINS)
    return match(h=(h, "H S"), v=(v, "KV S D"))


def keep_top(scores: Any, budget: int, sinks: int, recent: int, positions: Any) -> Sizes:
    """KV, S, and B = min(budget, S), the columns kept. What is protected must fit the budget where anything goes."""
    sizes = match(scores=(scores, "KV S"), **({} if positions is None else {"positions": (positions, "KV S")}))
    _whole_protected(sinks, recent, positions)
    _fits(budget, sinks, recent, sizes["S"])
    return {**sizes, "B": min(budget, sizes["S"])}


def predictor_scores(x: Any, predictor: Any) -> Sizes:
    """T of at least 1, E, r and F."""
    sizes = match(x=(x, "T E"), q_pred=(predictor.q_pred, "E"), w1=(predictor.w1, "E r"), w2=(predictor.w2, "r F"))
    require(sizes["T"] > 0, f"x: got shape {tuple(x.shape)}, wanted at least one token")
    return sizes


def select_neurons(scores: Any, keep: int) -> Sizes:
    """F."""
    whole("keep", keep)
    return match(scores=(scores, "F"))


def gated_ffn(x: Any, w_gate: Any, w_up: Any, w_down: Any, act: str) -> Sizes:
    """T, E and F."""
    one_of("act", act, ACTIVATIONS)
    return match(x=(x, "T E"), w_gate=(w_gate, "F E"), w_up=(w_up, "F E"), w_down=(w_down, "E F"))


def route(logits: Any, bias: Any, mixture: Any) -> Sizes:
    """T and X, the experts of the mixture."""
    sizes = match(logits=(logits, "T X"), **({} if bias is None else {"bias": (bias, "X")}))
    require(sizes["X"] == mixture.experts, f"logits: got {sizes['X']} experts, wanted the mixture's {mixture.experts}")
    return sizes


def mixture_ffn(x: Any, experts: Experts, chosen: Any, shares: Any, act: str) -> Sizes:
    """T, E, F and K; every expert has the shapes of `gated_ffn`, all alike."""
    require(len(experts) > 0, "experts: got none, wanted at least one")
    each = [experts.alike] if isinstance(experts, StoredExperts) else experts
    for expert in {(e.w_gate.shape, e.w_up.shape, e.w_down.shape): e for e in each}.values():
        sizes = gated_ffn(x, each[0].w_gate, expert.w_up, expert.w_down, act)
        match(w_gate=(expert.w_gate, "F E"), w_up=(expert.w_up, "F E"))
    require(
        len(chosen.shape) == 2 and chosen.dtype.kind in "iu",
        f"chosen: got shape {tuple(chosen.shape)} of {chosen.dtype}, wanted (T, K) of an integer type",
    )
    shared = match(x=(x, "T E"), shares=(shares, "T K"))
    wanted = shared["T"], shared["K"]
    require(tuple(chosen.shape) == wanted, f"chosen: got shape {tuple(chosen.shape)}, wanted {wanted} as shares")
    return {**sizes, "K": shared["K"]}


def sparse_ffn(x: Any, w_gate: Any, w_up: Any, w_down: Any, neurons: Any, compensator: Any, act: str) -> Sizes:
    """T, E, F and K, and `hidden` where there is a compensator."""
    sizes = gated_ffn(x, w_gate, w_up, w_down, act)
    require(
        len(neurons.shape) == 1 and neurons.dtype.kind in "iu",
        f"neurons: got shape {tuple(neurons.shape)} of {neurons.dtype}, wanted (K,) of an integer type",
    )
    corrects = (
        {}
        if compensator is None
        else match(x=(x, "T E"), c1=(compensator.c1, "hidden E"), c2=(compensator.c2, "E hidden"))
    )
    return {**sizes, **corrects, "K": neurons.shape[0]}


def griffin_statistic(x: Any, w_gate: Any, w_up: Any, act: str) -> Sizes:
    """T, E and F."""
    one_of("act", act, ACTIVATIONS)
    return match(x=(x, "T E"), w_gate=(w_gate, "F E"), w_up=(w_up, "F E"))


def neuron_magnitudes(w_gate: Any, w_up: Any, w_down: Any) -> Sizes:
    """E and F."""
    return match(w_gate=(w_gate, "F E"), w_up=(w_up, "F E"), w_down=(w_down, "E F"))


def rms_norm(x: Any, weight: Any) -> Sizes:
    """E, the last axis of x (…, E)."""
    sizes = match(weight=(weight, "E"))
    if not is_float(x.dtype):
        raise ValueError(f"x: got dtype {x.dtype}, wanted a floating-point type")
    if len(x.shape) == 0 or x.shape[-1] != sizes["E"]:
        raise ValueError(f"x: got shape {tuple(x.shape)}, wanted a last axis of {sizes['E']}, the weight's length")
    return sizes


def rotate(x: Any, cosine: Any, sine: Any) -> Sizes:
    """H, T, D and R/2, of which R is at most D."""
    sizes = match(x=(x, "H T D"), cosine=(cosine, "T R/2"), sine=(sine, "T R/2"))
    if 2 * sizes["R/2"] > sizes["D"]:
        raise ValueError(f"cosine: got {sizes['R/2']} angles, wanted at most half of head_dim, which is {sizes['D']}")
    return sizes


def linear(x: Any, weight: Any, bias: Any) -> Sizes:
    """T, in and out."""
    return match(x=(x, "T in"), weight=(weight, "out in"), **({} if bias is None else {"bias": (bias, "out")}))


def embed(token_ids: Any, table: Any) -> Sizes:
    """T, V and E."""
    shape, dtype = tuple(token_ids.shape), token_ids.dtype
    require(len(shape) == 1, f"token_ids: got shape {shape}, wanted (T,)")
    require(dtype.kind in "iu", f"token_ids: got dtype {dtype}, wanted an integer type")
    return {"T": shape[0], **match(table=(table, "V E"))}


def add(x: Any, y: Any, scale: float) -> Sizes:
    """T and E."""
    finite("scale", scale)
    return match(x=(x, "T E"), y=(y, "T E"))


def soft_cap(x: Any, scale: float, cap: float | None) -> Sizes:
    """T and V."""
    finite("scale", scale)
    positive("cap", cap)
    return match(x=(x, "T V"))


def join_dims(x: Any, y: Any, width: int) -> Sizes:
    """H, T, D and the rotated R; width is at least D + R."""
    sizes = match(x=(x, "H T D"))
    match(x=(x, "H T D"), y=(y, "H T R") if len(y) == sizes["H"] else (y, "one T R"))
    require(len(y) in (1, sizes["H"]), f"y: got {len(y)} heads, wanted {sizes['H']}, or 1 for all of them")
    least = x.shape[2] + y.shape[2]
    require(whole("width", width) >= least, f"width: got {width}, wanted at least {least}")
    return sizes


def append(k: Any, v: Any, first: int, newest: int) -> Sizes:
    """KV, T and D of a chunk whose tokens stand at `first`, first + 1, …, after the newest position held."""
    sizes = match(k=(k, "KV T D"), v=(v, "KV T D"))
    if whole("first", first, least=0) <= newest:
        raise ValueError(f"first: got position {first}, wanted one after the newest held, {newest}")
    return sizes


def columns(listed: Any, kv_heads: int) -> Sizes:
    """KV and R of columns of a cache with so many heads."""
    shape = listed.shape
    if len(shape) != 2 or shape[0] != kv_heads or listed.dtype.kind not in "iu":
        raise ValueError(
            f"columns: got shape {tuple(shape)} of {listed.dtype}, wanted ({kv_heads}, R) of an integer type"
        )
    return {"KV": shape[0], "R": shape[1]}


def select_keys_each(
    q: Sequence[Any],
    k: Any,
    pasts: Sequence[int],
    budgets: Sequence[int],
    n_queries: int,
    sinks: int,
    recent: int,
    positions: Any,
) -> Sizes:
    """KV, S and D; for each chunk's queries (H, T, D) a past of 0 to S columns, whose positions are known where any
    are, and a budget as of `keep_top`."""
    require(
        len(q) == len(pasts) == len(budgets),
        f"pasts and budgets: got {len(pasts)} and {len(budgets)}, wanted one of each for {len(q)} chunks",
    )
    for queries in {(queries.shape, queries.dtype): queries for queries in q}.values():
        key_scores(queries, k, n_queries)
    sizes = match(k=(k, "KV S D"), **({} if positions is None else {"positions": (positions, "KV P")}))
    _whole_protected(sinks, recent, positions)
    for past, budget in zip(pasts, budgets, strict=True):
        if whole("pasts", past, 0) > sizes["S"]:
            raise ValueError(f"pasts: got {past}, wanted at most the {sizes['S']} keys")
        if past > sizes.get("P", past):
            raise ValueError(f"positions: got {sizes['P']}, wanted those of {past} keys")
        _fits(budget, sinks, recent, past)
    return sizes


def finite(name: str, value: float | None) -> None:
    """ValueError unless it is finite, where it is given."""
    if value is not None and not math.isfinite(value):
        raise ValueError(f"{name}: got {value}, wanted a finite number")


def positive(name: str, value: float | None) -> None:
    """ValueError unless it is finite and above zero, where it is given."""
    if value is not None and not 0 < value < math.inf:
        raise ValueError(f"{name}: got {value}, wanted a positive number")


def odd(name: str, value: int) -> int:
    """`value`, or a ValueError unless it is odd, so that an average over it is centred."""
    require(whole(name, value) % 2 == 1, f"{name}: got {value}, wanted an odd number, so that the average is centred")
    return value


def _whole_protected(sinks: int, recent: int, positions: Any) -> None:
    whole("recent", recent, least=0)
    if whole("sinks", sinks, least=0) and positions is None:
        raise ValueError(f"positions: got none, wanted those by which {sinks} sinks are known")


def _fits(budget: int, sinks: int, recent: int, keys: int) -> None:
    """What is protected of so many keys must fit the budget where anything goes."""
    if sinks + recent > whole("budget", budget) and keys > budget:
        raise ValueError(f"sinks + recent: got {sinks} + {recent}, wanted at most the budget, {budget}")


def _some_queries(q: Any) -> None:
    if q.shape[1] == 0:
        raise ValueError(f"q: got shape {tuple(q.shape)}, wanted at least one query")

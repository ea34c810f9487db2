"""Compares one call of a module with what the call means.

    rows        ‖a - b‖ ≤ tolerance · ‖b‖ over the whole answer and for every row, of which one of fewer than 64 numbers
                may take four times that; b is `reference` in float64 on the same stored numbers
    cosines     as rows, where ‖b‖ counts as at least 1: a cosine near 0 is as exact as one of 1, not exacter
    elements    |a - b| ≤ tolerance · |b| + TINY for every element: sums of positive terms, of which eviction is decided
                by the smallest
    exact       the same numbers
    selections  exactly `keep_top` of the module's own scores, and other than the reference's choice only in keys whose
                reference score lies within the tolerance of the cut

The tolerance is 1e-5, and 1e-2 where anything is stored in 16 bits. What depends on a selection is compared given the
module's own. Where the reference's answer is NaN, which is where it was computed from NaN, anything goes; nowhere else.
Besides, every call is made twice, and both answers must be equal to the bit; and no argument may be written to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

import reference
from thresher.verify.arguments import by_name, convert, exact, leaves
from thresher.verify.drawing import TOLERANCE, Case
from thresher.verify.layouts import layout_of, place
from thresher.verify.life import Life, raised, same_bits

TINY = 1e-35  # weights below about 1e-38 are flushed to zero, by any exponential in float32
SHORT = 64  # a row of fewer numbers may be four times as far off
ELEMENTS = {
    *("attention_mass", "tova_scores", "snapkv_scores", "caote_scores", "group_mean", "layer_densities"),
    *("griffin_statistic", "neuron_magnitudes"),
}
SEVERAL = {
    *("attention_each", "attention_and_mass_each", "select_keys_each", "linear_each", "rotation_tables", "route"),
    "fastforward_blocks",
}
IN_PAIRS = {"attention_and_mass_each"}  # a list of pairs of arrays
COSINES = {"key_scores", "keydiff_scores"}
EXACT = {
    *(
        "keep_top",
        "select_neurons",
        "concatenate",
        "split_heads",
        "merge_heads",
        "join_dims",
        "last_queries",
    ),
    *("to_backend", "to_numpy"),
}
KEPT = {
    "keep_top",
    "select_neurons",
    "caote_scores",
}  # by the numbers as the module keeps them, float64 as float32


class Checker:
    """Calls a module's functions and the reference's; raises AssertionError where they do not agree.

    `worst` is the largest error of the last check, as a share of what is allowed.
    """

    def __init__(self, module: Any) -> None:
        self.module = module
        self.worst = 0.0
        self.tolerance = 0.0

    def check(self, name: str, case: Case) -> None:
        """Compare one function on one case."""
        every = leaves("", [case.arguments, case.options])
        self.tolerance = max((TOLERANCE.get(x.dtype.name, 1e-5) for _, x in every), default=1e-5)
        self.worst = 0.0
        special: Callable[[Case], None] | None = getattr(self, f"_{name}", None)
        if special is not None:
            special(case)
            return
        got = self.run(name, *case.arguments, **case.options)
        if name in KEPT:
            case = replace(case, arguments=convert(case.arguments, self.kept))
        wanted = meaning(name, case)
        self.compare(name, got, wanted)

    def compare(self, name: str, got: Any, wanted: Any) -> None:
        """Hold an answer to what it means, by the function's rule."""
        if isinstance(wanted, (list, tuple)):
            assert len(got) == len(wanted), f"returned {len(got)} arrays, wanted {len(wanted)}"
            for one, meant in zip(got, wanted, strict=True):
                self.compare(name, one, meant)
            return
        shaped(got, wanted)
        if name in EXACT:
            self.equal(got, wanted)
        elif name in ELEMENTS:
            self.elements(got, wanted)
        else:
            self.rows(got, wanted, least=1.0 if name in COSINES else 0.0)

    # Calling

    def kept(self, x: np.ndarray) -> np.ndarray:
        """An array as the module keeps it."""
        there = getattr(self.module, "to_backend", lambda x: x)
        return np.asarray(getattr(self.module, "to_numpy", lambda x: x)(there(x)))

    def run(self, name: str, *arguments: Any, **options: Any) -> Any:
        """The module's answer on the host, once it has given it twice and left its arguments alone."""
        there = getattr(self.module, "to_backend", lambda x: x)
        back = getattr(self.module, "to_numpy", lambda x: x)
        memories: list[tuple[np.ndarray, bytes]] = []

        def copied(x: np.ndarray) -> Any:
            array, memory = place(x, layout_of(x))
            memories.append((memory, memory.tobytes()))
            return there(array)

        given, named = convert(arguments, copied), convert(options, copied)
        names = [path for path, _ in leaves("", by_name(name, arguments, options))]
        first, second = (self._call(name, back, given, named) for _ in range(2))
        for path, (memory, before) in zip(names, memories, strict=True):
            assert memory.tobytes() == before, f"wrote into its argument {path}"
        for one, other in zip(_listed(first), _listed(second), strict=True):
            try:
                same_bits("two calls on the same case differ", one, other)
            except AssertionError as error:
                raise AssertionError(str(error).replace("wanted", "then")) from None
        return first

    def _call(self, name: str, back: Callable[[Any], Any], given: Any, named: Any) -> Any:
        try:
            answer = getattr(self.module, name)(*given, **named)
        except Exception as error:
            raise AssertionError(raised(error)) from error
        several = isinstance(answer, (list, tuple)) and name in SEVERAL
        if name in IN_PAIRS and several:
            answer = [one for pair in answer for one in pair]
        for one in answer if several else [answer]:
            wanted = "an array" if not several else "a list of arrays"
            assert all(hasattr(one, name) for name in ("shape", "dtype")), f"returned {_kind(one)}, wanted {wanted}"
        return [np.asarray(back(one)) for one in answer] if several else np.asarray(back(answer))

    # Comparing

    def rows(self, got: np.ndarray, wanted: np.ndarray, *, least: float = 0.0) -> None:
        """Within the tolerance over the whole answer, and for every row of it."""
        floating(got)
        got, wanted = np.atleast_2d(got.astype(np.float64)), np.atleast_2d(wanted)
        spoiled = np.isnan(wanted).any(axis=-1, keepdims=True) if not least else np.isnan(wanted)
        got, wanted = np.where(spoiled, 0, got), np.where(spoiled, 0, wanted)
        _finite(got)
        error, size = float(np.linalg.norm(got - wanted)), float(np.linalg.norm(wanted))
        self._within(got, wanted, error, max(size, least), 1, "")
        apart, sizes = (np.linalg.norm(x, axis=-1) for x in (got - wanted, wanted))
        slack = 4 if wanted.shape[-1] < SHORT else 1
        for row in np.argwhere(apart > self.tolerance * slack * np.maximum(sizes, least) + TINY)[:1]:
            at = tuple(int(i) for i in row)
            self._within(got[at], wanted[at], apart[at], max(sizes[at], least), slack, f"row {_index(at)}: ")

    def _within(self, got: np.ndarray, wanted: np.ndarray, error: float, size: float, slack: int, where: str) -> None:
        allowed = slack * self.tolerance * size + TINY
        self.worst = max(self.worst, float(error / allowed) if allowed else 0.0)
        relative = f"relative error {error / size:.2e}" if size else "wanted nothing but zeros"
        assert error <= allowed, f"{where}{relative}, worst at {_worst(got, wanted)}"

    def elements(self, got: np.ndarray, wanted: np.ndarray) -> None:
        """Within the tolerance element by element."""
        floating(got)
        _finite(got)
        got = got.astype(np.float64)
        share = np.abs(got - wanted) / (self.tolerance * np.abs(wanted) + TINY)
        self.worst = max(self.worst, float(share.max(initial=0)))
        if share.max(initial=0) > 1:
            at = np.unravel_index(share.argmax(), share.shape)
            told = f"relative error {abs(got[at] - wanted[at]) / max(abs(wanted[at]), TINY):.2e} of one element, "
            raise AssertionError(f"{told}{_index(at)}: got {got[at]:.6g}, wanted {wanted[at]:.6g}")

    def equal(self, got: np.ndarray, wanted: np.ndarray) -> None:
        """The same numbers; indices are int64."""
        if wanted.dtype.kind == "i":
            assert got.dtype == np.int64, f"got dtype {got.dtype}, wanted int64"
        unequal = ~((got == wanted) | ((got != got) & (wanted != wanted)))
        if unequal.any():
            at = np.unravel_index(unequal.argmax(), unequal.shape)
            raise AssertionError(f"not equal at {_index(at)}: got {got[at]}, wanted {wanted[at]}")

    def chosen(self, got: np.ndarray, own: np.ndarray, wanted: np.ndarray, budget: int, kept: dict[str, Any]) -> None:
        """Selected columns (KV, B), by own scores exactly and by the reference's (KV, S) within the tolerance."""
        meant = reference.keep_top(own, budget, **kept)
        shaped(got, meant)
        try:
            self.equal(got, meant)
        except AssertionError as error:
            raise AssertionError(f"not keep_top of the module's own scores: {error}") from None
        slack = self.tolerance * np.abs(wanted).max(initial=0)
        held = reference.keep_top(np.zeros_like(own), budget, **kept) if kept else got
        for row, scores, whatever in zip(got, wanted, held, strict=True):
            left = np.delete(scores, row)
            by_score = row if not kept else np.setdiff1d(row, whatever)
            gap = left.max(initial=-np.inf) - scores[by_score].min(initial=np.inf)
            assert gap <= 2 * slack, f"left out a key that scores {gap:.2e} more than one that was kept"

    # Functions that choose, and what is computed from a choice

    def _select_queries(self, case: Case) -> None:
        q, n = case.arguments
        got, tokens = self.run("select_queries", q, n), q.shape[1]
        shaped(got, np.zeros((len(q), min(n, tokens)), np.int64))
        if tokens <= n:
            self.equal(got, np.broadcast_to(np.arange(tokens), got.shape))
            return
        q = exact(q)
        cosines = (reference.unit(q) * reference.unit(q.mean(axis=1, keepdims=True))).sum(axis=-1)  # (H, T)
        for row, cosine, queries in zip(got, cosines, q, strict=True):
            assert len(set(row.tolist())) == n, f"got {row}, wanted {n} different queries"
            order = np.append(cosine[row], np.delete(cosine, row).min())
            fall = (order[:-1] - order[1:]).max()
            assert fall <= 2 * self.tolerance, f"got {row}: one is {fall:.2e} more similar than a later one"
            for j, later in enumerate(row):  # of equal queries the lower index comes first
                equal = np.flatnonzero((queries[:later] == queries[later]).all(axis=1))
                assert set(equal.tolist()) <= set(row[:j].tolist()), f"got {later} before its equal, {equal}"

    def _key_scores(self, case: Case) -> None:
        got, wanted = self.run("key_scores", *case.arguments), self._scores_of_keys(*case.arguments)
        shaped(got, wanted)
        self.rows(got, wanted, least=1.0)

    def _scores_of_keys(self, q: np.ndarray, k: np.ndarray, n: int) -> np.ndarray:
        """Reference scores, from the queries that the module itself chooses."""
        if hasattr(self.module, "select_queries"):
            chosen = self.run("select_queries", q, n)
        else:
            chosen = reference.select_queries(exact(q), n)
        return reference.key_scores(np.take_along_axis(exact(q), chosen[:, :, None], axis=1), exact(k), n)

    def _select_keys(self, case: Case) -> None:
        q, k, budget, n = case.arguments
        own, got = self.run("key_scores", q, k, n), self.run("select_keys", *case.arguments, **case.options)
        self.chosen(got, own, self._scores_of_keys(q, k, n), budget, case.options)

    def _quoka_attention(self, case: Case) -> None:
        q, k, v, q_positions, k_positions, past = case.arguments
        budget, n = case.options["budget"], case.options["n_queries"]
        columns = np.broadcast_to(np.arange(k.shape[1]), k.shape[:2])
        if past > budget:
            kept: dict[str, Any] = {n: case.options[n] for n in ("sinks", "recent") if n in case.options}
            kept |= {"positions": np.array(k_positions[:, :past])} if kept else {}
            chosen = self.run("select_keys", q, np.array(k[:, :past]), budget, n, **kept)
            columns = np.concatenate([chosen, columns[:, past:]], axis=1)
        k, v = (np.take_along_axis(exact(x), columns[:, :, None], axis=1) for x in (k, v))
        q_positions = convert(q_positions, exact)
        positions = q_positions, np.take_along_axis(exact(k_positions), columns, axis=1)
        wanted = reference.attention(exact(q), k, v, *positions, cap=case.options["cap"])
        got = self.run("quoka_attention", *case.arguments, **case.options)
        shaped(got, wanted)
        self.rows(got, wanted)

    def _attention_and_mass_each(self, case: Case) -> None:
        """The outputs row by row, and what keys receive of them element by element."""
        name = "attention_and_mass_each"
        got, wanted = self.run(name, *case.arguments, **case.options), meaning(name, case)
        assert len(got) == 2 * len(wanted), f"returned {len(got)} arrays, wanted {2 * len(wanted)}"
        for rows, mass, (meant, received) in zip(got[::2], got[1::2], wanted, strict=True):
            shaped(rows, meant)
            shaped(mass, received)
            self.rows(rows, meant)
            self.elements(mass, received)

    def _select_keys_each(self, case: Case) -> None:
        """Chunk by chunk what `select_keys` gives, which is held to its meaning by itself, and the chunk's own."""
        q, k, pasts, budgets, n = case.arguments
        got, options = self.run("select_keys_each", *case.arguments, **case.options), dict(case.options)
        assert len(got) == len(q), f"returned {len(got)} arrays, wanted {len(q)}"
        for queries, past, budget, columns in zip(q, pasts, budgets, got, strict=True):
            if "positions" in options:
                options["positions"] = np.array(case.options["positions"][:, :past])
            kept = self.run("select_keys", queries, np.array(k[:, :past]), budget, n, **options)
            own = np.broadcast_to(np.arange(past, past + queries.shape[1]), (len(k), queries.shape[1]))
            wanted = np.concatenate([kept, own], axis=1)
            shaped(columns, wanted)
            self.equal(columns, wanted)

    def _fastforward_blocks(self, case: Case) -> None:
        """Block by block the neurons of the best scores, and what the network gives with them."""
        x, block, predictor, keep, gate, up, down = case.arguments
        got, chosen = self.run("fastforward_blocks", *case.arguments, **case.options)
        parts = [x[start : start + block] for start in range(0, len(x), block)]
        assert len(chosen) == len(parts), f"returned the neurons of {len(chosen)} blocks, wanted {len(parts)}"
        shaped(got, np.zeros((len(x), x.shape[1])))
        for n, (part, neurons) in enumerate(zip(parts, chosen, strict=True)):
            own = self.run("predictor_scores", part, predictor)
            meant = reference.predictor_scores(exact(part), convert(predictor, exact))
            self.chosen(neurons[None], own[None], meant[None], keep, {})
            options = convert(case.options, exact)
            wanted = reference.sparse_ffn(exact(part), exact(gate), exact(up), exact(down), neurons, **options)
            self.rows(got[n * block : n * block + len(part)], wanted)

    def _route(self, case: Case) -> None:
        """The reference's experts wherever its choice of groups and of experts is clear, and their shares."""
        chosen, shares = self.run("route", *case.arguments, **case.options)
        wanted, meant = meaning("route", case)
        shaped(chosen, wanted)
        shaped(shares, meant)
        (logits, bias), mixture = convert(case.arguments, exact), case.options["mixture"]
        scores = np.exp(logits - logits.max(axis=1, keepdims=True))
        scores = scores / scores.sum(axis=1, keepdims=True) if mixture.score == "softmax" else 1 / (1 + np.exp(-logits))
        grouped = (scores + (0 if bias is None else bias)).reshape(len(logits), mixture.groups, -1)
        weights = np.sort(grouped, axis=2)[:, :, -2:].sum(axis=2)
        left_out = weights < -np.sort(-weights, axis=1)[:, mixture.groups_chosen - 1 :][:, :1]
        ranked = np.where(left_out[:, :, None], -np.inf, grouped).reshape(logits.shape)
        clear = np.minimum(_gap(weights, mixture.groups_chosen), _gap(ranked, mixture.chosen)) > 4 * self.tolerance
        self.equal(chosen[clear], wanted[clear])
        self.rows(shares[clear], meant[clear])
        rising = (np.diff(chosen, axis=1) > 0).all() and (chosen >= 0).all() and (chosen < mixture.experts).all()
        assert rising, "chose experts that do not rise, or that are not there"

    def _rotation_tables(self, case: Case) -> None:
        rope, head_dim, spans = case.arguments
        tables = self.run("rotation_tables", rope, head_dim, spans, np.dtype(np.float32))
        meant = reference.rotation_tables(rope, head_dim, spans, np.dtype(np.float64))
        for got, wanted in zip(tables, meant, strict=True):
            shaped(got, wanted)
            self.rows(got, wanted)

    def _draw(self, case: Case) -> None:
        """From the same numbers and the same generator the same token."""
        logits, sampling, seed = case.arguments
        there = getattr(self.module, "to_backend", lambda x: x)
        for _ in range(2):
            got = self.module.draw(there(logits.copy()), sampling, np.random.default_rng(seed))
            wanted = reference.draw(logits, sampling, np.random.default_rng(seed))
            assert got == wanted, f"drew token {got}, wanted {wanted}"

    def _prepare_weights(self, case: Case) -> None:
        self._prepared("prepare_weights", case.arguments[0])

    def _prepare_fastforward(self, case: Case) -> None:
        self._prepared("prepare_fastforward", case.arguments[0])

    def _prepared(self, name: str, weights: Any) -> None:
        """The same numbers under the same names, whatever the layout; float64 may become float32."""
        back = getattr(self.module, "to_numpy", np.asarray)
        got = list(leaves("", convert(getattr(self.module, name)(weights), back)))
        for (path, one), (_, wanted) in zip(got, leaves("", weights), strict=True):
            same_bits(path, one, wanted.astype(one.dtype) if wanted.dtype == np.float64 else wanted)

    def _restore_cache(self, case: Case) -> None:
        self._new_cache(case)

    def _new_cache(self, case: Case) -> None:
        """A cache's whole life: how it begins, and the steps of it."""
        start, steps = case.arguments
        try:
            life = Life(self.module, *start)
        except Exception as error:
            raise AssertionError(raised(error)) from error
        life.live(steps)


def meaning(name: str, case: Case) -> Any:
    """What a call means: the reference's answer, in float64 unless it is exact anyway."""
    to = (lambda x: x) if name in EXACT else exact
    return getattr(reference, name)(*convert(case.arguments, to), **convert(case.options, to))


def shaped(got: np.ndarray, wanted: np.ndarray) -> None:
    """AssertionError unless an answer has the right shape, and indices are indices."""
    assert got.shape == wanted.shape, f"got shape {got.shape}, wanted {wanted.shape}"
    if wanted.dtype.kind == "i":
        assert got.dtype == np.int64, f"got dtype {got.dtype}, wanted int64"


def floating(got: np.ndarray) -> None:
    """AssertionError unless an answer holds numbers of 32 bits or more."""
    assert got.dtype in (np.float32, np.float64), f"got dtype {got.dtype}, wanted float32"


def _gap(x: np.ndarray, count: int) -> np.ndarray:
    """How far the `count` highest of each row stand above the rest: x (T, X) -> (T,)."""
    falling = np.concatenate([-np.sort(-x, axis=1), np.full((len(x), 1), -np.inf)], axis=1)
    return falling[:, count - 1] - falling[:, count]


def _finite(got: np.ndarray) -> None:
    if not np.isfinite(got).all():
        at = np.unravel_index((~np.isfinite(got)).argmax(), got.shape)
        raise AssertionError(f"got NaN or infinity at {_index(at)}")


def _listed(answer: Any) -> list[np.ndarray]:
    return answer if isinstance(answer, list) else [answer]


def _kind(x: Any) -> str:
    return "None" if x is None else f"a {type(x).__name__}"


def _index(at: Any) -> str:
    return str(tuple(int(i) for i in at))


def _worst(got: np.ndarray, wanted: np.ndarray) -> str:
    at = np.unravel_index(np.abs(got - wanted).argmax(), got.shape)
    return f"{_index(at)}: got {got[at]:.6g}, wanted {wanted[at]:.6g}"

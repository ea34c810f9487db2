"""Whether a backend means the same as `reference`: one checker for any module and any contract function.

    continuous outputs    ‖a - b‖ ≤ tolerance · ‖b‖, where b is `reference` in float64 on the same stored numbers;
                          tolerance 1e-5 for float32, 1e-2 for float16 and bfloat16
    selections            exactly `keep_top` of the module's own scores, and other than the reference's only in keys
                          whose reference score lies within the tolerance of the cut

What depends on a selection (attention over chosen keys, scores from chosen queries) is compared given the module's own.
Cases are drawn by `thresher.cases`; a failure is printed with the case, shrunk to a small one.

    from thresher.verify import verify
    results = verify(my_kernels)          # any module that offers some of the contract's functions
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

import reference
from reference.checks import require

if TYPE_CHECKING:
    from thresher.cases import Case

TOLERANCE = {"float32": 1e-5, "float16": 1e-2, "bfloat16": 1e-2}
EXAMPLES = 50  # per function and round


@dataclass(frozen=True)
class Result:
    """What became of one function: how many cases, the worst error as a share of its tolerance, and the failure."""

    name: str
    examples: int
    worst: float
    failure: str = ""


class Checker:
    """Calls a module's function and the reference's on one case; raises AssertionError where they do not agree."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.worst = 0.0

    def check(self, name: str, case: Case) -> None:
        """Compare one function on one case."""
        special = getattr(self, f"_{name}", None)
        if special is not None:
            special(case)
        else:
            self.close(case, self.run(name, case), self.mean(name, case))

    def run(self, name: str, case: Case, *arguments: Any) -> np.ndarray:
        """The module's answer, on the host; with `arguments`, for those instead of the case's."""
        there = getattr(self.module, "to_backend", lambda x: x)
        back = getattr(self.module, "to_numpy", lambda x: x)
        given = [_convert(a, there) for a in arguments or case.arguments]
        options = {} if arguments else {n: _convert(a, there) for n, a in case.options.items()}
        return np.asarray(back(getattr(self.module, name)(*given, **options)))

    def mean(self, name: str, case: Case) -> np.ndarray:
        """What it means: the reference's answer in float64."""
        options = {n: _convert(a, _exact) for n, a in case.options.items()}
        return getattr(reference, name)(*(_convert(a, _exact) for a in case.arguments), **options)

    def close(self, case: Case, got: np.ndarray, wanted: np.ndarray) -> None:
        """Both of one shape, and within the tolerance."""
        assert got.shape == wanted.shape, f"got shape {got.shape}, wanted {wanted.shape}"
        assert np.isfinite(got).all(), "got NaN or infinity"
        error = np.linalg.norm(got.astype(np.float64) - wanted)
        allowed = TOLERANCE.get(case.dtype, 1e-5) * np.linalg.norm(wanted)
        self.worst = max(self.worst, float(error / allowed) if allowed else 0.0)
        assert error <= allowed, f"relative error {error / np.linalg.norm(wanted):.2e}, worst at {_worst(got, wanted)}"

    def chosen(self, case: Case, got: np.ndarray, own: np.ndarray, wanted: np.ndarray, budget: int) -> None:
        """Selected columns (KV, B), by own scores exactly and by the reference's (KV, S) within the tolerance."""
        np.testing.assert_array_equal(got, reference.keep_top(own, budget), "not keep_top of the module's own scores")
        slack = TOLERANCE[case.dtype] * np.abs(wanted).max(initial=0)
        for row, scores in zip(got, wanted, strict=True):
            left = np.delete(scores, row)
            gap = left.max(initial=-np.inf) - scores[row].min(initial=np.inf)
            assert gap <= 2 * slack, f"left out a key that scores {gap:.2e} more than one that was kept"

    def _exactly(self, name: str, case: Case) -> None:
        np.testing.assert_array_equal(self.run(name, case), getattr(reference, name)(*case.arguments, **case.options))

    def _keep_top(self, case: Case) -> None:
        self._exactly("keep_top", case)

    def _select_neurons(self, case: Case) -> None:
        self._exactly("select_neurons", case)

    def _select_queries(self, case: Case) -> None:
        q, n = case.arguments
        got = self.run("select_queries", case)
        tokens = q.shape[1]
        assert got.shape == (len(q), min(n, tokens)), f"got shape {got.shape}, wanted {(len(q), min(n, tokens))}"
        if tokens <= n:
            np.testing.assert_array_equal(got, np.broadcast_to(np.arange(tokens), got.shape))
            return
        q = _exact(q)
        cosines = (reference.unit(q) * reference.unit(q.mean(axis=1, keepdims=True))).sum(axis=-1)  # (H, T)
        for row, cosine, queries in zip(got, cosines, q, strict=True):
            assert len(set(row.tolist())) == n, f"got {row}, wanted {n} different queries"
            order = np.append(cosine[row], np.delete(cosine, row).min())
            fall = (order[:-1] - order[1:]).max()
            assert fall <= 2 * TOLERANCE[case.dtype], f"got {row}: one is {fall:.2e} more similar than a later one"
            for j, later in enumerate(row):  # of equal queries the lower index comes first
                equal = np.flatnonzero((queries[:later] == queries[later]).all(axis=1))
                assert set(equal.tolist()) <= set(row[:j].tolist()), f"got {later} before its equal, {equal}"

    def _key_scores(self, case: Case) -> None:
        self.close(case, self.run("key_scores", case), self._scores_of_keys(*case.arguments))

    def _scores_of_keys(self, q: np.ndarray, k: np.ndarray, n: int) -> np.ndarray:
        """Reference scores, from the queries that the module itself chooses."""
        if hasattr(self.module, "select_queries"):
            chosen = self.run("select_queries", None, q, n)  # type: ignore[arg-type]
        else:
            chosen = reference.select_queries(_exact(q), n)
        return reference.key_scores(np.take_along_axis(_exact(q), chosen[:, :, None], axis=1), _exact(k), n)

    def _select_keys(self, case: Case) -> None:
        q, k, budget, n = case.arguments
        own = self.run("key_scores", case, q, k, n)
        self.chosen(case, self.run("select_keys", case), own, self._scores_of_keys(q, k, n), budget)

    def _quoka_attention(self, case: Case) -> None:
        q, k, v, q_positions, k_positions, past = case.arguments
        budget, n = case.options["budget"], case.options["n_queries"]
        columns = np.broadcast_to(np.arange(k.shape[1]), k.shape[:2])
        if past > budget:
            kept = self.run("select_keys", case, q, np.array(k[:, :past]), budget, n)
            columns = np.concatenate([kept, columns[:, past:]], axis=1)
        k, v = (np.take_along_axis(_exact(x), columns[:, :, None], axis=1) for x in (k, v))
        wanted = reference.attention(_exact(q), k, v, q_positions, np.take_along_axis(k_positions, columns, axis=1))
        self.close(case, self.run("quoka_attention", case), wanted)


def contract() -> list[str]:
    """The functions that can be checked, in the order of the contract."""
    return [
        *("attention", "attention_mass", "select_queries", "key_scores", "select_keys", "quoka_attention"),
        *("keydiff_scores", "tova_scores", "snapkv_scores", "caote_scores", "keep_top", "predictor_scores"),
        *("select_neurons", "sparse_ffn", "layer_densities", "rms_norm", "rotate", "linear", "gated_ffn", "embed"),
    ]


def verify(
    module: Any,
    *,
    seconds: float | None = None,
    names: list[str] | None = None,
    examples: int = EXAMPLES,
    progress: Callable[[Result], None] | None = None,
) -> list[Result]:
    """Check every contract function that the module offers, in rounds of `examples` cases until `seconds` are over
    (default: one round). `progress` is called after each function. ValueError for a module that offers none, or that
    has none of the `names` asked for.
    """
    offered = [name for name in names or contract() if callable(getattr(module, name, None))]
    require(bool(offered), f"module: got {_name(module)}, wanted one with some of: {', '.join(names or contract())}")
    results = {name: Result(name, 0, 0.0) for name in offered}
    end = time.monotonic() + (seconds or 0)
    for seed in _rounds():
        for name in offered:
            before = results[name]
            if not before.failure:
                new = check_function(module, name, examples=examples, seed=seed)
                results[name] = replace(
                    new, examples=before.examples + new.examples, worst=max(before.worst, new.worst)
                )
            if progress is not None:
                progress(results[name])
            if seconds is not None and time.monotonic() > end:
                return list(results.values())
        if seconds is None:
            return list(results.values())
    raise AssertionError("rounds never end")


def check_function(module: Any, name: str, *, examples: int = EXAMPLES, seed: int = 0) -> Result:
    """Check one function on `examples` cases drawn with `seed`; a failure is shrunk and told in the result."""
    try:
        import hypothesis
    except ImportError:
        raise ValueError("verify needs hypothesis: pip install 'thresher[test]'") from None
    from thresher import cases

    checker, count = Checker(module), 0

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        report_multiple_bugs=False,
    )
    @hypothesis.given(cases.strategy(getattr(cases, name)))
    def run(case: Case) -> None:
        nonlocal count
        count += 1
        try:
            checker.check(name, case)
        except Exception as error:
            raise AssertionError(f"{error}\n  case: {case!r}") from error

    try:
        run()
    except AssertionError as error:
        return Result(name, count, checker.worst, str(error))
    return Result(name, count, checker.worst)


def find_module(name: str) -> ModuleType:
    """The module called `name`, looked for in the current directory too. ValueError where there is none."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise ValueError(f"module: got {name!r}, wanted a module that can be imported: {error}") from None


def table(results: list[Result]) -> list[tuple[str, str, str, str]]:
    """Rows to print: function, cases, worst error as a share of the tolerance, verdict."""
    return [
        (r.name, str(r.examples), f"{r.worst:.1%}" if r.worst else "exact", "FAILED" if r.failure else "ok")
        for r in results
    ]


def _rounds() -> Iterator[int]:
    seed = 0
    while True:
        yield seed
        seed += 1


def _exact(x: np.ndarray) -> np.ndarray:
    return x if x.dtype.kind in "iub" else x.astype(np.float64)


def _convert(value: Any, to: Callable[[np.ndarray], Any]) -> Any:
    """An argument with every array in it converted; numbers, names and None stay."""
    if isinstance(value, np.ndarray):
        return to(value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _convert(getattr(value, f.name), to) for f in fields(value)})
    return value


def _worst(got: np.ndarray, wanted: np.ndarray) -> str:
    at = np.unravel_index(np.abs(got - wanted).argmax(), got.shape)
    return f"{tuple(int(i) for i in at)}: got {got[at]:.6g}, wanted {wanted[at]:.6g}"


def _name(module: Any) -> str:
    return getattr(module, "__name__", repr(module))

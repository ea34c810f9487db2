"""Whether a backend means the same as `reference`: one checker for any module and any function of the contract.

`checker` says what counts as the same, `drawing` and `layouts` how a case is drawn, `cases` and `moves` what is drawn
for each function, `life` what is done to a cache, `arguments` and `files` how a case is taken apart and kept.

    from thresher.verify import verify
    results = verify(my_kernels)          # any module that offers some of the contract's functions
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reference.backend import FUNCTIONS, NAMES
from reference.checks import require

if TYPE_CHECKING:
    from thresher.verify.drawing import Case

EXAMPLES = 50  # per function and round


@dataclass(frozen=True)
class Result:
    """What became of one function: how many cases, the worst error as a share of its tolerance, and the failure with
    the case that shows it."""

    name: str
    examples: int
    worst: float
    failure: str = ""
    case: Case | None = None


def contract() -> list[str]:
    """Everything that is checked: the functions in the order of the contract, then the moves and the cache."""
    return list(NAMES)


def verify(
    module: Any,
    *,
    seconds: float | None = None,
    names: list[str] | None = None,
    examples: int = EXAMPLES,
    progress: Callable[[Result], None] | None = None,
) -> list[Result]:
    """Check everything of the contract that the module offers, in rounds of `examples` cases until `seconds` are over
    (default: one round). `progress` is called after each function. ValueError for a module that offers nothing, or that
    has none of the `names` asked for.
    """
    offered = [name for name in names or contract() if callable(getattr(module, name, None))]
    require(bool(offered), f"backend: got {_name(module)}, wanted one with some of: {', '.join(names or contract())}")
    results = {name: Result(name, 0, 0.0) for name in offered}
    end = time.monotonic() + (seconds or 0)
    for seed in itertools.count():
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
        if seconds is None or all(result.failure for result in results.values()):
            break
    return list(results.values())


def check_function(module: Any, name: str, *, examples: int = EXAMPLES, seed: int = 0) -> Result:
    """Check one function on `examples` cases drawn with `seed`; a failure is shrunk to a small case."""
    try:
        import hypothesis
    except ImportError:
        raise ValueError("verify needs hypothesis: pip install 'thresher[verify]'") from None
    from thresher.verify import cases, moves
    from thresher.verify.checker import Checker
    from thresher.verify.drawing import strategy

    checker, count, worst = Checker(module), 0, 0.0
    failed: list[tuple[str, Case]] = []  # the last one is the smallest

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
        suppress_health_check=list(hypothesis.HealthCheck),
        report_multiple_bugs=False,
    )
    @hypothesis.given(strategy(getattr(cases if name in FUNCTIONS else moves, name)))
    def run(case: Case) -> None:
        nonlocal count, worst
        count += 1
        try:
            checker.check(name, case)
        except AssertionError as error:
            failed.append((str(error), case))
            raise
        worst = max(worst, checker.worst)

    try:
        run()
    except hypothesis.errors.Flaky:
        reason, case = failed[-1]
        reason = f"two calls on the same case differ: the second time all was well, the first time {reason}"
        return Result(name, count, worst, _told(reason, case, seed), case)
    except AssertionError:
        return Result(name, count, worst, _told(*failed[-1], seed), failed[-1][1])
    return Result(name, count, worst)


def replay(module: Any, path: Path) -> list[Result]:
    """Check a module on the case that a file holds. ValueError for a file that holds none, or a module without the
    function."""
    from thresher.verify.checker import Checker
    from thresher.verify.files import load_case

    name, case = load_case(path)
    require(callable(getattr(module, name, None)), f"backend: got {_name(module)}, wanted one with {name}")
    checker = Checker(module)
    try:
        checker.check(name, case)
    except AssertionError as error:
        return [Result(name, 1, checker.worst, f"{error}\n  case: {case!r}", case)]
    return [Result(name, 1, checker.worst)]


def table(results: list[Result]) -> list[tuple[str, str, str, str]]:
    """Rows to print: function, cases, worst error as a share of the tolerance, verdict."""
    return [
        (r.name, str(r.examples), f"{r.worst:.1%}" if r.worst else "", "FAILED")
        if r.failure
        else (r.name, str(r.examples), f"{r.worst:.1%}" if r.worst else "exact", "ok")
        for r in results
    ]


def _told(reason: str, case: Case, seed: int) -> str:
    return f"{reason}\n  case: {case!r} (round {seed})"


def _name(module: Any) -> str:
    return getattr(module, "__name__", repr(module))

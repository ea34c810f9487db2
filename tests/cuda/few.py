"""A few cases of every function of the contract, for tools that make kernels a hundred times as slow. Needs a GPU.

    compute-sanitizer --report-api-errors no --tool memcheck  python -m tests.cuda.few
    compute-sanitizer --report-api-errors no --tool racecheck python -m tests.cuda.few

The exit status is that of the tool, or 1 where a case is wrong.
"""

from __future__ import annotations

import sys

import accel.cuda
from thresher.verify import check_function, contract

EXAMPLES = 2


def main() -> None:
    """Check, and print what was wrong."""
    names = [name for name in contract() if hasattr(accel.cuda, name)]
    failures = [check_function(accel.cuda, name, examples=EXAMPLES).failure for name in names]
    wrong = [failure for failure in failures if failure]
    print(*wrong, f"{len(names)} functions, {len(wrong)} wrong", sep="\n")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()

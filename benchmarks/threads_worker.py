"""The works of `threads` in a process of its own: `python -m benchmarks.threads_worker SIZE`.

A line on standard input is the name of a work and a dtype, which is made ready and done once, or nothing, which is a
turn of it. Each is answered by a line: the seconds that the last call took.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from benchmarks.attention import PAST, Problem
from benchmarks.common import SETTLE, turn
from benchmarks.ffn import WIDTHS, Network
from benchmarks.selection import BUDGET, Pass


def attention(size: str, dtype: str) -> Callable[[], Any]:
    return Problem(PAST[size], dtype=dtype).dense


def ffn(size: str, dtype: str) -> Callable[[], Any]:
    return Network(*WIDTHS[size], dtype=dtype).dense


def quoka(size: str, dtype: str) -> Callable[[], Any]:
    shared = Pass(PAST[size], dtype=dtype)
    return lambda: shared.quoka(BUDGET[size])


WORKS = {"attention": attention, "FFN": ffn, "QUOKA": quoka}


def main() -> None:
    size = sys.argv[1]
    settle = SETTLE if size != "smallest" else 0
    run: Callable[[], Any] = sys.exit  # nothing was made ready yet
    for line in sys.stdin:
        if asked := line.split():
            name, dtype = asked
            run = WORKS[name](size, dtype)
        print(turn(run, 0 if asked else settle), flush=True)


if __name__ == "__main__":
    main()

"""Every benchmark in a process of its own: `python -m benchmarks.all [--short] [NAME …]`.

A full run is recorded, one file each in `benchmarks/results`; a short one (`make bench`) only tells.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

from benchmarks.common import RESULTS

NAMES = (
    "attention",
    "selection",
    "eviction",
    "ffn",
    "threads",
    "start",
    "memory",
    "decode",
    "shares",
    "ttft",
    "fastforward",
    "peers",
    "load",
    "mixture",
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.all")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: {' '.join(NAMES)}")
    parser.add_argument("--short", action="store_true", help="the short set, about ten minutes, not recorded")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(NAMES):
        parser.error(f"got {' '.join(sorted(unknown))}, wanted some of {' '.join(NAMES)}")
    failed = [name for name in arguments.names or NAMES if not run(name, short=arguments.short)]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def run(name: str, *, short: bool) -> bool:
    """Run one benchmark, show its tables as they come, record its last line; False where it failed."""
    command = [sys.executable, "-m", f"benchmarks.{name}", "--size", "short" if short else "full"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    last = ""
    for line in process.stdout:
        print(line, end="", flush=True)
        last = line
    if process.wait() != 0:
        return False
    if not short:
        RESULTS.mkdir(exist_ok=True)
        text = json.dumps(json.loads(last), ensure_ascii=False, indent=1)
        (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    return True


if __name__ == "__main__":
    main()

"""Programs that are meant well run; those that are not are stopped, in one line each, by every wall of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from thresher.answers import sandbox, sandbox_child
from thresher.answers.sandbox import ProgramError, run

GOOD = {
    "print(6 * 7)": "42\n",
    "import math\nfrom fractions import Fraction as F\nprint(math.comb(5, 2), F(1, 3) + F(1, 6), sep=';')": "10;1/2\n",
    "def f(n):\n    return 1 if n < 2 else n * f(n - 1)\nfor i in range(3):\n    print(f(i), end=' ')": "1 1 2 ",
    "from collections import Counter, namedtuple\nP = namedtuple('P', 'x')\nprint(Counter('aa')['a'], P(1).x)": "2 1\n",
    "import statistics, decimal\nprint(statistics.mean([1, 2]), decimal.Decimal('0.1') * 3)": "1.5 0.3\n",
    "import random\nprint(random.Random(0).randint(1, 1), random.choice([4]))": "1 4\n",
    "from math import *\nx = [a * b for a, b in zip((1, 2), (3, 4))]\nprint(f'{sum(x):>4}', floor(2.5))": "  11 2\n",
    "input = 3\ndef f(type):\n    return type + input\nprint(f(1))": "4\n",
    "try:\n    [][9]\nexcept IndexError:\n    print('caught')": "caught\n",
    "for _ in range(2):\n    pass\nprint('é', {1: 'a'}[1])": "é a\n",
    "": "",
}
HOSTILE = {
    "while True: pass": r"ran longer than 2 seconds, and was stopped",
    "x = [0] * (10 * 2**30 // 8)": r"needed more memory",
    "x = []\nwhile True: x += [x] * 10**6": r"needed more memory|ran longer",
    "open('/etc/passwd').read()": r"line 1: NameError: name 'open' is not defined",
    "import os\nos.fork()": r"line 1: got import os, wanted one of math",
    "from os import fork": r"got import os",
    "import os.path": r"got import os\.path",
    "from . import os": r"got import \.",
    "__import__('os')": r"got the name __import__",
    "eval('1')": r"NameError: name 'eval' is not defined",
    "getattr(1, 'real')": r"NameError: name 'getattr' is not defined",
    "().__class__.__bases__": r"got the name __(class|bases)__",
    "import fractions\nfractions.sys.modules": r"AttributeError: .* no attribute 'sys'",
    "import statistics\nstatistics.random": r"no attribute 'random'",
    "from statistics import sys": r"ImportError|AttributeError",
    "import functools\nfunctools.update_wrapper(print, print, ['x'])": r"no attribute 'update_wrapper'",
    "g = (g.gi_frame for _ in [1])": r"got the attribute gi_frame",
    "print('{0.__class__}'.format(1))": r"got the attribute format",
    "class A: pass": r"got ClassDef",
    "with x: pass": r"got With",
    "async def f(): pass": r"got AsyncFunctionDef",
    "match 1:\n    case _: pass": r"got Match",
    "def f(__x): pass": r"got the name __x",
    "print(1, __debug__=1)": r"no Python|got the name __debug__",
    "def f(): return f()\nf()": r"called itself",
    "(" * 10_000: r"no Python|too deeply|needed more memory|signal",
    "-" * 100_000 + "1": r"too deeply|needed more memory|no Python|signal",
    "print(10 ** 10 ** 10)": r"ran longer|needed more memory|signal",
    "while True: print('spam' * 100)": r"printed more than 10,000 characters",
    "1 / 0": r"line 1: ZeroDivisionError: division by zero",
    "x = 1\nraise ValueError('two\\nlines')": r"line 2: ValueError: two lines",
    "if": r"line 1: no Python",
    "x\x00y": r"program: .*null",
    "import math\nmath.nothing": r"line 2: AttributeError",
}


@pytest.mark.parametrize("program", GOOD, ids=range(len(GOOD)))
def test_a_program_prints(program: str) -> None:
    assert run(program, seconds=20) == GOOD[program]


@pytest.mark.parametrize("program", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_program_is_one_line(program: str) -> None:
    with pytest.raises(ProgramError, match=HOSTILE[program]) as caught:
        run(program, seconds=2)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("program: ")


BEHIND = """
import sys
sys.path.insert(0, {folder!r})
sys.argv[1:] = ["60", str(1 << 30), "1000"]
import sandbox_child as child
child.check = lambda source: child.ast.parse(source)
child._public = lambda module: module
child.BUILTINS = [*child.BUILTINS, "open", "eval", "__build_class__", "getattr"]
sys.exit(child.main())
"""


@pytest.mark.parametrize(
    "program",
    [
        "open('/etc/hostname')",
        "open('/tmp/written', 'w')",
        "import random\nrandom._os.fork()",
        "import random\nrandom._os.system('true')",
        "import random\nrandom._os.listdir('/')",
        "import statistics\nstatistics.sys.modules['os'].execv('/bin/true', ['true'])",
        "import random\nrandom._os.open('/etc/hostname', 0)",
        "import fractions\nfractions.sys.modules['posix'].kill(1, 0)",
    ],
)
def test_behind_the_first_walls_stands_another(program: str) -> None:
    """With the syntax unchecked and the modules whole, the audit hook alone refuses."""
    script = BEHIND.format(folder=str(Path(sandbox.__file__).parent))
    done = subprocess.run(
        [sys.executable, "-I", "-c", script], input=program, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "wanted no files, no network, no other process" in done.stdout, done


def test_the_process_knows_nothing_of_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}

    def watch(*arguments: object, **options: object) -> subprocess.CompletedProcess[bytes]:
        seen.update(options)
        return subprocess.CompletedProcess([], 0)

    monkeypatch.setattr(subprocess, "run", watch)
    run("print(1)")
    assert (seen["env"], seen["cwd"]) == ({}, "/")


def test_bad_limits_are_named() -> None:
    with pytest.raises(ValueError, match="seconds: got 0"):
        run("", seconds=0)
    with pytest.raises(ValueError, match="memory: got 1"):
        run("", memory=1)


def test_a_copy_of_a_module_has_no_module_in_it() -> None:
    module = ModuleType("some")
    module.inner, module.number, module._hidden = sys, 3, 4  # type: ignore[attr-defined]
    assert vars(sandbox_child._public(module)) == {"number": 3}

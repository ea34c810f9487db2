"""The process that runs one untrusted program: a script of its own, which imports nothing but the standard library.

Several walls stand one behind the other. The program's syntax is looked at before it runs, and only what is listed here
passes. The modules that it imports are copies, without the modules inside them. An audit hook refuses whatever opens,
connects, starts or loads. The system limits time and memory, and gives no new file, socket or process.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import resource
import sys
from types import ModuleType, SimpleNamespace
from typing import Any, NoReturn

MODULES = (
    *("math", "cmath", "fractions", "decimal", "itertools", "functools", "collections", "statistics", "random"),
    *("heapq", "bisect"),
)
STATEMENTS = "Module Expr Assign AugAssign AnnAssign For While If Break Continue Pass FunctionDef Return Import " + (
    "ImportFrom Try ExceptHandler Raise Assert Global Nonlocal"
)
EXPRESSIONS = (
    "BoolOp NamedExpr BinOp UnaryOp Lambda IfExp Dict Set ListComp SetComp DictComp GeneratorExp Yield YieldFrom "
    "Compare Call FormattedValue JoinedStr Constant Attribute Subscript Starred Name List Tuple Slice "
    "comprehension arguments arg keyword alias expr_context boolop operator unaryop cmpop"
)
SYNTAX = tuple(getattr(ast, name) for name in f"{STATEMENTS} {EXPRESSIONS}".split())
BUILTINS = (
    *("abs", "all", "any", "bin", "bool", "chr", "complex", "dict", "divmod", "enumerate", "filter", "float", "format"),
    *("frozenset", "hex", "int", "isinstance", "iter", "len", "list", "map", "max", "min", "next", "oct", "ord", "pow"),
    *("range", "repr", "reversed", "round", "set", "slice", "sorted", "str", "sum", "tuple", "zip"),
    *("ArithmeticError", "AssertionError", "Exception", "IndexError", "KeyError", "LookupError", "OverflowError"),
    *("StopIteration", "TypeError", "ValueError", "ZeroDivisionError"),
)
OFFERED = {"functools": ("cache", "cmp_to_key", "lru_cache", "partial", "reduce")}  # its others reach names by text
FRAMES = ("gi_", "cr_", "ag_", "tb_", "f_", "co_")  # attributes that lead from a generator to the frames around it
HIDDEN = ("format", "format_map", "mro")  # attributes of texts and classes that reach others by name
AUDITED = (  # what the listed modules do themselves, and what stays inside the process
    *("exec", "compile", "sys._getframe", "sys._getframemodulename", "builtins.id"),
    *("object.__getattr__", "object.__setattr__"),
)
MOST = 10_000  # characters that a program may print


class Refused(Exception):
    """What is not allowed: one line."""


def check(source: str) -> ast.Module:
    """The program's tree. Refused for syntax and modules that are not listed, and for names that lead out of it;
    SyntaxError for no program. Builtins are no matter of syntax: those that are not listed are not there."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if not isinstance(node, SYNTAX):
            _refuse(node, type(node).__name__, "arithmetic, collections, loops, conditions and functions")
        elif isinstance(node, ast.Import):
            for alias in node.names:
                _module(node, alias.name)
        elif isinstance(node, ast.ImportFrom):
            _module(node, "." * node.level + (node.module or ""))
        for name in _names(node):
            if name.startswith("_") and name.strip("_") != "":
                _refuse(node, f"the name {name}", "names that do not begin with _")
        if isinstance(node, ast.Attribute) and (node.attr in HIDDEN or node.attr.startswith(FRAMES)):
            _refuse(node, f"the attribute {node.attr}", "attributes of numbers and collections")
    return tree


def run(source: str) -> str:
    """What the program prints."""
    tree = check(source)
    printed: list[str] = []

    def show(*values: object, sep: str = " ", end: str = "\n") -> None:
        text = sep.join(map(str, values)) + end
        if sum(map(len, printed)) + len(text) > MOST:
            raise Refused(f"printed more than {MOST:,} characters")
        printed.append(text)

    modules = {name: _public(importlib.import_module(name)) for name in MODULES}

    def load(name: str, *_: Any) -> SimpleNamespace:
        return modules[name]

    kept = {name: getattr(builtins, name) for name in BUILTINS}
    scope = {"__name__": "__main__", "__builtins__": {**kept, "print": show, "__import__": load}}
    code = compile(tree, "program", "exec")
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
    sys.addaudithook(_audit)
    exec(code, scope)
    return "".join(printed)


def main() -> int:
    """Read the program from standard input; print what it prints, or one line of what went wrong and return 1.

    The command line has the limits: seconds of the processor, bytes of memory, bytes of a file.
    """
    seconds, memory, size = map(int, sys.argv[1:])
    for kind, limit in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, size),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
    ):
        resource.setrlimit(kind, (limit, limit))
    source = sys.stdin.buffer.read().decode("utf-8", errors="replace")
    try:
        out, status = run(source), 0
    except MemoryError:
        out, status = "needed more memory than it was given", 1
    except RecursionError:
        out, status = "called itself, or nested its brackets, too deeply", 1
    except Refused as error:
        out, status = str(error), 1
    except SyntaxError as error:
        out, status = f"line {error.lineno}: no Python ({error.msg})", 1
    except BaseException as error:
        out, status = f"{_line(error)}{type(error).__name__}: {error}"[:MOST], 1
    sys.stdout.buffer.write(out.encode("utf-8", errors="replace"))
    sys.stdout.buffer.flush()
    return status


def _line(error: BaseException) -> str:
    trace, line = error.__traceback__, 0
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "program":
            line = trace.tb_lineno
        trace = trace.tb_next
    return f"line {line}: " if line else ""


def _names(node: ast.AST) -> list[str]:
    """All names that a node spells, whatever field they stand in."""
    fields = ("id", "attr", "name", "asname", "arg", "module")
    found = [getattr(node, field, None) for field in fields] + list(getattr(node, "names", []))
    return [name for name in found if isinstance(name, str)]


def _module(node: ast.AST, name: str) -> None:
    if name not in MODULES:
        _refuse(node, f"import {name}", f"one of {', '.join(MODULES)}")


def _refuse(node: ast.AST, got: str, wanted: str) -> NoReturn:
    line = f"line {node.lineno}: " if hasattr(node, "lineno") else ""
    raise Refused(f"{line}got {got}, wanted {wanted}")


def _public(module: ModuleType) -> SimpleNamespace:
    """What a module offers, without the modules that it uses itself."""
    public = getattr(module, "__all__", [name for name in vars(module) if not name.startswith("_")])
    names = OFFERED.get(module.__name__, public)
    found = {name: getattr(module, name) for name in names}
    return SimpleNamespace(**{name: value for name, value in found.items() if not isinstance(value, ModuleType)})


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event not in AUDITED:
        raise Refused(f"got {event}, wanted no files, no network, no other process")


if __name__ == "__main__":
    sys.exit(main())

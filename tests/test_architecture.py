"""Imports run one way: between the packages, between the rooms of a backend, and without a circle anywhere.

Every import of our own counts, also one inside a function or for type checkers alone: who reads the code follows both.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("reference", "accel", "loaders", "thresher")
MAY_IMPORT = {
    "reference": set(),
    "accel": {"reference"},
    "loaders": {"reference"},
    "thresher": {"reference", "accel", "loaders"},
}
# From the machine up; rooms of one storey do not know each other, but for the files at the top.
STOREYS = [
    ("simd", "ptx"),
    ("runtime",),
    ("linear",),
    ("attention", "ffn"),
    ("methods",),
    ("cache", "layers", "rotation"),
    ("recorded",),
]
BACKENDS = [path.name for path in sorted((ROOT / "accel").iterdir()) if (path / "runtime").is_dir()]


def modules(package: str) -> dict[str, Path]:
    """Every module of a package by its dotted name."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = {name: path for package in PACKAGES for name, path in modules(package).items()}


def imports(path: Path) -> Iterator[str]:
    """What a file imports: modules, and names of packages that are modules themselves."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else node.module for name in inner)


OURS = {name: {other for other in imports(path) if other in MODULES} for name, path in MODULES.items()}


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_one_way(package: str) -> None:
    imported = {other.split(".")[0] for name in modules(package) for other in OURS[name]} - {package}
    assert imported <= MAY_IMPORT[package]


def test_the_reference_needs_numpy_alone() -> None:
    outside = {other.split(".")[0] for path in modules("reference").values() for other in imports(path)}
    standard = {
        "__future__",
        "abc",
        "collections",
        "dataclasses",
        "functools",
        "itertools",
        "json",
        "math",
        "re",
        "sys",
        "types",
        "typing",
    }
    assert outside <= {"reference", "numpy", *standard}


@pytest.mark.parametrize("backend", BACKENDS)
def test_rooms_of_a_backend_import_downwards(backend: str) -> None:
    top = f"accel.{backend}"
    storey = {room: n for n, rooms in enumerate(STOREYS) for room in rooms}
    assert {name.split(".")[2] for name in MODULES if name.startswith(f"{top}.")} <= set(storey)
    for name in (name for name in MODULES if name.startswith(f"{top}.")):
        room = name.split(".")[2]
        for other in (other for other in OURS[name] if other.startswith("accel.")):
            if other.startswith("accel.shared"):
                continue
            assert other.startswith(f"{top}."), f"{name} imports {other}, of another backend"
            below = other.split(".")[2]
            assert below == room or storey[below] < storey[room], f"{name} imports {other}, which stands no lower"


def test_what_backends_share_knows_none_of_them() -> None:
    for name in (name for name in MODULES if name.startswith("accel.shared")):
        assert all(other.startswith(("accel.shared", "reference")) for other in OURS[name])


def test_no_circles() -> None:
    """A package's own face may import what is below it, and what is below does not import the face."""
    TopologicalSorter({name: others - {name} for name, others in OURS.items()}).prepare()  # CycleError names a circle

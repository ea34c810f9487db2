"""Models of the Hugging Face hub, by ids such as "org/name". huggingface_hub transfers them, goes on with what was
interrupted, and keeps them in its own cache, where other programs find them too."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
FILES = ["*.json", "*.jinja", "*.safetensors"]
WEIGHTS = "*.safetensors"


@dataclass(frozen=True)
class Offer:
    """What a pull would fetch. parameters: None where the hub does not say. licence: "" where its page names none."""

    name: str
    bytes: int
    parameters: int | None
    licence: str


@dataclass(frozen=True)
class Copy:
    """A model in the cache; one that is not whole was interrupted."""

    name: str
    bytes: int
    whole: bool


def offer(name: str) -> Offer:
    """What the hub has under an id. FileNotFoundError where there is no such model, another OSError where nothing
    answers, ValueError for one without safetensors files."""
    from huggingface_hub import HfApi

    with _told(name):
        info = HfApi().model_info(name, files_metadata=True)
    files = {file.rfilename: file.size or 0 for file in info.siblings or []}
    if not any(fnmatch(file, WEIGHTS) for file in files):
        raise ValueError(
            f"{name}: got a model without .safetensors files, wanted one with; of a GGUF file its path can be given, "
            "once it is on this machine"
        )
    size = sum(size for file, size in files.items() if any(fnmatch(file, pattern) for pattern in FILES))
    licence = getattr(info.card_data, "license", None)
    return Offer(name, size, info.safetensors.total if info.safetensors else None, str(licence or ""))


def pull(name: str) -> Path:
    """Fetch what of a model is not here yet, with huggingface_hub's own bar on a terminal, and return its directory."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    with _told(name):
        return Path(snapshot_download(name, allow_patterns=FILES))


def local(name: str) -> Path | None:
    """The directory of a model that was pulled whole, or None. Asks no network."""
    if not ID.fullmatch(name):
        return None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        found = Path(snapshot_download(name, allow_patterns=FILES, local_files_only=True))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError):
        return None
    return found if any(found.glob(WEIGHTS)) else None


def pulled() -> list[Copy]:
    """Every model in huggingface_hub's cache that has weights of the kind read here, or an interrupted part of them."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repos = scan_cache_dir().repos
    except CacheNotFound:
        return []
    found = []
    for repo in sorted(repos, key=lambda repo: repo.repo_id):
        whole = repo.repo_type == "model" and local(repo.repo_id) is not None
        if whole or (repo.repo_type == "model" and any(repo.repo_path.rglob("*.incomplete"))):
            found.append(Copy(repo.repo_id, repo.size_on_disk, whole))
    return found


def remove(name: str) -> bool:
    """Delete a model from huggingface_hub's cache; False where it is not there."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repos = [repo for repo in scan_cache_dir().repos if (repo.repo_type, repo.repo_id) == ("model", name)]
    except CacheNotFound:
        return False
    for repo in repos:
        shutil.rmtree(repo.repo_path)
    return bool(repos)


@contextmanager
def _told(name: str) -> Iterator[None]:
    """Whatever goes wrong on the way to the hub as one line."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        yield
    except GatedRepoError:
        raise FileNotFoundError(
            f"{name}: its authors want to be asked first: accept their terms on its page, then log in with "
            "`hf auth login`"
        ) from None
    except RepositoryNotFoundError:
        raise FileNotFoundError(f"{name}: the Hugging Face hub has no such model, or does not show it to you") from None
    except Exception as error:  # those of the library, of its transport and of the system share no base class
        reason = str(error).strip().split("\n")[0]
        raise OSError(f"{name}: the Hugging Face hub does not give it ({reason or type(error).__name__})") from None

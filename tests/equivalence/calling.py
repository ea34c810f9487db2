"""Functions of a backend with NumPy arrays: there and back."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from thresher.verify.arguments import convert


def call(backend: ModuleType, name: str, *arguments: Any, **options: Any) -> Any:
    """What the backend's function of that name answers, on the host. Token ids are the host's own to begin with."""
    if name == "embed":
        return backend.to_numpy(backend.embed(arguments[0], *(backend.to_backend(x) for x in arguments[1:]), **options))
    given, named = (convert(these, backend.to_backend) for these in (arguments, options))
    return convert(getattr(backend, name)(*given, **named), backend.to_numpy)

"""The families that can be loaded. A file put beside this one, with `FAMILIES` in it, is found by itself."""

from __future__ import annotations

import pkgutil
from importlib import import_module

from loaders.family import Family
from loaders.settings import shown

_MODULES = [import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
FAMILIES: dict[str, Family] = {family.model_type: family for module in _MODULES for family in module.FAMILIES}


def family_of(model_type: object, where: str) -> Family:
    """The family called `model_type`, or a ValueError that lists those there are; `where` is the config's file."""
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        supported = ", ".join(sorted(FAMILIES))
        raise ValueError(
            f"{where}: model_type: got {shown(model_type)}, wanted one of the supported families: {supported}"
        )
    return FAMILIES[model_type]

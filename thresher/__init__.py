"""Long-context language-model inference made cheap, and checked against an exact reference.

    import thresher
    llm = thresher.load("smollm2-135m-instruct")
    for piece in llm.generate("The capital of France is", max_new_tokens=8):
        print(piece, end="")

Names are imported when first used, so that `import thresher` and `thresher --help` are quick.
"""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loaders.catalogue import pull
    from reference.baselines import Random, Recent
    from reference.caote import Caote
    from reference.fastforward import FastForward
    from reference.keydiff import KeyDiff
    from reference.policy import Policy
    from reference.quoka import Quoka
    from reference.scores import H2O, SnapKV, Tova
    from thresher.evaluation.run import evaluate
    from thresher.generate import Batch, Generation, Stats
    from thresher.model import LanguageModel, load
    from thresher.state import State
    from thresher.trace import load_trace, save_trace

_HOMES = {
    "Batch": "thresher.generate",
    "Caote": "reference.caote",
    "FastForward": "reference.fastforward",
    "Generation": "thresher.generate",
    "H2O": "reference.scores",
    "KeyDiff": "reference.keydiff",
    "LanguageModel": "thresher.model",
    "Policy": "reference.policy",
    "Quoka": "reference.quoka",
    "Random": "reference.baselines",
    "Recent": "reference.baselines",
    "SnapKV": "reference.scores",
    "State": "thresher.state",
    "Stats": "thresher.generate",
    "Tova": "reference.scores",
    "evaluate": "thresher.evaluation.run",
    "load": "thresher.model",
    "load_trace": "thresher.trace",
    "pull": "loaders.catalogue",
    "save_trace": "thresher.trace",
}

__all__ = [
    "H2O",
    "Batch",
    "Caote",
    "FastForward",
    "Generation",
    "KeyDiff",
    "LanguageModel",
    "Policy",
    "Quoka",
    "Random",
    "Recent",
    "SnapKV",
    "State",
    "Stats",
    "Tova",
    "evaluate",
    "load",
    "load_trace",
    "pull",
    "save_trace",
]


def in_the_way() -> str:
    """What is found before a package of ours because it is called like it, in a sentence; "" where nothing is."""
    root = Path(__file__).parents[1]
    for package in ("reference", "accel", "loaders"):
        found = find_spec(package)
        if found is not None and found.origin is not None and Path(found.origin) != root / package / "__init__.py":
            return f"{found.origin} is in the way of thresher's own package {package!r}: give it another name"
    return ""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'thresher' has no attribute {name!r}")
    if blocked := in_the_way():
        raise ImportError(blocked)
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)

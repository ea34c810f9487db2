"""Low-rank adapters in PEFT's layout, merged into the weights of their base when it is loaded.

    LoRA      W + s · B A            A (r, in), B (out, r), s = alpha / r, or alpha / √r where rank-stabilised
              W + s · (B A)ᵀ         of an embedding W (V, E): A (r, V), B (E, r)
    AdaLoRA   W + s · B (A ∘ E)      E (r, 1) scales the rows of A, s = alpha / (initial rank + 1e-5)

A directory holds adapter_config.json and adapter_model.safetensors, whose tensors are named after the module that they
change: "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight". The sum is formed in float32 or better and
cast once, to the dtype that the model is loaded as.

The file may also hold whole tensors, which take the base's place: modules that were trained in full, biases, and
embedding or output, which PEFT saves by itself when they are targets ("….lm_head.base_layer.weight").

Sources: Hu et al., LoRA (arXiv 2106.09685); Kalajdzievski, rsLoRA (arXiv 2312.03732); Zhang et al., AdaLoRA (arXiv
2303.10512); the names and the 1e-5 are those of the peft package.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loaders.finite import check_finite
from loaders.huggingface import read_json
from loaders.settings import Settings
from loaders.tensors import TensorFile
from reference.checks import is_float, require

WEIGHTS = "adapter_model.safetensors"
KINDS = {"LORA": "lora", "ADALORA": "adalora"}
FACTOR = re.compile(r"base_model\.model\.(.+)\.lora_(?:embedding_)?([ABE])(\.weight)?")
WHOLE = re.compile(r"base_model\.model\.((?!.*lora_).+?)(?:\.base_layer)?\.(weight|bias)")

# Each would add something else than a low-rank product, or to something else than the base as it is on disk.
UNSUPPORTED = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "fan_in_fan_out",
    "lora_bias",
    "trainable_token_indices",
    "target_parameters",
    "layer_replication",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
)
HARMLESS_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")  # initial values that leave the base alone


@dataclass(frozen=True)
class Product:
    """A low-rank product: scale · b a, b (out, r), a (r, in)."""

    b: np.ndarray
    a: np.ndarray
    scale: float

    def added_to(self, weight: np.ndarray, where: str) -> np.ndarray:
        """W + scale · b a, in float32, or in float64 where W is stored so. ValueError where the shapes differ."""
        got = len(self.b), self.a.shape[1]
        require(got == weight.shape, f"{where}: got a product of shape {got}, wanted {weight.shape} for this base")
        wide = np.promote_types(weight.dtype, np.float32)
        delta = self.b.astype(wide, copy=False) @ self.a.astype(wide, copy=False)  # (out, in)
        delta *= wide.type(self.scale)
        return np.add(delta, weight, out=delta)


@dataclass(frozen=True)
class Change:
    """What becomes of one tensor: `whole` takes its place, then `product` is added; either may be None."""

    whole: np.ndarray | None = None
    product: Product | None = None

    def of(self, weight: np.ndarray, where: str) -> np.ndarray:
        """The tensor after the change. ValueError where the shapes differ."""
        if self.whole is not None:
            got, wanted = self.whole.shape, weight.shape
            require(got == wanted, f"{where}: got a whole tensor of shape {got}, wanted {wanted} for this base")
            weight = self.whole
        return weight if self.product is None else self.product.added_to(weight, where)


class Adapter:
    """An adapter directory: `changes` by the name of the tensor that each concerns.

    Raises FileNotFoundError where a file is missing, ValueError naming file and key or tensor for a kind of adapter
    that is not supported, a factor without its partner, a rank other than the config's, NaN or infinity.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / WEIGHTS
        self._settings = Settings(read_json(directory / "adapter_config.json"), str(directory / "adapter_config.json"))
        self._kind = _supported_kind(self._settings)
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path}: got no such file, wanted the adapter's weights as safetensors")
        self._file = TensorFile(self.path)
        factors, wholes = self._factors()
        require(bool(factors), f"{self.path}: got no tensors, wanted the factors of an adapter")
        for module in self._settings.get("modules_to_save", []):
            there = any(f".{module}." in f".{name}" for name in wholes)
            self._settings.require("modules_to_save", there, f"modules that {WEIGHTS} holds")
        products = {module + ".weight": self._product(module, parts) for module, parts in factors.items()}
        self.changes = {
            name: Change(self._file.tensor(wholes[name]) if name in wholes else None, products.get(name))
            for name in products | wholes
        }

    def _factors(self) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
        """Module -> factor ("A", "B" or "E") -> the name of its tensor; and tensor of the base -> the name of the whole
        tensor in its place."""
        factors: dict[str, dict[str, str]] = {}
        wholes = {}
        letters = "ABE" if self._kind == "adalora" else "AB"
        for name in self._file.entries:
            if whole := WHOLE.fullmatch(name):
                wholes[f"{whole[1]}.{whole[2]}"] = name
                continue
            found = FACTOR.fullmatch(name)
            if found is None or found[2] not in letters:
                raise ValueError(f"{self._where(name)}: got a tensor that {self._kind} does not have, wanted none")
            factors.setdefault(found[1], {})[found[2]] = name
        for module, names in factors.items():
            missing = [letter for letter in letters if letter not in names]
            if missing:
                raise ValueError(f"{self.path}: module {module!r}: got no lora_{missing[0]}, wanted one")
        return factors, wholes

    def _product(self, module: str, names: dict[str, str]) -> Product:
        a, b, rank = self._matrix(names["A"]), self._matrix(names["B"]), self._rank(module)
        self._check_rank(names["A"], len(a), rank)
        self._check_rank(names["B"], b.shape[1], rank)
        if self._kind == "adalora":
            e = self._matrix(names["E"])
            require(e.shape == (rank, 1), f"{self._where(names['E'])}: got shape {e.shape}, wanted ({rank}, 1)")
            a = a * e  # (r, in)
        if "lora_embedding_" in names["A"]:
            b, a = a.T, b.T  # (V, r), (r, E)
        return Product(b, a, self._scale(module, rank))

    def _check_rank(self, name: str, got: int, wanted: int) -> None:
        require(got == wanted, f"{self._where(name)}: got rank {got}, wanted {wanted} as adapter_config.json says")

    def _matrix(self, name: str) -> np.ndarray:
        """A factor in float32 or better."""
        stored = self._file.tensor(name)
        where = self._where(name)
        require(stored.ndim == 2, f"{where}: got shape {stored.shape}, wanted a matrix")
        require(is_float(stored.dtype), f"{where}: got dtype {stored.dtype}, wanted a floating-point type")
        check_finite(where, stored, stored)
        return stored.astype(np.promote_types(stored.dtype, np.float32), copy=False)

    def _rank(self, module: str) -> int:
        """r of this module."""
        if self._kind == "lora":
            settings, key = self._of_module("r", "rank_pattern", module)
            return settings.whole(key)
        patterns, key = self._settings.part("rank_pattern"), f"{module}.lora_E"
        kept = patterns.get(key)  # which of the initial directions training kept
        patterns.require(key, kept is None or isinstance(kept, list), "a list of true and false")
        return self._settings.whole("init_r") if kept is None else sum(map(bool, kept))

    def _scale(self, module: str, rank: int) -> float:
        """s of this module."""
        if self._kind == "adalora":
            alpha = self._settings.number("lora_alpha")
            self._settings.require("lora_alpha", alpha > 0, "a positive number")
            return alpha / (self._settings.whole("init_r") + 1e-5)
        settings, key = self._of_module("lora_alpha", "alpha_pattern", module)
        return settings.number(key) / (math.sqrt(rank) if self._settings.flag("use_rslora") else rank)

    def _of_module(self, key: str, pattern_key: str, module: str) -> tuple[Settings, str]:
        """Where the module's value stands: under the first pattern that its name ends in, or else under `key`."""
        patterns = self._settings.part(pattern_key)
        for pattern in patterns.values:
            try:
                if re.fullmatch(rf"(.*\.)?({pattern})", module):
                    return patterns, pattern
            except re.error as error:
                raise ValueError(f"{patterns.where}: got {pattern!r}, wanted a regular expression ({error})") from None
        return self._settings, key

    def _where(self, name: str) -> str:
        return f"{self.path}: tensor {name!r}"


def _supported_kind(settings: Settings) -> str:
    """The kind of adapter. ValueError for a setting that asks for anything but low-rank products."""
    kind = settings.choice("peft_type", KINDS)
    for key in UNSUPPORTED:
        settings.require(key, not settings.get(key), "false or null: only low-rank products are merged")
    start = settings.get("init_lora_weights")
    settings.require("init_lora_weights", start in HARMLESS_STARTS, "a start that leaves the base as it is")
    saved = settings.get("modules_to_save", [])
    settings.require("modules_to_save", isinstance(saved, list), "a list of modules")
    return kind

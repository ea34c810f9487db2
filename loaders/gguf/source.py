"""A GGUF file as a `Source`: its metadata as a Hugging Face config, its tensors under their Hugging Face names.

What a GGUF changes is undone here, so that the families see a checkpoint like any other:

- archs "llama" and "granite" store the rows of q and k as adjacent rotation pairs (2i, 2i+1), Hugging Face as halves
  (i, i + D/2): rows (n, D/2, 2) become (n, 2, D/2), with n = H for q and KV for k;
- archs "gemma2" and "gemma3" store norm weights as 1 + w, Hugging Face as w;
- arch "deepseek2" has two tensors for one of Hugging Face's (deepseek.py).

Source: gguf-py/gguf/constants.py and convert_hf_to_gguf.py of github.com/ggml-org/llama.cpp.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, Keys, get_tensor_name_map

from loaders.families import deepseek_v3
from loaders.families.gemma3 import NAMES as GEMMA3_NAMES
from loaders.families.phi3 import NAMES as PHI3_NAMES
from loaders.family import EXPERT_NAMES, LLAMA_NAMES, QK_NORMS
from loaders.gguf.config import LONGROPE_FACTORS, MODEL_TYPES, ROPE_FACTORS, hugging_face_config
from loaders.gguf.deepseek import joined
from loaders.gguf.file import GGUFFile
from loaders.gguf.special import special_ids, tokenizer_config
from loaders.gguf.tokenizer import tokenizer_json
from loaders.settings import Settings
from reference import Int8
from reference.checks import require

OUTER = ("model.embed_tokens", "model.norm", "lm_head")
STACKED = {name.replace(".{}", "") for name in EXPERT_NAMES.values()}  # of all experts (loaders/experts.py)
INNER = {*LLAMA_NAMES.values(), *QK_NORMS.values(), *GEMMA3_NAMES.values(), *STACKED}
OF_DEEPSEEK = {  # of which the table has a last part without ".bias"
    *(name.replace(".{}", "").replace("_bias", ".bias") for name in deepseek_v3.MIXTURE_NAMES.values()),
    *deepseek_v3.NAMES.values(),
    *(f"self_attn.{part}.weight" for part in ("q_proj", "q_b_proj", "kv_a_proj_with_mqa")),
    *(f"self_attn.{part}.weight" for part in ("kv_b_proj", "k_b_proj", "v_b_proj")),
}
PAIRED = ("llama", "granite")  # architectures whose rotation turns neighbours
PASSED_OVER = {"llama": {ROPE_FACTORS}, "phi3": {*LONGROPE_FACTORS.values()}}  # tensors that the config tells of
BIASED = tuple(f".self_attn.{letter}_proj.weight" for letter in "qkvo")


class GGUF:
    """The file as a `Source`. Raises ValueError for a damaged file, an architecture that is not supported, or a tensor
    that the architecture does not have; quantised tensors come out as float32."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = GGUFFile(path)
        self._metadata = Settings(self._file.metadata, str(path))
        self._metadata.choice(Keys.General.ARCHITECTURE, MODEL_TYPES)
        self._arch = self._metadata.get(Keys.General.ARCHITECTURE)
        kind = self._metadata.get(Keys.General.TYPE, "model")
        self._metadata.require(
            Keys.General.TYPE, kind == "model", "model: no adapter, projector or table for quantising"
        )
        whole_file = self._metadata.get(Keys.Split.LLM_KV_SPLIT_COUNT, 1) in (0, 1)
        self._metadata.require(
            Keys.Split.LLM_KV_SPLIT_COUNT, whole_file, "one whole file: llama-gguf-split --merge joins the parts"
        )
        self._names = _first_layer(self._arch)
        passed_over: set[str] = PASSED_OVER.get(self._arch, set())
        stored = [name for name in self._file.shapes if name not in passed_over]
        self._stored = {self._hugging_face_name(name): name for name in stored}
        self._pairs = self._taken_together()
        self.config = hugging_face_config(self._arch, self._metadata, self._file)
        self._zeros = self._absent_biases() if self.config["attention_bias"] else {}

    def names(self) -> list[str]:
        """Every tensor's Hugging Face name."""
        return [*self._stored, *self._pairs, *self._zeros]

    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's shape, without reading it."""
        if name in self._zeros:
            return self._zeros[name].shape
        if name in self._pairs:
            (heads, rank, keys), (_, values, _) = map(self._file.shapes.__getitem__, self._pairs[name])
            return heads * (keys + values), rank
        return self._file.shapes[self._stored_name(name)]

    def tensor(self, name: str, part: int | None = None) -> np.ndarray:
        """The tensor x, or x[part], as a Hugging Face checkpoint holds it: stored floats as they are, quantised ones as
        float32."""
        if name in self._zeros:
            return self._zeros[name]
        if name in self._pairs:
            return joined(*map(self._file.tensor, self._pairs[name]))
        x = self._file.tensor(self._stored_name(name), part)
        if heads := self._paired_heads(name):
            return self._halves(name, x, heads)
        if self._arch in ("gemma2", "gemma3") and name.endswith("norm.weight"):
            return x.astype(np.float32) - 1
        return x

    def eight_bits(self, name: str, part: int | None = None) -> Int8 | None:
        """The matrix, or that part of a stack, as it stands where it is stored as Q8_0."""
        x = None if name in self._zeros or name in self._pairs else self._file.eight_bits(self._stored_name(name), part)
        heads = self._paired_heads(name)
        if x is None or not heads:
            return x
        return x.rows(self._halves(name, np.arange(len(x)), heads))

    def let_go(self) -> None:
        """Keep nothing of the file in memory."""
        self._file.let_go()

    def file_of(self, name: str) -> Path:
        """The one file."""
        return self.path

    def text(self, name: str) -> str | None:
        """tokenizer.json, tokenizer_config.json and generation_config.json, made from the metadata."""
        makers = {
            "tokenizer.json": tokenizer_json,
            "tokenizer_config.json": tokenizer_config,
            "generation_config.json": special_ids,
        }
        made = makers[name](self._metadata) if name in makers else None
        return None if made is None else json.dumps(made, ensure_ascii=False)

    def texts_in(self, folder: str, suffix: str) -> list[str]:
        """None: a GGUF file has no folders."""
        return []

    def _taken_together(self) -> dict[str, tuple[str, str]]:
        """Hugging Face's name of each tensor of which the file has two parts, and their names in the file."""
        found = {}
        for name in [name for name in self._stored if name.endswith(".k_b_proj.weight")]:
            other = name.replace(".k_b_proj.", ".v_b_proj.")
            pair = self._stored_name(name), self._stored_name(other)
            shapes = [self._file.shapes[part] for part in pair]
            alike = all(len(x) == 3 for x in shapes) and shapes[0][:2] == (shapes[1][0], shapes[1][2])
            require(alike, f"{self.path}: tensor {pair[1]!r}: got shape {shapes[1]} beside {shapes[0]} of {pair[0]!r}")
            found[name.replace(".k_b_proj.", ".kv_b_proj.")] = pair
            del self._stored[name], self._stored[other]
        return found

    def _absent_biases(self) -> dict[str, np.ndarray]:
        """Zeros for the biases that the file leaves out beside others that it has: Hugging Face's layers have all four
        or none."""
        maps = {name: stored for name, stored in self._stored.items() if name.endswith(BIASED)}
        absent = {name.removesuffix("weight") + "bias": stored for name, stored in maps.items()}
        rows = {name: self._file.shapes[stored][0] for name, stored in absent.items() if name not in self._stored}
        return {name: np.zeros(count, np.float32) for name, count in rows.items()}

    def _stored_name(self, name: str) -> str:
        require(name in self._stored, f"{self.path}: tensor {name!r}: got no such tensor, wanted it here")
        return self._stored[name]

    def _hugging_face_name(self, stored: str) -> str:
        """blk.7.attn_q.weight -> model.layers.7.self_attn.q_proj.weight."""
        stem, _, kind = stored.rpartition(".")
        in_layer = re.fullmatch(r"blk\.(\d+)\.(.+)", stem)
        first = f"blk.0.{in_layer[2]}" if in_layer else stem
        require(
            first in self._names and kind in ("weight", "bias"),
            f"{self.path}: tensor {stored!r}: got a name that {self._arch!r} has not, wanted one of its own",
        )
        name = self._names[first]
        if in_layer:
            name = name.replace(".0.", f".{in_layer[1]}.", 1)
        return f"{name}.{kind}".replace("e_score_correction.bias", "e_score_correction_bias")

    def _paired_heads(self, name: str) -> int:
        """Heads of a tensor whose rows are stored as adjacent pairs, or 0."""
        if self._arch in PAIRED and ".q_proj." in name:
            return int(self.config["num_attention_heads"])
        return int(self.config["num_key_value_heads"]) if self._arch in PAIRED and ".k_proj." in name else 0

    def _halves(self, name: str, x: np.ndarray, heads: int) -> np.ndarray:
        """Rows of q or k from adjacent pairs to halves: (n·D, …) -> (n·D, …)."""
        require(
            len(x) % (2 * heads) == 0,
            f"{self.path}: tensor {name!r}: got {len(x)} rows, wanted a multiple of 2 for each of {heads} heads",
        )
        pairs = x.reshape(heads, len(x) // heads // 2, 2, *x.shape[1:])  # (n, D/2, 2, …)
        return pairs.swapaxes(1, 2).reshape(x.shape)


def _first_layer(arch: str) -> dict[str, str]:
    """{"token_embd": "model.embed_tokens", "blk.0.attn_q": "model.layers.0.self_attn.q_proj", …} as gguf's table has it
    for an architecture."""
    (known,) = (each for each in MODEL_ARCH if MODEL_ARCH_NAMES[each] == arch)
    table = get_tensor_name_map(known, 1)
    # gguf has one name for up and for Phi-3's gate and up together.
    inner = {"phi3": {*PHI3_NAMES.values()}, "deepseek2": OF_DEEPSEEK}.get(arch, INNER)
    ours = [*OUTER, *(f"model.layers.0.{name.rpartition('.')[0]}" for name in inner)]
    return {stored: name for name in ours if (stored := table.get_name(name)) is not None}

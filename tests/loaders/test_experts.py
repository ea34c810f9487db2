"""Experts as files store them: one tensor each, fused, stacked in a GGUF, and as 8-bit numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType

import reference
from loaders import load_checkpoint
from loaders.gguf import convert
from reference import Int8, Model
from tests.loaders import gguf_files
from tests.loaders.files import draw, write_checkpoint, write_safetensors

RECORDED = np.load(Path(__file__).with_name("families.npz"))
EXPERTS, WIDTH, FFN = 3, gguf_files.WIDTH, 64
SIZES = {
    "hidden_size": WIDTH,
    "num_hidden_layers": gguf_files.LAYERS,
    "num_attention_heads": gguf_files.HEADS,
    "num_key_value_heads": gguf_files.KV_HEADS,
    "head_dim": gguf_files.HEAD_DIM,
    "intermediate_size": FFN,
    "vocab_size": gguf_files.VOCAB,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "rope_theta": 50_000.0,
    "tie_word_embeddings": True,
    "num_experts_per_tok": 2,
    "num_local_experts": EXPERTS,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "mixtral": {**SIZES, "model_type": "mixtral"},
    "qwen3_moe": {**SIZES, "model_type": "qwen3_moe", "moe_intermediate_size": FFN, "norm_topk_prob": True},
}
ARCHS = {"mixtral": "llama", "qwen3_moe": "qwen3moe"}
IDS = np.random.default_rng(0).integers(0, gguf_files.VOCAB, 40)


def tensors(family: str) -> dict[str, np.ndarray]:
    """A small model's tensors, every expert's by themselves."""
    arch = {"mixtral": "llama", "qwen3_moe": "qwen3"}[family]
    found = {name: x for name, x in gguf_files.tensors(arch).items() if ".mlp." not in name}
    for n in range(gguf_files.LAYERS):
        mlp = f"model.layers.{n}.mlp."
        shapes = {f"{mlp}gate.weight": (EXPERTS, WIDTH)}
        for e in range(EXPERTS):
            shapes |= {f"{mlp}experts.{e}.{m}_proj.weight": (FFN, WIDTH) for m in ("gate", "up")}
            shapes[f"{mlp}experts.{e}.down_proj.weight"] = (WIDTH, FFN)
        found |= {name: draw(name, shape) for name, shape in shapes.items()}
    return found


def stacks(apart: dict[str, np.ndarray], *, fused: bool) -> dict[str, np.ndarray]:
    """The same tensors with those of all experts in one: (X, …), fused with gate above up."""
    found = {name: x for name, x in apart.items() if ".experts." not in name}
    for n in range(gguf_files.LAYERS):
        mlp = f"model.layers.{n}.mlp.experts."
        gate, up, down = (
            np.stack([apart[f"{mlp}{e}.{m}_proj.weight"] for e in range(EXPERTS)]) for m in ("gate", "up", "down")
        )
        if fused:
            found |= {f"{mlp}gate_up_proj": np.concatenate([gate, up], axis=1), f"{mlp}down_proj": down}
        else:
            found |= {f"{mlp}{m}_proj.weight": x for m, x in (("gate", gate), ("up", up), ("down", down))}
    return found


def older(apart: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Under the names that Mixtral's own files have."""
    letters = {".gate_proj.": ".w1.", ".down_proj.": ".w2.", ".up_proj.": ".w3.", ".mlp.": ".block_sparse_moe."}
    found = {}
    for name, x in apart.items():
        for ours, theirs in letters.items():
            name = name.replace(ours, theirs)
        found[name] = x
    return found


def gguf(path: Path, family: str, kind: GGMLQuantizationType | None = None) -> Path:
    """The model as a GGUF file, its experts quantised."""
    arch = ARCHS[family]
    names = {theirs: ours for ours, (theirs, _) in gguf_files.names("qwen3", tied=True).items()}
    keys = {key.replace("llama.", f"{arch}."): value for key, value in gguf_files.metadata("llama").items()}
    keys |= {f"{arch}.expert_count": EXPERTS, f"{arch}.expert_used_count": 2, f"{arch}.attention.key_length": 8}
    if family == "qwen3_moe":
        keys[f"{arch}.expert_feed_forward_length"] = FFN
    found = {}
    for name, x in stacks(tensors(family), fused=False).items():
        mlp = name.replace("model.layers.", "blk.").replace(".mlp.gate.", ".ffn_gate_inp.")
        for matrix in ("gate", "up", "down"):
            mlp = mlp.replace(f".mlp.experts.{matrix}_proj.", f".ffn_{matrix}_exps.")
        stored = names.get(name, mlp)
        found[stored] = gguf_files.stored(arch, stored, x)
    kinds = {name: kind for name in found if kind is not None and "_exps" in name}
    return gguf_files.write_gguf(path, arch, {}, keys, kinds=kinds, extra=found)


def logits(path: Path, dtype: str = "float64") -> np.ndarray:
    checkpoint = load_checkpoint(path, dtype=dtype)
    model = Model(checkpoint.config, checkpoint.weights, reference)
    return reference.prefill(model, reference.new_state(model), IDS, every=True)


@pytest.mark.parametrize("family", CONFIGS)
def test_every_storage_is_the_same_model(tmp_path: Path, family: str) -> None:
    apart, config = tensors(family), CONFIGS[family]
    wanted = logits(write_checkpoint(tmp_path / "apart", config, apart))
    fused = write_checkpoint(tmp_path / "fused", config, stacks(apart, fused=True), shards=2)
    np.testing.assert_array_equal(logits(fused), wanted)
    file = gguf(tmp_path / "m.gguf", family)
    np.testing.assert_allclose(logits(file), wanted, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(logits(convert(file, tmp_path / "converted")), logits(file))
    if family == "mixtral":
        np.testing.assert_array_equal(logits(write_checkpoint(tmp_path / "older", config, older(apart))), wanted)


@pytest.mark.parametrize("family", CONFIGS)
def test_experts_of_8_bits_are_read_as_they_stand(tmp_path: Path, family: str) -> None:
    file = gguf(tmp_path / "m.gguf", family, GGMLQuantizationType.Q8_0)
    wide, stored = (load_checkpoint(file, dtype=dtype).weights.layers[1] for dtype in ("float32", "int8"))
    assert isinstance(stored.router, np.ndarray)
    assert stored.router.dtype == np.float32
    for one, other in zip(wide.experts or (), stored.experts or (), strict=True):
        for name, matrix in vars(other).items():
            assert isinstance(matrix, Int8)
            np.testing.assert_array_equal(reference.dequantize(matrix), getattr(one, name))


def test_what_is_missing_or_too_many_is_named(tmp_path: Path) -> None:
    config, apart = CONFIGS["qwen3_moe"], tensors("qwen3_moe")
    name = "model.layers.1.mlp.experts.2.up_proj.weight"
    lacking = write_checkpoint(tmp_path / "lacking", config, {n: x for n, x in apart.items() if n != name})
    with pytest.raises(ValueError, match=f"{name}.*no such tensor"):
        load_checkpoint(lacking)
    more = write_checkpoint(tmp_path / "more", {**config, "num_local_experts": 2}, apart)
    with pytest.raises(ValueError, match=r"experts\.2\..*got a weight that qwen3_moe .* does not have"):
        load_checkpoint(more)
    wide = write_checkpoint(tmp_path / "wide", {**config, "moe_intermediate_size": 48}, apart)
    with pytest.raises(ValueError, match=r"experts\.0\.gate_proj\.weight.*got shape \(64, 32\), wanted \(48, 32\)"):
        load_checkpoint(wide)
    dense = {**config, "model_type": "qwen3"}
    with pytest.raises(ValueError, match="num_local_experts: got 3, wanted false or null"):
        load_checkpoint(write_checkpoint(tmp_path / "dense", dense, apart))


@pytest.mark.parametrize("experts", [10**9, 2**50])
def test_more_experts_than_tensors_is_one_line(tmp_path: Path, experts: int) -> None:
    config = {**CONFIGS["qwen3_moe"], "num_local_experts": experts}
    with pytest.raises(
        ValueError, match=r"got 38 tensors, wanted at least \d+ for the experts that the config tells of"
    ):
        load_checkpoint(write_checkpoint(tmp_path, config, tensors("qwen3_moe")))


def adapted(directory: Path, tensors: dict[str, np.ndarray], names: list[str]) -> dict[str, np.ndarray]:
    """Writes an adapter of these matrices to the directory, and returns all tensors with its products added."""
    factors, changed, rng = {}, dict(tensors), np.random.default_rng(3)
    for name in names:
        out, width = tensors[name].shape
        a, b = rng.standard_normal((2, width)), rng.standard_normal((out, 2)) / 4
        module = f"base_model.model.{name.removesuffix('.weight')}"
        factors |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
        changed[name] = (tensors[name] + 3 / 2 * b @ a).astype(np.float32)
    directory.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "bias": "none", "init_lora_weights": True}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    write_safetensors(directory / "adapter_model.safetensors", factors, dtype="float32")
    return changed


@pytest.mark.parametrize("kind", ["experts", "latents"])
def test_adapters_of_experts_and_of_latents(tmp_path: Path, kind: str) -> None:
    if kind == "experts":  # stored in one tensor
        config, whole = CONFIGS["qwen3_moe"], tensors("qwen3_moe")
        names = ["mlp.experts.1.up_proj", "mlp.experts.2.down_proj", "self_attn.k_proj"]
    else:  # parts of whose tensors are several weights
        config, shapes = (json.loads(str(RECORDED[f"deepseek_v3-latents/{part}"])) for part in ("config", "shapes"))
        whole = {name: draw(name, tuple(shape)) for name, shape in shapes.items()}
        names = ["self_attn.kv_b_proj", "self_attn.q_b_proj", "self_attn.o_proj", "mlp.shared_experts.up_proj"]
    changed = adapted(tmp_path / "adapter", whole, [f"model.layers.1.{name}.weight" for name in names])
    stored = stacks(whole, fused=True) if kind == "experts" else whole
    base = write_checkpoint(tmp_path / "base", config, stored)
    got = load_checkpoint(base, adapter=tmp_path / "adapter").weights.layers[1].arrays()
    wanted = load_checkpoint(write_checkpoint(tmp_path / "changed", config, changed)).weights.layers[1].arrays()
    before = load_checkpoint(base).weights.layers[1].arrays()
    assert sum(not np.array_equal(got[name], before[name]) for name in got) >= len(names)
    for name, array in got.items():
        np.testing.assert_allclose(array, wanted[name], rtol=0, atol=1e-6, err_msg=name)

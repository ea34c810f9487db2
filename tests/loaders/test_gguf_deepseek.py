"""GGUF files of architecture deepseek2 against the checkpoint that they were written from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType

import reference
import thresher
from loaders import load_checkpoint
from loaders.gguf import GGUF, convert
from reference import Model
from tests.loaders import gguf_files
from tests.loaders.files import draw, write_checkpoint

HEADS, PLAIN, TURNED, VALUE, RANK, QUERY, WIDTH, LAYERS, EXPERTS, FFN = 2, 6, 4, 5, 8, 7, 32, 3, 8, 32
CONFIG: dict[str, Any] = {
    "model_type": "deepseek_v3", "vocab_size": 20, "hidden_size": WIDTH, "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS, "num_key_value_heads": HEADS, "intermediate_size": 64, "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6, "rope_theta": 500.0, "tie_word_embeddings": False, "kv_lora_rank": RANK,
    "q_lora_rank": QUERY, "qk_nope_head_dim": PLAIN, "qk_rope_head_dim": TURNED, "v_head_dim": VALUE,
    "first_k_dense_replace": 1, "n_routed_experts": EXPERTS, "num_experts_per_tok": 3, "n_shared_experts": 2,
    "moe_intermediate_size": FFN, "routed_scaling_factor": 2.5, "norm_topk_prob": True, "n_group": 4, "topk_group": 2,
}  # fmt: skip
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "mscale": 0.7, "mscale_all_dim": 0.7}
KINDS: dict[str, dict[str, Any]] = {
    "newer": {},
    "older": {},  # before W_k and W_v were taken apart
    "yarn": {"rope_scaling": YARN},
    "no query latent": {"q_lora_rank": None, "n_group": 1, "topk_group": 1, "norm_topk_prob": False},
    "all mixtures": {"first_k_dense_replace": 0, "n_shared_experts": 0, "routed_scaling_factor": 1.0},
}
IDS = np.random.default_rng(0).integers(0, 20, 30)
# Of a layer: the GGUF's name, the checkpoint's.
NAMES = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_q_a.weight": "self_attn.q_a_proj.weight",
    "attn_q_a_norm.weight": "self_attn.q_a_layernorm.weight",
    "attn_q_b.weight": "self_attn.q_b_proj.weight",
    "attn_kv_a_mqa.weight": "self_attn.kv_a_proj_with_mqa.weight",
    "attn_kv_a_norm.weight": "self_attn.kv_a_layernorm.weight",
    "attn_kv_b.weight": "self_attn.kv_b_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
    "ffn_gate_inp.weight": "mlp.gate.weight",
    "exp_probs_b.bias": "mlp.gate.e_score_correction_bias",
    "ffn_gate_shexp.weight": "mlp.shared_experts.gate_proj.weight",
    "ffn_up_shexp.weight": "mlp.shared_experts.up_proj.weight",
    "ffn_down_shexp.weight": "mlp.shared_experts.down_proj.weight",
}


def tensors(c: dict[str, Any]) -> dict[str, np.ndarray]:
    """A checkpoint's tensors, experts by themselves."""

    def ffn(prefix: str, width: int) -> dict[str, tuple[int, ...]]:
        return {
            f"{prefix}{m}_proj.weight": (WIDTH, width) if m == "down" else (width, WIDTH)
            for m in ("gate", "up", "down")
        }

    query = c["q_lora_rank"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (20, WIDTH), "model.norm.weight": (WIDTH,)}
    shapes["lm_head.weight"] = (20, WIDTH)
    for n in range(LAYERS):
        layer: dict[str, tuple[int, ...]] = {
            "input_layernorm.weight": (WIDTH,),
            "post_attention_layernorm.weight": (WIDTH,),
            "self_attn.kv_a_proj_with_mqa.weight": (RANK + TURNED, WIDTH),
            "self_attn.kv_a_layernorm.weight": (RANK,),
            "self_attn.kv_b_proj.weight": (HEADS * (PLAIN + VALUE), RANK),
            "self_attn.o_proj.weight": (WIDTH, HEADS * VALUE),
        }
        if query is None:
            layer["self_attn.q_proj.weight"] = (HEADS * (PLAIN + TURNED), WIDTH)
        else:
            layer |= {"self_attn.q_a_proj.weight": (query, WIDTH), "self_attn.q_a_layernorm.weight": (query,)}
            layer["self_attn.q_b_proj.weight"] = (HEADS * (PLAIN + TURNED), query)
        if n < c["first_k_dense_replace"]:
            layer |= ffn("mlp.", 64)
        else:
            layer |= {"mlp.gate.weight": (EXPERTS, WIDTH), "mlp.gate.e_score_correction_bias": (EXPERTS,)}
            layer |= ffn("mlp.shared_experts.", FFN * c["n_shared_experts"]) if c["n_shared_experts"] else {}
            for x in range(EXPERTS):
                layer |= ffn(f"mlp.experts.{x}.", FFN)
        shapes |= {f"model.layers.{n}.{name}": shape for name, shape in layer.items()}
    return {name: draw(name, shape) for name, shape in shapes.items()}


def keys(c: dict[str, Any], *, older: bool = False, **changes: Any) -> dict[str, Any]:
    """The metadata as the converter writes them. `changes` replace them (dots written as __); None leaves one out."""
    found = {
        "block_count": LAYERS, "context_length": 256, "embedding_length": WIDTH, "feed_forward_length": 64,
        "attention.head_count": HEADS, "attention.head_count_kv": HEADS if older else 1,
        "attention.layer_norm_rms_epsilon": 1e-6, "rope.freq_base": 500.0, "rope.dimension_count": TURNED,
        "vocab_size": 20, "leading_dense_block_count": c["first_k_dense_replace"], "attention.kv_lora_rank": RANK,
        "attention.q_lora_rank": c["q_lora_rank"], "expert_count": EXPERTS, "expert_used_count": 3,
        "expert_shared_count": c["n_shared_experts"], "expert_feed_forward_length": FFN,
        "expert_weights_scale": c["routed_scaling_factor"], "expert_weights_norm": c["norm_topk_prob"],
        "expert_gating_func": 2,
        "attention.key_length": PLAIN + TURNED if older else RANK + TURNED,
        "attention.value_length": VALUE if older else RANK,
    }  # fmt: skip
    if c["n_group"] > 1:
        found |= {"expert_group_count": c["n_group"], "expert_group_used_count": c["topk_group"]}
    if not older:
        found |= {"attention.key_length_mla": PLAIN + TURNED, "attention.value_length_mla": VALUE}
    if "rope_scaling" in c:
        found |= {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 64}
        found["rope.scaling.yarn_log_multiplier"] = 0.1 * c["rope_scaling"]["mscale_all_dim"]
    found |= {key.replace("__", "."): value for key, value in changes.items()}
    return {f"deepseek2.{key}": value for key, value in found.items() if value is not None}


def write_gguf(
    path: Path,
    whole: dict[str, np.ndarray],
    metadata: dict[str, Any],
    *,
    older: bool = False,
    kind: GGMLQuantizationType | None = None,
) -> Path:
    """The file of these tensors of a checkpoint, its experts quantised."""
    outer = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    stored = {name: whole[ours] for ours, name in {**outer, "lm_head.weight": "output.weight"}.items()}
    for n in range(LAYERS):
        ours = f"model.layers.{n}."
        layer = {name: whole[ours + theirs] for name, theirs in NAMES.items() if ours + theirs in whole}
        if not older:
            of_heads = layer.pop("attn_kv_b.weight").reshape(HEADS, PLAIN + VALUE, RANK)
            layer["attn_k_b.weight"] = np.ascontiguousarray(of_heads[:, :PLAIN].transpose(0, 2, 1))
            layer["attn_v_b.weight"] = np.ascontiguousarray(of_heads[:, PLAIN:])
        for m in ("gate", "up", "down"):
            if f"{ours}mlp.experts.0.{m}_proj.weight" in whole:
                each = [whole[f"{ours}mlp.experts.{x}.{m}_proj.weight"] for x in range(EXPERTS)]
                layer[f"ffn_{m}_exps.weight"] = np.stack(each)
        stored |= {f"blk.{n}.{name}": x for name, x in layer.items()}
    kinds = {name: kind for name in stored if kind is not None and "_exps" in name}
    return gguf_files.write_gguf(path, "deepseek2", {}, metadata, kinds=kinds, extra=stored)


def logits(path: Path) -> np.ndarray:
    checkpoint = load_checkpoint(path, dtype="float64")
    model = Model(checkpoint.config, checkpoint.weights, reference)
    return reference.prefill(model, reference.new_state(model), IDS, every=True)


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_is_the_model_that_it_was_written_from(tmp_path: Path, kind: str) -> None:
    config, older = {**CONFIG, **KINDS[kind]}, kind == "older"
    whole = tensors(config)
    directory = write_checkpoint(tmp_path / "directory", config, whole)
    file = write_gguf(tmp_path / "m.gguf", whole, keys(config, older=older), older=older)
    ours, theirs = load_checkpoint(file), load_checkpoint(directory)
    assert ours.config == theirs.config
    for one, other in zip(ours.weights.layers, theirs.weights.layers, strict=True):
        wanted = other.arrays()
        assert one.arrays().keys() == wanted.keys()
        for name, x in one.arrays().items():
            np.testing.assert_array_equal(x, wanted[name], err_msg=name)
    np.testing.assert_array_equal(logits(file), logits(directory))
    np.testing.assert_array_equal(logits(convert(file, tmp_path / "converted")), logits(directory))
    source = GGUF(file)
    assert all(source.tensor(name).shape == source.shape(name) for name in source.names())


def test_its_quantised_experts_may_stay_on_disk(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "m.gguf", tensors(CONFIG), keys(CONFIG), kind=GGMLQuantizationType.Q8_0)
    for dtype in ("float32", "int8"):
        whole, few = (thresher.load(file, backend="cpu", dtype=dtype, **more) for more in ({}, {"expert_memory": 0}))
        np.testing.assert_array_equal(few.logits(IDS), whole.logits(IDS))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"expert_gating_func": 1}, r"expert_gating_func: got 1, wanted 2: sigmoid scores"),
        ({"expert_gating_func": None}, r"expert_gating_func: got nothing, wanted 2: sigmoid scores"),
        ({"attention__kv_lora_rank": None}, r"kv_lora_rank: got nothing, wanted a whole number"),
        ({"rope__dimension_count": 10}, r"dimension_count: got 10, wanted fewer than the 10 dimensions of a key"),
        ({"nextn_predict_layers": 1}, r"nextn_predict_layers: got 1, wanted it left out"),
        ({"attention__value_length_mla": 4}, r"o_proj.*got shape \(32, 10\), wanted \(32, 8\)"),
        (
            {"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0},
            r"yarn_log_multiplier: got nothing, wanted a positive number beside a scaling of type yarn",
        ),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path: Path, changes: dict[str, Any], line: str) -> None:
    file = write_gguf(tmp_path / "bad.gguf", tensors(CONFIG), keys(CONFIG, **changes))
    with pytest.raises(ValueError, match=rf"bad\.gguf.*{line}") as caught:
        load_checkpoint(file)
    assert "\n" not in str(caught.value)

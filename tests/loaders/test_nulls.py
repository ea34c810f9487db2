"""Keys of a config.json that are null, that mean nothing to the family, or that another family reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import reference
from loaders import load_checkpoint
from loaders.families import family_of
from reference import Model, ModelConfig
from tests.loaders.cases import LATENT, SHAPES

SIZE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 50,
    "max_position_embeddings": 256,
}
WINDOWS = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
OWN: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 8},
    "ministral": {"sliding_window": 8},
    "qwen2": WINDOWS,
    "qwen3": WINDOWS,
    "gemma3_text": {"sliding_window": 8, "query_pre_attn_scalar": 16},
    "smollm3": {},
    "olmo2": {},
    "granite": {"logits_scaling": 2.0, "residual_multiplier": 0.5},
    "gemma2": {"sliding_window": 8, "query_pre_attn_scalar": 16},
    "phi3": {"sliding_window": 8},
    "mixtral": {"sliding_window": 8, "num_local_experts": 4},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12},
    "deepseek_v3": LATENT,
    "axk1": LATENT,
}
KEYS = (
    *("rope_theta", "rope_scaling", "rope_parameters", "rope_local_base_freq", "hidden_act", "hidden_activation"),
    *("rms_norm_eps", "tie_word_embeddings", "layer_types", "attention_bias", "mlp_bias", "max_window_layers"),
    *("use_sliding_window", "query_pre_attn_scalar", "sliding_window_pattern", "no_rope_layers", "num_experts"),
    *("no_rope_layer_interval", "max_position_embeddings", "partial_rotary_factor", "use_bidirectional_attention"),
    *("logits_scaling", "residual_multiplier", "attention_multiplier", "original_max_position_embeddings"),
)


def parse(kind: str, changes: dict[str, Any]) -> ModelConfig:
    family = family_of(kind, "config.json")
    return family.model_config(family.settings({**SIZE, **OWN[kind], **changes}, "config.json"))


def test_every_family_is_tried() -> None:
    assert set(OWN) == set(SHAPES)


@pytest.mark.parametrize("kind", OWN)
@pytest.mark.parametrize("key", KEYS)
def test_null_means_left_out(kind: str, key: str) -> None:
    without = {name: value for name, value in {**SIZE, **OWN[kind]}.items() if name != key}
    family = family_of(kind, "config.json")
    assert parse(kind, {key: None}) == family.model_config(family.settings(without, "config.json"))


@pytest.mark.parametrize(
    ("kind", "changes", "windows"),
    [
        ("mistral", {"sliding_window": None}, (None, None)),
        ("qwen2", {"sliding_window": None}, (None, None)),
        ("qwen3", {"sliding_window": None}, (None, None)),
        ("mistral", {"layer_types": ["full_attention", "sliding_attention"]}, (None, 8)),
        ("mistral", {}, (8, 8)),
    ],
)
def test_a_window_that_is_null_is_none(kind: str, changes: dict[str, Any], windows: tuple) -> None:
    assert parse(kind, changes).windows == windows


def test_null_in_place_of_a_number_of_heads() -> None:
    assert parse("mistral", {"num_key_value_heads": None}).kv_heads == 4
    assert parse("llama", {"head_dim": None, "num_attention_heads": 2}).head_dim == 16


LIVE: list[tuple[str, dict[str, Any]]] = [
    ("gemma3_text", {"rope_theta": None}),
    ("gemma3_text", {"hidden_act": None}),
    ("gemma3_text", {"hidden_act": "gelu"}),  # it reads hidden_activation
    ("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": 2.0}),
    ("gemma2", {"attn_logit_softcapping": 1.0, "final_logit_softcapping": None, "layer_types": None}),
    ("qwen2", {"sliding_window": None}),
    ("qwen3", {"sliding_window": None}),
    ("qwen2", {"attention_bias": True}),
    ("mistral", {"attention_bias": True}),
    ("ministral", {"attention_bias": True}),
    ("phi3", {"attention_bias": True, "sliding_window": None}),
    ("mistral", {"layer_types": ["full_attention", "sliding_attention"]}),
    ("llama", {"rope_theta": None, "rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}}),
    ("llama", {"rope_scaling": {}, "rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}}),
    ("llama", {"rope_theta": 10_000.0, "rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}}),
    ("qwen2", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "rope_parameters": {"rope_theta": 500.0}}),
    ("llama", {"head_dim": None, "num_key_value_heads": None, "rope_scaling": None}),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "changes"), LIVE)
def test_logits_are_those_of_transformers(kind: str, changes: dict[str, Any], tmp_path: Path) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    ids = np.random.default_rng(0).integers(0, 50, 40)
    text = json.dumps({"model_type": kind, "pad_token_id": 0, **SIZE, **OWN[kind], **changes})
    (tmp_path / "config.json").write_text(text)
    torch.manual_seed(0)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval().float()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.2)
    with torch.no_grad():
        wanted = model(torch.from_numpy(ids)[None]).logits[0].numpy()
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(text)  # as it was written by hand
    checkpoint = load_checkpoint(tmp_path)
    ours = Model(checkpoint.config, checkpoint.weights, reference)
    got = reference.prefill(ours, reference.new_state(ours), ids, every=True)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())

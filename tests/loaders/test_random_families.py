"""Random small models of random families against transformers, live: whatever `cases` did not think of."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from loaders import load_checkpoint
from reference import Model
from tests.loaders.cases import SCALINGS

LENGTH, VOCAB = 60, 31
LEAST = 8  # width: a norm over one or two numbers near zero makes rounding differences large
FAMILIES = (
    *("llama", "mistral", "ministral", "qwen2", "qwen3", "gemma3_text", "smollm3"),
    *("mixtral", "qwen3_moe", "deepseek_v3", "axk1"),
)
LATENT = ("deepseek_v3", "axk1")
EXAMPLES = int(os.environ.get("THRESHER_RANDOM_MODELS", "25"))


def number(least: float, most: float) -> st.SearchStrategy[float]:
    return st.floats(least, most).map(lambda x: round(x, 3))


@st.composite
def rotations(draw: Any) -> dict[str, Any]:
    """`rope_parameters` of one kind of layer."""
    kind = draw(st.sampled_from(["default", *SCALINGS]))
    rotation = {"rope_type": kind, "rope_theta": draw(number(50, 1e6))}
    if kind != "default":
        rotation["factor"] = draw(number(1, 9))
    if kind in ("llama3", "yarn"):
        rotation["original_max_position_embeddings"] = draw(st.integers(8, 64))
    if kind == "llama3":
        low = draw(number(0.2, 3))
        rotation |= {"low_freq_factor": low, "high_freq_factor": low + draw(number(0.2, 5))}
    if kind == "yarn":
        slow = draw(number(0.05, 1.2))
        rotation |= {"beta_slow": slow, "beta_fast": slow + draw(number(0.5, 32))}
        rotation |= draw(st.sampled_from([{}, {"attention_factor": 0.8}, {"mscale": 1.3, "mscale_all_dim": 0.4}]))
    return rotation


@st.composite
def configs(draw: Any) -> tuple[str, dict[str, Any]]:
    """A family and arguments for its config class."""
    family = draw(st.sampled_from(FAMILIES))
    kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 8))
    rotation, window = draw(rotations()), draw(st.integers(1, LENGTH + 10))
    config = {
        "num_hidden_layers": draw(st.integers(1, 3)),
        "num_attention_heads": kv_heads * group,
        "num_key_value_heads": kv_heads,
        "head_dim": 2 * draw(st.integers(2, 10)),
        "hidden_size": kv_heads * group * draw(st.integers(-(-LEAST // (kv_heads * group)), 16)),
        "intermediate_size": draw(st.integers(LEAST, 40)),
        "vocab_size": VOCAB,
        "max_position_embeddings": draw(st.integers(20, 64)) if rotation["rope_type"] == "dynamic" else 64,
        "rms_norm_eps": draw(st.sampled_from([1e-6, 1e-3])),
        "tie_word_embeddings": draw(st.booleans()),
        "rope_parameters": rotation,
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id")),
    }
    if family not in ("mistral", "ministral", "qwen2", "mixtral"):
        config["attention_bias"] = draw(st.booleans())
    if family not in ("llama", *LATENT):
        config["sliding_window"] = window
    if family in ("mistral", "mixtral"):
        config["sliding_window"] = draw(st.sampled_from([None, window]))
    if family in ("qwen2", "qwen3", "qwen3_moe", "smollm3"):
        config["use_sliding_window"] = draw(st.booleans())
    if family in ("qwen2", "qwen3"):
        config["max_window_layers"] = draw(st.integers(0, 3))
    if family == "smollm3":
        config["no_rope_layer_interval"] = draw(st.integers(1, 4))
    if family == "gemma3_text":
        local = {"rope_type": "default", "rope_theta": draw(number(50, 1e5))}
        config["rope_parameters"] = {"full_attention": rotation, "sliding_attention": local}
        config |= {"sliding_window_pattern": draw(st.integers(1, 4)), "query_pre_attn_scalar": draw(st.integers(1, 64))}
    if family in ("mixtral", "qwen3_moe"):
        config |= draw(experts(family))
    if family in LATENT:
        del config["head_dim"]
        config |= draw(latents(family, config["num_hidden_layers"]))
        config["num_key_value_heads"] = config["num_attention_heads"]
    return family, config


@st.composite
def experts(draw: Any, family: str) -> dict[str, Any]:
    """A mixture of experts with a softmax router."""
    count = draw(st.integers(1, 9))
    config = {"num_local_experts": count, "num_experts_per_tok": draw(st.integers(1, count))}
    if family == "qwen3_moe":
        config |= {"norm_topk_prob": draw(st.booleans()), "decoder_sparse_step": draw(st.integers(1, 3))}
        config |= {"mlp_only_layers": draw(st.sampled_from([[], [0], [1, 2]]))}
        config |= {"moe_intermediate_size": draw(st.integers(LEAST, 24))}
    return config


@st.composite
def latents(draw: Any, family: str, layers: int) -> dict[str, Any]:
    """Latent attention, and a mixture with groups."""
    groups, each = draw(st.integers(1, 3)), draw(st.integers(2, 4))
    kept = draw(st.integers(1, groups))
    config = {
        "n_routed_experts": groups * each,
        "n_group": groups,
        "topk_group": kept,
        "num_experts_per_tok": draw(st.integers(1, kept * each)),
        "n_shared_experts": draw(st.integers(1, 2)),
        "moe_intermediate_size": draw(st.integers(LEAST, 24)),
        "norm_topk_prob": draw(st.booleans()),
        "routed_scaling_factor": draw(number(0.5, 3)),
        "q_lora_rank": draw(st.integers(LEAST, 24)),
        "kv_lora_rank": draw(st.integers(LEAST, 24)),
        "qk_rope_head_dim": 2 * draw(st.integers(2, 8)),
        "qk_nope_head_dim": draw(st.integers(1, 12)),
        "v_head_dim": draw(st.integers(1, 30)),
        "rope_interleave": draw(st.booleans()),
    }
    if family == "axk1":
        kinds = st.lists(st.sampled_from(["dense", "sparse"]), min_size=layers, max_size=layers)
        return config | {"mlp_layer_types": draw(kinds)}
    query = draw(st.sampled_from([None, config["q_lora_rank"]]))
    return config | {"first_k_dense_replace": draw(st.integers(0, 3)), "q_lora_rank": query}


@pytest.fixture(scope="module")
def engine() -> Any:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from tests.loaders import record_families

    return record_families


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@settings(max_examples=EXAMPLES, deadline=None)
@given(case=configs(), seed=st.integers(0, 2**32 - 1))
def test_random_model(
    engine: Any, tmp_path_factory: pytest.TempPathFactory, case: tuple[str, dict[str, Any]], seed: int
) -> None:
    family, config = case
    directory = tmp_path_factory.mktemp("model")
    theirs = engine.random_model(family, config, seed)
    theirs.save_pretrained(directory)
    checkpoint = load_checkpoint(directory)
    ids = np.random.default_rng(seed).integers(0, VOCAB, min(LENGTH, checkpoint.config.max_positions))
    model = Model(checkpoint.config, checkpoint.weights, reference)
    logits = reference.prefill(model, reference.new_state(model), ids, every=True, chunk=17)
    wanted = engine.logits(theirs, ids)
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())

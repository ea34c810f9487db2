"""Random small models of random families against transformers, live: whatever `cases` did not think of. Many more of
them: `python -m tests.soak families`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from accel import cpu
from loaders import load_checkpoint
from reference import Model
from tests.loaders.cases import SCALINGS

LENGTH, VOCAB = 60, 31
LEAST = 8  # width: a norm over one or two numbers near zero makes rounding differences large
FAMILIES = (
    *("llama", "mistral", "ministral", "qwen2", "qwen3", "smollm3"),
    *("gemma2", "gemma3_text", "olmo2", "granite", "phi3"),
    *("mixtral", "qwen3_moe", "deepseek_v3", "axk1"),
)
LATENT = ("deepseek_v3", "axk1")
CAPS = st.none() | st.sampled_from([0.5, 3.0])


def number(least: float, most: float) -> st.SearchStrategy[float]:
    return st.floats(least, most).map(lambda x: round(x, 3))


@st.composite
def rotations(draw: Any, family: str, pairs: int) -> dict[str, Any]:
    """`rope_parameters` of one kind of layer, of whose heads so many pairs turn."""
    kind = draw(st.sampled_from(["default", "longrope"] if family == "phi3" else ["default", "longrope", *SCALINGS]))
    rotation = {"rope_type": kind, "rope_theta": draw(number(50, 1e6))}
    if kind != "default":
        rotation["factor"] = draw(number(1, 9))
    if kind == "longrope":
        lists = st.lists(number(1, 8), min_size=pairs, max_size=pairs)
        rotation |= {"short_factor": draw(lists), "long_factor": draw(lists)}
        rotation |= draw(st.sampled_from([{}, {"attention_factor": 1.1}]))
    if kind in ("llama3", "yarn", "longrope"):
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
    head_dim = 2 * draw(st.integers(2, 10))
    share = draw(st.sampled_from([1.0, 0.5])) if family == "phi3" and head_dim % 4 == 0 else 1.0
    rotation = draw(rotations(family, int(head_dim * share) // 2))
    window = draw(st.integers(1, LENGTH + 10))
    config = {
        "num_hidden_layers": draw(st.integers(1, 3)),
        "num_attention_heads": kv_heads * group,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "hidden_size": kv_heads * group * draw(st.integers(-(-LEAST // (kv_heads * group)), 16)),
        "intermediate_size": draw(st.integers(LEAST, 40)),
        "vocab_size": VOCAB,
        "max_position_embeddings": draw(st.integers(20, 64)) if rotation["rope_type"] == "dynamic" else 64,
        "rms_norm_eps": draw(st.sampled_from([1e-6, 1e-3])),
        "tie_word_embeddings": draw(st.booleans()),
        "rope_parameters": rotation,
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id")),
    }
    if family not in ("mistral", "ministral", "qwen2", "phi3", "mixtral"):
        config["attention_bias"] = draw(st.booleans())
    if family not in ("llama", "olmo2", "granite", *LATENT):
        config["sliding_window"] = window
    if family in ("mistral", "phi3", "mixtral"):
        config["sliding_window"] = draw(st.sampled_from([None, window]))
    if family in ("qwen2", "qwen3", "qwen3_moe", "smollm3"):
        config["use_sliding_window"] = draw(st.booleans())
    if family in ("qwen2", "qwen3"):
        config["max_window_layers"] = draw(st.integers(0, 3))
    if family == "phi3":  # its config class reckons with E / H alone
        config["hidden_size"] = config["num_attention_heads"] * head_dim
        config["original_max_position_embeddings"] = rotation.get("original_max_position_embeddings", 64)
        rotation["partial_rotary_factor"] = share
    if family == "granite":
        factors = "embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling"
        config |= {factor: draw(number(0.1, 4)) for factor in factors}
    if family == "gemma2":
        config |= {"query_pre_attn_scalar": draw(st.integers(1, 64)), "attn_logit_softcapping": draw(CAPS)}
    if family in ("gemma2", "gemma3_text"):
        config["final_logit_softcapping"] = draw(CAPS)
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
        pairs = config["qk_rope_head_dim"] // 2
        for name in {"short_factor", "long_factor"} & set(rotation):  # one for each pair that turns
            rotation[name] = (rotation[name] * pairs)[:pairs]
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


def check(engine: Any, directory: Path, case: tuple[str, dict[str, Any]], seed: int) -> None:
    """The logits of a random model are transformers': by the reference in chunks, by the CPU's kernels in one."""
    family, config = case
    theirs = engine.random_model(family, config, seed)
    theirs.save_pretrained(directory)
    checkpoint = load_checkpoint(directory)
    ids = np.random.default_rng(seed).integers(0, VOCAB, min(LENGTH, checkpoint.config.max_positions))
    wanted = engine.logits(theirs, ids)
    for backend, chunk in ((reference, 17), (cpu, LENGTH)):
        model = Model(checkpoint.config, backend.prepare_weights(checkpoint.weights), backend)
        logits = reference.prefill(model, reference.new_state(model), ids, every=True, chunk=chunk)
        np.testing.assert_allclose(logits, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())


@pytest.fixture(scope="module")
def engine() -> Any:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from tests.loaders import record_families

    return record_families


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@settings(max_examples=25, deadline=None)
@given(case=configs(), seed=st.integers(0, 2**32 - 1))
def test_random_model(
    engine: Any, tmp_path_factory: pytest.TempPathFactory, case: tuple[str, dict[str, Any]], seed: int
) -> None:
    check(engine, tmp_path_factory.mktemp("model"), case, seed)

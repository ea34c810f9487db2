"""Random small models of random families against transformers, live: whatever `cases` did not think of."""

from __future__ import annotations

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
FAMILIES = ("llama", "mistral", "ministral", "qwen2", "qwen3", "gemma3_text", "smollm3")


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
    if family not in ("mistral", "ministral", "qwen2"):
        config["attention_bias"] = draw(st.booleans())
    if family != "llama":
        config["sliding_window"] = window
    if family == "mistral":
        config["sliding_window"] = draw(st.sampled_from([None, window]))
    if family in ("qwen2", "qwen3", "smollm3"):
        config["use_sliding_window"] = draw(st.booleans())
    if family in ("qwen2", "qwen3"):
        config["max_window_layers"] = draw(st.integers(0, 3))
    if family == "smollm3":
        config["no_rope_layer_interval"] = draw(st.integers(1, 4))
    if family == "gemma3_text":
        local = {"rope_type": "default", "rope_theta": draw(number(50, 1e5))}
        config["rope_parameters"] = {"full_attention": rotation, "sliding_attention": local}
        config |= {"sliding_window_pattern": draw(st.integers(1, 4)), "query_pre_attn_scalar": draw(st.integers(1, 64))}
    return family, config


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

"""Every family against transformers: its logits and greedy tokens as recorded, and live where it is installed."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import reference
from accel import cpu
from loaders import load_checkpoint
from loaders.families import FAMILIES, family_of
from reference import Model, ModelConfig, Policy, Rope
from tests.loaders.cases import CASES, NEW, PROMPT, ROWS, SCALED, SCALINGS, norm_offset, prompt, shape
from tests.loaders.files import LLAMA, draw, llama_tensors, write_checkpoint

RECORDED = np.load(Path(__file__).with_name("families.npz"))
NORMS = ("attention_norm", "post_attention_norm", "ffn_norm", "post_ffn_norm", "q_norm", "k_norm")
CHUNK = 32  # so that chunks end inside the prompt and inside windows


def run(
    directory: Path, ids: np.ndarray, backend: ModuleType = reference, chunk: int = CHUNK
) -> tuple[np.ndarray, list[int]]:
    """What `transformers` did in the recording: logits after every token of the prompt, then NEW greedy tokens."""
    checkpoint = load_checkpoint(directory)
    model = Model(checkpoint.config, backend.prepare_weights(checkpoint.weights), backend)
    state = reference.new_state(model)
    logits = backend.to_numpy(reference.prefill(model, state, ids, every=True, chunk=chunk))
    greedy: list[int] = []
    for _ in range(NEW):
        greedy.append(int(backend.to_numpy(state.logits).argmax()))
        reference.decode(model, [state], greedy[-1:])
    return logits, greedy


def parse(config: dict[str, Any]) -> ModelConfig:
    family = family_of(config["model_type"], "config.json")
    return family.model_config(family.settings(config, "config.json"))


def check_recorded(case: str, folder: Path, *runs: tuple[ModuleType, int]) -> None:
    """A backend, reading in chunks of so many tokens, gives the logits and greedy tokens that were recorded."""
    config, shapes = (json.loads(str(RECORDED[f"{case}/{part}"])) for part in ("config", "shapes"))
    offset = norm_offset(config["model_type"])
    tensors = {name: draw(name, tuple(shape), norm_offset=offset) for name, shape in shapes.items()}
    directory, wanted = write_checkpoint(folder, config, tensors), RECORDED[f"{case}/logits"]
    for backend, chunk in runs:
        logits, greedy = run(directory, prompt(config), backend, chunk)
        np.testing.assert_allclose(logits[ROWS], wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())
        assert greedy == RECORDED[f"{case}/greedy"].tolist()


@pytest.mark.parametrize("case", CASES)
def test_equals_recorded(case: str, tmp_path: Path) -> None:
    """By the reference in chunks, and by the CPU's kernels in one."""
    check_recorded(case, tmp_path, (reference, CHUNK), (cpu, PROMPT))


def test_a_release_of_axk1_may_leave_out_what_it_does_not_need(tmp_path: Path) -> None:
    """The bias of its router, which is then zero; and it may bring a norm that a dense layer does not use."""
    config, shapes = (json.loads(str(RECORDED[f"axk1-latents/{part}"])) for part in ("config", "shapes"))
    tensors = {name: draw(name, tuple(shape)) for name, shape in shapes.items()}
    zeroed = {name: np.zeros_like(x) if name.endswith("correction_bias") else x for name, x in tensors.items()}
    wanted, _ = run(write_checkpoint(tmp_path / "zeros", config, zeroed), prompt(config))
    lacking = {name: x for name, x in tensors.items() if not name.endswith("correction_bias")}
    lacking["model.layers.0.post_mlp_layernorm.weight"] = np.ones(config["hidden_size"], np.float32)
    older = {**config, "model_type": "AXK1"}
    np.testing.assert_array_equal(run(write_checkpoint(tmp_path / "older", older, lacking), prompt(config))[0], wanted)


@pytest.fixture(scope="module")
def transformers_engine() -> Any:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from tests.loaders import record_families

    return record_families


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("case", CASES)
def test_equals_transformers(case: str, transformers_engine: Any, tmp_path: Path) -> None:
    family, config = CASES[case]
    theirs, _ = transformers_engine.build(family, config, tmp_path)
    wanted, wanted_greedy = transformers_engine.run(theirs, prompt(config))
    logits, greedy = run(tmp_path / "model", prompt(config))
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())
    assert greedy == wanted_greedy


@pytest.mark.parametrize("case", CASES)
def test_sparse_config_means_what_transformers_makes_of_it(case: str) -> None:
    """A config.json with few keys, in the older or the newer layout, against the full one that transformers saved."""
    family, config = CASES[case]
    full = json.loads(str(RECORDED[f"{case}/config"]))
    assert parse({"model_type": family, **config}) == parse(full)


def test_every_rotation_is_recorded_for_every_family() -> None:
    for family in SCALED:
        parsed = {parse(json.loads(str(RECORDED[f"{family}-{name}/config"]))).ropes for name in SCALINGS}
        assert {rope.scaling for ropes in parsed for rope in ropes if rope} >= set(SCALINGS)


@pytest.mark.parametrize(
    ("case", "windows"),
    [
        ("mistral-window", [7, 7]),
        ("qwen2-windows", [None, 9, 9]),
        ("qwen3-windows", [None, None, 9]),
        ("gemma3_text-pattern", [11, 11, 11, 11, 11, None, 11]),
        ("smollm3-windows", [None, 8, None, 8]),
    ],
)
def test_windowed_layers_hold_only_their_window(case: str, windows: list[int | None], tmp_path: Path) -> None:
    config, shapes = (json.loads(str(RECORDED[f"{case}/{part}"])) for part in ("config", "shapes"))
    tensors = {name: draw(name, tuple(shape)) for name, shape in shapes.items()}
    checkpoint = load_checkpoint(write_checkpoint(tmp_path, config, tensors))
    model = Model(checkpoint.config, checkpoint.weights, reference)
    state = reference.new_state(model)
    reference.prefill(model, state, prompt(config), chunk=CHUNK)
    sizes = [PROMPT if window is None else window for window in windows]
    assert state.cache.sizes == sizes
    c = checkpoint.config
    per_token = c.kv_heads * (2 * c.head_dim * 4 + 8)  # float32 keys and values, int64 positions
    assert state.cache.nbytes == sum(sizes) * per_token
    for window, positions in zip(windows, state.positions, strict=True):
        np.testing.assert_array_equal(positions[0], np.arange(PROMPT)[-(window or PROMPT) :])


def test_policies_leave_windowed_layers_alone(tmp_path: Path) -> None:
    """Gemma's sixth layer is the one without a window: below it nothing changes, and it alone keeps a budget."""
    config, shapes = (json.loads(str(RECORDED[f"gemma3_text-pattern/{part}"])) for part in ("config", "shapes"))
    tensors = {name: draw(name, tuple(shape)) for name, shape in shapes.items()}
    checkpoint = load_checkpoint(write_checkpoint(tmp_path, config, tensors))
    model = Model(checkpoint.config, checkpoint.weights, reference)
    policy = Policy(select=reference.Quoka(budget=8), evict=reference.KeyDiff(budget=20))
    states = [reference.new_state(model), reference.new_state(model, policy)]
    for state in states:
        reference.prefill(model, state, prompt(config), chunk=CHUNK)
    dense, thin = (state.cache.layers for state in states)
    assert [layer.size for layer in thin] == [11, 11, 11, 11, 11, 20, 11]
    for n in range(5):
        np.testing.assert_array_equal(thin[n].k, dense[n].k)
        np.testing.assert_array_equal(thin[n].positions, dense[n].positions)


def test_smollm3_leaves_every_fourth_layer_unrotated() -> None:
    config = parse({"model_type": "smollm3", **shape(8, 4, 2, None)})
    assert [rope is None for rope in config.ropes] == [False, False, False, True] * 2
    assert config.ropes[0] == Rope(2_000_000.0)


def test_gemma_norms_are_offset_in_float32(tmp_path: Path) -> None:
    """1 + w of a small bfloat16 w would round to 1 in bfloat16."""
    config, shapes = (json.loads(str(RECORDED[f"gemma3_text-pattern/{part}"])) for part in ("config", "shapes"))
    tensors = {name: np.full(shape, 2.0**-10, np.float32) for name, shape in shapes.items()}
    weights = load_checkpoint(write_checkpoint(tmp_path, config, tensors, dtype="bfloat16"), dtype="bfloat16").weights
    norms = [weights.final_norm, *(getattr(weights.layers[0], name) for name in NORMS)]
    for norm in norms:
        np.testing.assert_array_equal(norm, np.full_like(norm, 1 + 2.0**-10, dtype=np.float32))
    assert weights.layers[0].w_q.dtype.name == "bfloat16"
    assert weights.layers[0].w_q[0, 0] == 2.0**-10


def test_gemma3_4b_as_published() -> None:
    """google/gemma-3-4b-it writes few keys; the figures are those of its model card and technical report."""
    text = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    config = parse({"model_type": "gemma3", "text_config": text, "vision_config": {"hidden_size": 1152}})
    assert (config.heads, config.kv_heads, config.head_dim, config.vocab_size) == (8, 4, 256, 262_208)
    assert config.windows == ((1024,) * 5 + (None,)) * 5 + (1024,) * 4
    assert config.ropes[5] == Rope(1_000_000.0, "linear", 8.0, 131_072)
    assert config.ropes[0] == Rope(10_000.0)
    assert (config.attention_scale, config.embedding_scale) == (1 / 16, 2560**0.5)
    assert config.tied


def test_llama_31_8b_as_published() -> None:
    config = parse(
        {
            "model_type": "llama",
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 128_256,
            "max_position_embeddings": 131_072,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500_000.0,
            "rope_scaling": {
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            },
        }
    )
    assert (config.head_dim, config.group, config.max_positions) == (128, 4, 131_072)
    assert config.ropes[0] == Rope(500_000.0, "llama3", 8.0, 8192)


@pytest.mark.parametrize(
    ("scaling", "written", "reach"),
    [
        ({"rope_type": "linear", "factor": 4.0}, 2048, 8192),
        ({"rope_type": "dynamic", "factor": 2.0}, 2048, 4096),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}, 40960, 131_072),
        ({"rope_type": "yarn", "factor": 4.0}, 32768, 131_072),
        ({**SCALINGS["llama3"], "factor": 32.0, "original_max_position_embeddings": 8192}, 131_072, 131_072),
    ],
)
def test_positions_that_a_scaled_rotation_reaches(scaling: dict[str, Any], written: int, reach: int) -> None:
    config = {**LLAMA, "max_position_embeddings": written, "rope_scaling": scaling}
    assert parse(config).max_positions == reach


def test_every_module_of_families_is_registered() -> None:
    llamas = {"llama", "mistral", "ministral", "qwen2", "qwen3", "smollm3"}
    others = {"gemma2", "gemma3", "gemma3_text", "granite", "olmo2", "phi3"}
    assert set(FAMILIES) == llamas | others | {"mixtral", "qwen3_moe", "deepseek_v3", "axk1", "AXK1"}


@pytest.mark.parametrize("model_type", ["mamba", None, 7])
def test_unknown_family_lists_those_supported(model_type: Any, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, {**LLAMA, "model_type": model_type}, {})
    wanted = rf"config.json: model_type: got {model_type!r}, wanted .* gemma3, .*llama, ministral, mistral, mixtral, "
    with pytest.raises(ValueError, match=wanted):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"mlp_bias": True}, "mlp_bias: got True, wanted false"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping: got 50.0, wanted"),
        ({"quantization_config": {"bits": 4}}, "quantization_config: got {'bits': 4}, wanted"),
        ({"num_experts": 8}, "num_experts: got 8, wanted"),
        ({"hidden_act": "relu"}, "hidden_act: got 'relu', wanted one of silu"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor: got 0.5, wanted 1"),
        (
            {"rope_scaling": {"rope_type": "proportional"}},
            "rope_scaling: rope_type: got 'proportional', wanted one of default, ",
        ),
        ({"rope_scaling": {"rope_type": "longrope"}}, "rope_scaling: short_factor: got nothing, wanted a list of"),
        (
            {"model_type": "phi3", "rope_scaling": {"type": "su", "short_factor": [1.0], "long_factor": [2.0] * 3}},
            "rope short_factors: got 1 of them, wanted 3, one for each pair",
        ),
        ({"model_type": "phi3", "rope_scaling": {"type": "linear"}}, "type: got 'linear', wanted one of default, long"),
        ({"model_type": "phi3", "partial_rotary_factor": 1.5}, "partial_rotary_factor: got 1.5, wanted a number above"),
        ({"model_type": "phi3", "partial_rotary_factor": 0.5}, "head_dim: got 6, wanted an even number that rotate"),
        ({"model_type": "granite", "logits_scaling": 0}, "logits_scaling: got 0, wanted a number other than 0"),
        ({"rope_scaling": {"type": "su"}}, "rope_scaling: type: got 'su', wanted one of default, linear, dynamic, "),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling: factor: got nothing, wanted a finite number"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0.5}}, "factor: got 0.5, wanted a number of at least 1"),
        ({"rope_scaling": [2.0]}, r"rope_scaling: got \[2.0\], wanted an object"),
        ({"rope_theta": -1.0}, "rope_theta: got -1.0, wanted a positive number"),
        ({"rope_theta": "many"}, "rope_theta: got 'many', wanted a finite number"),
        ({"hidden_size": None}, "hidden_size: got nothing, wanted a whole number of at least 1"),
        (
            {"num_hidden_layers": 10**12},
            "num_hidden_layers: got 1000000000000, wanted a whole number of at most 100000",
        ),
        ({"hidden_size": 10**400}, "hidden_size: got 1000.*, wanted a whole number of at most 9007199254740992"),
        ({"rope_theta": 10**400}, "rope_theta: got 1000.*, wanted a finite number"),
        ({"num_hidden_layers": 0}, "num_hidden_layers: got 0, wanted a whole number of at least 1"),
        ({"num_key_value_heads": 3}, "heads: got 4, wanted a multiple of kv_heads = 3"),
        ({"head_dim": None, "hidden_size": 25}, "hidden_size: got 25, wanted a multiple of num_attention_heads = 4"),
        ({"head_dim": 7}, "head_dim: got 7, wanted an even number"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings: got 'yes', wanted true or false"),
        ({"model_type": "qwen3", "layer_types": ["full_attention"]}, "layer_types: got 1 entries, wanted 2"),
        ({"model_type": "qwen3", "layer_types": ["chunked", "full_attention"]}, "layer_types: got .* wanted a list of"),
        ({"model_type": "smollm3", "no_rope_layers": [1]}, r"no_rope_layers: got \[1\], wanted a list of 0 and 1"),
        ({"model_type": "gemma3_text", "attn_logit_softcapping": 30.0}, "attn_logit_softcapping: got 30.0, wanted"),
        (
            {"model_type": "gemma3", "text_config": {**LLAMA, "final_logit_softcapping": 30.0}},
            "final_logit_softcapping: got 30.0, wanted false or null: the forward pass",  # transformers leaves it out
        ),
        ({"model_type": "gemma2", "final_logit_softcapping": 0}, "logit_cap: got 0.0, wanted a positive number"),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, "use_bidirectional_attention: got True"),
        ({"model_type": "gemma3", "text_config": 3}, "text_config: got 3, wanted an object"),
        ({"model_type": "qwen3_moe", "mlp_only_layers": 1}, "mlp_only_layers: got 1, wanted a list of layers"),
        ({"model_type": "mixtral", "num_experts_per_tok": 9}, "chosen: got 9 experts per token, wanted at most the 8"),
        ({"model_type": "axk1", "n_group": 7}, "config.json: groups: got 7, wanted a number that divides 192"),
        ({"model_type": "deepseek_v3", "scoring_func": "softmax"}, "scoring_func: got 'softmax', wanted sigmoid"),
        ({"model_type": "deepseek_v3", "kv_lora_rank": 0}, "kv_lora_rank: got 0, wanted a whole number"),
        (
            {"model_type": "deepseek_v3", "qk_rope_head_dim": 3},
            "config.json: rotated: got 3 dimensions, wanted an even",
        ),
        ({"model_type": "axk1", "mlp_layer_types": ["sparse"]}, "mlp_layer_types: got .* wanted a list of sparse or"),
        ({"model_type": "axk1", "quantization_config": {"quant_method": "fp8"}}, "quantization_config: got .*fp8"),
    ],
)
def test_what_is_not_supported_is_named(change: dict[str, Any], wanted: str) -> None:
    with pytest.raises(ValueError, match=wanted):
        parse({**LLAMA, **change})


@pytest.mark.parametrize("key", ["hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size"])
def test_missing_key_is_named(key: str) -> None:
    with pytest.raises(ValueError, match=f"config.json: {key}: got nothing, wanted a whole number"):
        parse({name: value for name, value in LLAMA.items() if name != key})


def test_biases_that_the_config_does_not_tell_of_are_refused(tmp_path: Path) -> None:
    name = "model.layers.1.self_attn.q_proj.bias"
    tensors = {**llama_tensors(), name: np.zeros(24, np.float32)}
    with pytest.raises(ValueError, match=f"model.safetensors: tensor '{name}': got a weight that llama"):
        load_checkpoint(write_checkpoint(tmp_path, LLAMA, tensors))


def test_stored_rotation_frequencies_are_passed_over(tmp_path: Path) -> None:
    tensors = {**llama_tensors(), "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(3, np.float32)}
    assert load_checkpoint(write_checkpoint(tmp_path, LLAMA, tensors)).config.layers == 2

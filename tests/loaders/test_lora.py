"""Adapters: the merged weights are the formula's, and an adapter that does not fit is one clear line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from loaders import load_checkpoint
from reference import Model
from tests.loaders.files import LLAMA, llama_tensors, write_checkpoint, write_safetensors

MODULES = {  # of the small Llama: (out, in)
    "model.layers.0.self_attn.q_proj": (24, 24),
    "model.layers.1.self_attn.v_proj": (12, 24),
    "model.layers.1.mlp.down_proj": (24, 40),
    "lm_head": (50, 24),
}
Q, V, DOWN, HEAD = MODULES
LORA = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "bias": "none", "init_lora_weights": True}
ADALORA = {"peft_type": "ADALORA", "init_r": 5, "target_r": 3, "lora_alpha": 6}


def factors(ranks: dict[str, int], *, three: bool = False, seed: int = 0) -> dict[str, np.ndarray]:
    """Random factors of modules, named as PEFT names them."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for module, rank in ranks.items():
        outer, inner = MODULES[module]
        shapes = {"A": (rank, inner), "B": (outer, rank)} | ({"E": (rank, 1)} if three else {})
        for letter, shape in shapes.items():
            name = f"base_model.model.{module}.lora_{letter}" + ("" if three else ".weight")
            tensors[name] = rng.standard_normal(shape).astype(np.float32)
    return tensors


def part(tensors: dict[str, np.ndarray], module: str, letter: str) -> np.ndarray:
    found = [array for name, array in tensors.items() if f".{module}.lora_{letter}" in name]
    return found[0].astype(np.float64)


def write_adapter(directory: Path, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "adapter_config.json").write_text(json.dumps(config))
    write_safetensors(directory / "adapter_model.safetensors", tensors, dtype="float32")
    return directory


def merged(
    folder: Path, config: dict[str, Any], tensors: dict[str, np.ndarray], dtype: str = "float32"
) -> dict[str, np.ndarray]:
    """Every weight of MODULES after the merge."""
    base = write_checkpoint(folder / "base", LLAMA, llama_tensors())
    weights = load_checkpoint(base, adapter=write_adapter(folder / "adapter", config, tensors), dtype=dtype).weights
    layers = weights.layers
    return {Q: layers[0].w_q, V: layers[1].w_v, DOWN: layers[1].w_down, HEAD: weights.output}


def product(tensors: dict[str, np.ndarray], module: str) -> np.ndarray:
    """B A, in float64."""
    return part(tensors, module, "B") @ part(tensors, module, "A")


def check(got: dict[str, np.ndarray], deltas: dict[str, np.ndarray]) -> None:
    base = llama_tensors()
    for module in MODULES:
        wanted = base[module + ".weight"].astype(np.float64) + deltas.get(module, 0.0)
        np.testing.assert_allclose(got[module], wanted, rtol=0, atol=1e-6 * np.abs(wanted).max(), err_msg=module)


@settings(max_examples=20, deadline=None)
@given(
    rank=st.integers(1, 30),
    alpha=st.one_of(st.integers(1, 64), st.floats(0.25, 64)),
    stabilised=st.booleans(),
    modules=st.sets(st.sampled_from(sorted(MODULES)), min_size=1),
    seed=st.integers(0, 1000),
)
def test_lora(
    tmp_path_factory: pytest.TempPathFactory, rank: int, alpha: float, stabilised: bool, modules: set[str], seed: int
) -> None:
    config = {**LORA, "r": rank, "lora_alpha": alpha, "use_rslora": stabilised}
    tensors = factors(dict.fromkeys(modules, rank), seed=seed)
    scale = alpha / rank**0.5 if stabilised else alpha / rank
    deltas = {module: scale * product(tensors, module) for module in modules}
    check(merged(tmp_path_factory.mktemp("lora"), config, tensors), deltas)


def test_ranks_and_alphas_of_single_modules(tmp_path: Path) -> None:
    config = {
        **LORA,
        "rank_pattern": {"down_proj": 7, r"layers\.[01]\.self_attn\.q_proj": 2},
        "alpha_pattern": {"q_proj": 11},
    }
    tensors = factors({Q: 2, V: 4, DOWN: 7})
    scales = {Q: 11 / 2, V: 6 / 4, DOWN: 6 / 7}
    deltas = {module: scale * product(tensors, module) for module, scale in scales.items()}
    check(merged(tmp_path, config, tensors), deltas)


def test_a_pattern_must_match_to_the_end_of_a_name(tmp_path: Path) -> None:
    """The pattern "proj" names no module, though every name ends in it: a match starts after a dot."""
    check(
        merged(tmp_path, {**LORA, "rank_pattern": {"proj": 9}}, factors({Q: 4})),
        {Q: 6 / 4 * product(factors({Q: 4}), Q)},
    )


def test_adalora(tmp_path: Path) -> None:
    """Directions that training dropped are gone from the file; the scale still divides by the initial rank."""
    kept = {f"{DOWN}.lora_E": [True, False, False, True, False]}
    tensors = factors({Q: 5, DOWN: 2}, three=True)
    deltas = {
        m: 6 / (5 + 1e-5) * part(tensors, m, "B") @ np.diag(part(tensors, m, "E")[:, 0]) @ part(tensors, m, "A")
        for m in (Q, DOWN)
    }
    check(merged(tmp_path, {**ADALORA, "rank_pattern": kept}, tensors), deltas)


def test_the_sum_is_rounded_once(tmp_path: Path) -> None:
    """A bfloat16 model is W + ΔW in float32, then rounded: rounding ΔW first would be off by more than half a step."""
    tensors = factors({Q: 4})
    got = merged(tmp_path, LORA, tensors, dtype="bfloat16")[Q]
    exact = (llama_tensors()[Q + ".weight"].astype(np.float64) + 6 / 4 * product(tensors, Q)).astype(np.float32)
    assert got.dtype.name == "bfloat16"
    assert (np.abs(got.astype(np.float32) - exact) <= np.abs(exact) * 2**-8 * 1.001).all()


def test_an_adapter_of_zeros_changes_nothing(tmp_path: Path) -> None:
    tensors = {name: np.zeros_like(array) for name, array in factors({Q: 4, HEAD: 4}).items()}
    for module, array in merged(tmp_path, LORA, tensors).items():
        np.testing.assert_array_equal(array, llama_tensors()[module + ".weight"])


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"peft_type": "IA3"}, r"adapter_config\.json: peft_type: got 'IA3', wanted one of LORA, ADALORA"),
        ({"r": 8}, r"adapter_model\.safetensors: tensor '.*lora_A\.weight': got rank 4, wanted 8 as adapter_config"),
        ({"r": 0}, "r: got 0, wanted a whole number of at least 1"),
        ({"r": None}, "r: got None, wanted a whole number"),
        ({"lora_alpha": "much"}, "lora_alpha: got 'much', wanted a finite number"),
        ({"use_dora": True}, "use_dora: got True, wanted false or null"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save: got \['lm_head'\], wanted modules that adapter_model"),
        ({"modules_to_save": 3}, r"modules_to_save: got 3, wanted a list of modules"),
        (
            {"init_lora_weights": "pissa"},
            "init_lora_weights: got 'pissa', wanted a start that leaves the base as it is",
        ),
        ({"rank_pattern": {"(": 4}}, r"rank_pattern: got '\(', wanted a regular expression"),
        ({"rank_pattern": {"q_proj": 3}}, "got rank 4, wanted 3"),
        ({"rank_pattern": {"q_proj": "3"}}, "rank_pattern: q_proj: got '3', wanted a whole number"),
    ],
)
def test_a_config_that_cannot_be_merged(change: dict[str, Any], wanted: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=wanted):
        merged(tmp_path, {**LORA, **change}, factors({Q: 4}))


def renamed(old: str, new: str) -> dict[str, np.ndarray]:
    return {name.replace(old, new): array for name, array in factors({Q: 4}).items()}


def test_another_base(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"got a change to 'model\.layers\.9\..*base does not have, wanted"):
        merged(tmp_path / "deeper", LORA, renamed("layers.0", "layers.9"))
    wider = {
        name: np.ones((array.shape[0], 99) if "_A" in name else array.shape) for name, array in renamed("", "").items()
    }
    with pytest.raises(
        ValueError, match=rf"module '{Q}\.weight': got a product of shape \(24, 99\), wanted \(24, 24\)"
    ):
        merged(tmp_path / "wider", LORA, wider)


PREFIX = "base_model.model."


def adapted(folder: Path, config: dict[str, Any], tensors: dict[str, np.ndarray], **changes: Any) -> Any:
    """The small Llama with an adapter, its config changed. A tied one has no output of its own."""
    changed = {**LLAMA, **changes}
    base = write_checkpoint(folder / "base", changed, llama_tensors(changed))
    return load_checkpoint(base, adapter=write_adapter(folder / "adapter", config, tensors))


EMBED = llama_tensors()["model.embed_tokens.weight"]


def test_an_output_that_is_tied_to_the_embedding(tmp_path: Path) -> None:
    """A change to the output leaves the embedding alone: the two part."""
    tensors = factors({HEAD: 4})
    copies = {f"{PREFIX}{HEAD}.base_layer.weight": EMBED}  # as PEFT saves beside it
    for folder, extra in (("alone", {}), ("copied", copies)):
        got = adapted(tmp_path / folder, LORA, tensors | extra, tie_word_embeddings=True)
        np.testing.assert_array_equal(got.weights.embedding, EMBED)
        np.testing.assert_allclose(got.weights.output, EMBED + 6 / 4 * product(tensors, HEAD), atol=1e-5)
        assert not got.config.tied
    nothing = {name: np.zeros_like(array) for name, array in tensors.items()}
    assert adapted(tmp_path / "zeros", LORA, nothing, tie_word_embeddings=True).config.tied


@pytest.mark.parametrize("tied", [True, False])
def test_an_embedding_changes_by_the_transposed_product(tied: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((4, 50)).astype(np.float32), rng.standard_normal((24, 4)).astype(np.float32)
    name = f"{PREFIX}model.embed_tokens.lora_embedding_"
    got = adapted(tmp_path, LORA, {name + "A": a, name + "B": b}, tie_word_embeddings=tied)
    np.testing.assert_allclose(got.weights.embedding, EMBED + 6 / 4 * (b @ a).T, atol=1e-5)
    np.testing.assert_array_equal(got.weights.output, EMBED if tied else llama_tensors()["lm_head.weight"])


def test_whole_modules_and_biases_take_the_place_of_the_bases(tmp_path: Path) -> None:
    head, bias = np.full((50, 24), 2.0, np.float32), np.full(24, 3.0, np.float32)
    wholes = {f"{PREFIX}lm_head.weight": head, f"{PREFIX}model.norm.weight": bias}
    config = {**LORA, "modules_to_save": ["lm_head", "norm"], "bias": "all"}
    got = adapted(tmp_path, config, factors({Q: 4}) | wholes).weights
    np.testing.assert_array_equal(got.output, head)
    np.testing.assert_array_equal(got.final_norm, bias)
    with pytest.raises(ValueError, match=r"module 'lm_head.weight': got a whole tensor of shape \(51, 24\), wanted"):
        adapted(tmp_path / "resized", LORA, factors({Q: 4}) | {f"{PREFIX}lm_head.weight": np.ones((51, 24))})
    with pytest.raises(ValueError, match=r"got a change to 'model.layers.0.self_attn.q_proj.bias', which .* not have"):
        adapted(tmp_path / "bias", LORA, factors({Q: 4}) | {f"{PREFIX}{Q}.base_layer.bias": bias})
    bad = {f"{PREFIX}lm_head.weight": head * np.nan}
    with pytest.raises(ValueError, match=r"adapter_model.safetensors: tensor 'lm_head.weight': got nan"):
        adapted(tmp_path / "nan", LORA, factors({Q: 4}) | bad)


def test_names_of_either_generation(tmp_path: Path) -> None:
    """The language model inside one that sees: an adapter and a base may call its layers differently."""
    text = {**LLAMA, "sliding_window": 9, "tie_word_embeddings": True}
    config = {"model_type": "gemma3", "text_config": text}
    inner = {"post_feedforward_layernorm.weight": (24,), "pre_feedforward_layernorm.weight": (24,)}
    inner |= {f"self_attn.{letter}_norm.weight": (6,) for letter in "qk"}
    tensors = {name: array for name, array in llama_tensors().items() if name != "lm_head.weight"}
    tensors |= {f"model.layers.{n}.{name}": np.ones(shape, np.float32) for n in (0, 1) for name, shape in inner.items()}
    wanted = tensors[Q + ".weight"] + 6 / 4 * product(factors({Q: 4}), Q)
    generations = ("model.language_model.", "language_model.model.", "model.", "")
    for one in generations:
        base = {name.replace("model.", one, 1): array for name, array in tensors.items()}
        write_checkpoint(tmp_path / "base", config, base)
        for other in generations:
            named = {n.replace(f"{PREFIX}model.", PREFIX + other): x for n, x in factors({Q: 4}).items()}
            adapter = write_adapter(tmp_path / "adapter", LORA, named)
            got = load_checkpoint(tmp_path / "base", adapter=adapter).weights.layers[0].w_q
            np.testing.assert_allclose(got, wanted, atol=1e-5, err_msg=f"{one!r} {other!r}")


PEFT_KINDS: dict[str, dict[str, Any]] = {
    "all-linear": {"target_modules": "all-linear", "use_rslora": True, "rank_pattern": {"down_proj": 3}},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "embedding": {"target_modules": ["v_proj", "embed_tokens"]},
    "both": {"target_modules": ["embed_tokens", "lm_head"]},
    "saved head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "saved norm": {"target_modules": ["q_proj"], "modules_to_save": ["norm"]},
    "saved part of a layer": {"target_modules": ["q_proj"], "modules_to_save": ["layers.1.mlp"]},
    "saved embedding": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "tied on purpose": {"target_modules": ["embed_tokens"], "ensure_weight_tying": True},
    "biases": {"target_modules": ["q_proj", "v_proj"], "bias": "lora_only"},
    "all biases": {"target_modules": ["q_proj"], "bias": "all"},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", PEFT_KINDS)
@pytest.mark.parametrize("tied", [True, False])
def test_logits_are_those_of_peft(kind: str, tied: bool, tmp_path: Path) -> None:
    """Qwen2 has biases, so that trained ones are in the adapter's file."""
    against_peft(tmp_path, "qwen2", PEFT_KINDS[kind], tie_word_embeddings=tied)


LATENT = {"q_lora_rank": 12, "kv_lora_rank": 10, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 12}
OTHERS: dict[str, dict[str, Any]] = {"phi3": {}, "gemma2": {"head_dim": 16}, "olmo2": {}, "granite": {}}
MIXTURES: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 3},
    "qwen3_moe": {**EXPERTS, "num_experts": 4, "head_dim": 8},
    "deepseek_v3": {**EXPERTS, **LATENT, "n_routed_experts": 16, "first_k_dense_replace": 1, "num_key_value_heads": 2},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", OTHERS)
def test_every_matrix_of_other_families_changes_as_in_peft(family: str, tmp_path: Path) -> None:
    """Phi-3's q, k and v share the factors of their one tensor."""
    against_peft(tmp_path, family, PEFT_KINDS["all-linear"], pad_token_id=0, **OTHERS[family])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", MIXTURES)
def test_attention_beside_experts_changes_as_in_peft_and_theirs_is_refused(family: str, tmp_path: Path) -> None:
    """All linear maps are, for PEFT, also the tensors that hold every expert, as parameters: those are refused."""
    attention = {"target_modules": r".*self_attn\..*_proj.*"}
    against_peft(tmp_path, family, attention, pad_token_id=0, **MIXTURES[family])
    with pytest.raises(ValueError, match=r"adapter_config\.json: target_parameters: got \['"):
        against_peft(tmp_path / "all", family, PEFT_KINDS["all-linear"], pad_token_id=0, **MIXTURES[family])


def against_peft(tmp_path: Path, family: str, options: dict[str, Any], **more: Any) -> None:
    torch, transformers, peft = (pytest.importorskip(name) for name in ("torch", "transformers", "peft"))
    torch.manual_seed(0)
    size = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    shape = transformers.AutoConfig.for_model(family, **size, **(heads | more))
    model = transformers.AutoModelForCausalLM.from_config(shape).eval()
    model.save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(r=2, lora_alpha=5, task_type="CAUSAL_LM", init_lora_weights=False, **options)
    tuned = peft.get_peft_model(model, config).eval()
    ids = torch.arange(12)[None]
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
        tuned.save_pretrained(tmp_path / "adapter")
        wanted = tuned(input_ids=ids).logits[0].numpy()
    checkpoint = load_checkpoint(tmp_path / "base", adapter=tmp_path / "adapter")
    ours = Model(checkpoint.config, checkpoint.weights, reference)
    got = reference.prefill(ours, reference.new_state(ours), ids[0].numpy(), every=True)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize(
    ("tensors", "wanted"),
    [
        ({}, "got no tensors, wanted the factors of an adapter"),
        ({"x": np.ones((4, 4))}, "tensor 'x': got a tensor that lora does not have, wanted none"),
        (renamed("lora_A", "lora_E"), "got a tensor that lora does not have"),
        (renamed("lora_A.weight", "lora_magnitude_vector"), "got a tensor that lora does not have"),
        ({n: a for n, a in factors({Q: 4}).items() if "_B" not in n}, rf"module '{Q}': got no lora_B, wanted one"),
        ({n: a[0] for n, a in factors({Q: 4}).items()}, r"got shape \(24,\), wanted a matrix"),
        ({n: a * np.nan for n, a in factors({Q: 4}).items()}, r"got nan at index \(0, 0\), wanted a finite number"),
    ],
)
def test_tensors_that_are_no_adapter(tensors: dict[str, np.ndarray], wanted: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors: .*" + wanted):
        merged(tmp_path, LORA, tensors)


def test_missing_files(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", LLAMA, llama_tensors())
    with pytest.raises(FileNotFoundError, match=r"adapter_config\.json: got no such file"):
        load_checkpoint(base, adapter=tmp_path / "nowhere")
    (write_adapter(tmp_path / "adapter", LORA, factors({Q: 4})) / "adapter_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"adapter_model\.safetensors: got no such file, wanted the adapter's"):
        load_checkpoint(base, adapter=tmp_path / "adapter")

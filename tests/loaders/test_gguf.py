"""GGUF files, read straight and converted, against the Hugging Face checkpoints that they were made from."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from loaders import load_checkpoint
from loaders.gguf import GGUF, convert
from reference import Model, Rope
from tests.loaders.files import write_checkpoint
from tests.loaders.gguf_files import (
    FFN,
    HEAD_DIM,
    HEADS,
    KV_HEADS,
    LAYERS,
    PARTS,
    TOKENIZER,
    VOCAB,
    WIDTH,
    metadata,
    tensors,
    write_gguf,
)

ARCHS = sorted(PARTS)
TIED = ("gemma2",)  # in llama.cpp these have no output matrix of their own
CONFIG = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": FFN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "rope_theta": 50_000.0,
}
FAMILY: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "hidden_act": "silu"},
    "qwen2": {"model_type": "qwen2", "hidden_act": "silu"},
    "qwen3": {"model_type": "qwen3", "hidden_act": "silu"},
    "gemma2": {
        "model_type": "gemma2",
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": HEAD_DIM,
        "sliding_window": 16,
        "attn_logit_softcapping": 0.5,
        "final_logit_softcapping": 1.5,
    },
    "granite": {
        "model_type": "granite",
        "embedding_multiplier": 6.0,
        "attention_multiplier": 0.5,
        "residual_multiplier": 0.25,
        "logits_scaling": 4.0,
    },
    "olmo2": {"model_type": "olmo2"},
    "phi3": {"model_type": "phi3", "sliding_window": 16, "partial_rotary_factor": 1.0},
    "gemma3": {
        "model_type": "gemma3_text",
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": HEAD_DIM,
        "sliding_window": 16,
        "rope_local_base_freq": 10_000.0,
        "layer_types": ["sliding_attention"] * LAYERS,
    },
}
IDS = np.random.default_rng(0).integers(0, VOCAB, 40)


def test_phi3_reads_its_factors_and_how_much_of_a_head_turns(tmp_path: Path) -> None:
    """Each list (R/2,), the short one up to the length of training."""
    lists = {"short": np.array([1, 1.25], np.float32), "long": np.array([2, 4], np.float32)}
    extra = {f"rope_factors_{name}.weight": factors for name, factors in lists.items()}
    own = {"rope.dimension_count": 4, "rope.scaling.original_context_length": 32, "rope.scaling.attn_factor": 1.5}
    keys = metadata("phi3") | {f"phi3.{key}": value for key, value in own.items()}
    rope = load_checkpoint(write_gguf(tmp_path / "m.gguf", "phi3", tensors("phi3"), keys, extra=extra)).config.ropes[0]
    assert rope == Rope(
        50_000.0, "longrope", 8.0, 32, attention_factor=1.5, share=0.5, short_factors=(1, 1.25), long_factors=(2, 4)
    )
    one = {name: extra[name] for name in list(extra)[:1]}
    with pytest.raises(ValueError, match=r"m\.gguf: got one list of rotation factors, wanted rope_factors_short"):
        GGUF(write_gguf(tmp_path / "m.gguf", "phi3", tensors("phi3"), keys, extra=one))


def small_file(path: Path, arch: str = "llama", *, tied: bool = True, **changes: Any) -> Path:
    keys = metadata(arch, **{f"{arch}__rope__dimension_count": HEAD_DIM, f"{arch}__attention__key_length": HEAD_DIM})
    keys |= {key.replace("__", "."): value for key, value in changes.items()}
    return write_gguf(path, arch, tensors(arch, tied=tied), {k: v for k, v in keys.items() if v is not None})


def logits(path: Path) -> np.ndarray:
    checkpoint = load_checkpoint(path, dtype="float64")
    model = Model(checkpoint.config, checkpoint.weights, reference)
    return reference.prefill(model, reference.new_state(model), IDS, every=True)


@pytest.mark.parametrize(
    ("arch", "tied"), [(a, tied) for a in ARCHS for tied in (True, False) if tied or a not in TIED]
)
def test_file_gives_the_tensors_and_config_it_was_made_from(tmp_path: Path, arch: str, tied: bool) -> None:
    source = GGUF(small_file(tmp_path / "m.gguf", arch, tied=tied))
    wanted = tensors(arch, tied=tied)
    assert sorted(source.names()) == sorted(wanted)
    for name, x in wanted.items():
        # Gemma's norms went through x + 1 - 1 in float32.
        np.testing.assert_allclose(source.tensor(name), x, rtol=0, atol=1e-6 if "norm" in name else 0, err_msg=name)
        assert source.shape(name) == x.shape
        assert source.file_of(name) == tmp_path / "m.gguf"
    config = {key: source.config[key] for key in CONFIG | FAMILY[arch]}
    assert config == CONFIG | FAMILY[arch]
    assert source.config["tie_word_embeddings"] is tied
    assert source.config["rope_scaling"] is None


@pytest.mark.parametrize("arch", ARCHS)
def test_logits_equal_those_of_the_hugging_face_directory(tmp_path: Path, arch: str) -> None:
    config = {"tie_word_embeddings": True, "rope_scaling": None, **CONFIG, **FAMILY[arch]}
    directory = write_checkpoint(tmp_path / "directory", config, tensors(arch))
    np.testing.assert_allclose(logits(small_file(tmp_path / "m.gguf", arch)), logits(directory), rtol=0, atol=1e-5)


@pytest.mark.parametrize("arch", ARCHS)
def test_converted_directory_loads_to_equal_arrays(tmp_path: Path, arch: str) -> None:
    tied = arch in TIED
    file = small_file(tmp_path / "m.gguf", arch, tied=tied)
    done: list[tuple[int, int]] = []
    directory = convert(file, tmp_path / "new" / "directory", progress=lambda now, total: done.append((now, total)))
    assert done[-1][0] == done[-1][1] == sum(4 * x.size for x in tensors(arch, tied=tied).values())
    straight, converted = load_checkpoint(file), load_checkpoint(directory)
    assert straight.config == converted.config
    np.testing.assert_array_equal(straight.weights.output, converted.weights.output)
    np.testing.assert_array_equal(straight.weights.embedding, converted.weights.embedding)
    for ours, theirs in zip(straight.weights.layers, converted.weights.layers, strict=True):
        for name, array in vars(ours).items():
            other = getattr(theirs, name)
            assert (array is None) == (other is None), name
            if array is not None:
                np.testing.assert_array_equal(array, other, err_msg=name)
    assert straight.tokenizer.to_str() == converted.tokenizer.to_str()
    assert straight.generation == converted.generation
    assert straight.template is not None
    assert converted.template is not None
    messages = [{"role": "user", "content": "ab"}]
    assert straight.template.render(messages) == converted.template.render(messages) == "ab<|im_end|>"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("arch", ARCHS)
def test_converted_directory_means_the_same_to_transformers(tmp_path: Path, arch: str) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    directory = convert(small_file(tmp_path / "m.gguf", arch), tmp_path / "d")
    options = {"dtype": torch.float64, "pad_token_id": 0}  # Phi-3's default one lies outside of a small vocabulary
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, **options).eval()
    with torch.no_grad():
        wanted = model(torch.from_numpy(IDS)[None]).logits[0].numpy()
    np.testing.assert_allclose(logits(directory), wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    assert tokenizer("abc a<|im_end|>1")["input_ids"] == [7, 6, 8, 10]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_conversion_narrows_to_the_dtype_asked_for(tmp_path: Path, dtype: str) -> None:
    directory = convert(small_file(tmp_path / "m.gguf"), tmp_path / "d", dtype)
    assert json.loads((directory / "config.json").read_text())["dtype"] == dtype
    weights = load_checkpoint(directory, dtype=dtype).weights
    wanted = tensors("llama")["model.layers.1.mlp.up_proj.weight"]
    assert weights.layers[1].w_up.dtype.name == dtype
    np.testing.assert_array_equal(weights.layers[1].w_up, wanted.astype(weights.layers[1].w_up.dtype))


def test_failed_conversion_leaves_what_was_there(tmp_path: Path) -> None:
    file = small_file(tmp_path / "m.gguf")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").write_text("still here")
    with pytest.raises(FileExistsError, match="taken: got something there already"):
        convert(file, tmp_path / "taken")
    assert (tmp_path / "taken" / "mine").read_text() == "still here"
    with pytest.raises(ValueError, match="dtype: got 'int4', wanted one of float32"):
        convert(file, tmp_path / "new", "int4")

    def interrupt(now: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(file, tmp_path / "new", progress=interrupt)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.gguf", "taken"]


BLOCK_FORMULAS = {  # bytes of one block of 32 -> its values, as the format defines them
    GGMLQuantizationType.Q8_0: lambda b: b[:2].view(np.float16).astype(np.float32) * b[2:].view(np.int8),
    GGMLQuantizationType.Q4_1: lambda b: (
        np.concatenate([b[4:] & 15, b[4:] >> 4]) * b[:2].view(np.float16).astype(np.float32)
        + b[2:4].view(np.float16).astype(np.float32)
    ),
}


@pytest.mark.parametrize("kind", BLOCK_FORMULAS)
def test_quantised_tensor_is_its_blocks_formula(tmp_path: Path, kind: GGMLQuantizationType) -> None:
    name = "blk.0.ffn_down.weight"
    source = GGUF(write_gguf(tmp_path / "m.gguf", "llama", tensors("llama"), metadata("llama"), kinds={name: kind}))
    size = GGML_QUANT_SIZES[kind][1]
    raw = np.fromfile(tmp_path / "m.gguf", np.uint8)
    got = source.tensor("model.layers.0.mlp.down_proj.weight")
    assert (got.dtype, got.shape) == (np.float32, (WIDTH, FFN))
    blocks = [BLOCK_FORMULAS[kind](block) for block in find_blocks(raw, got, size, kind)]
    np.testing.assert_allclose(got.reshape(-1, 32), blocks, rtol=1e-6)
    original = tensors("llama")["model.layers.0.mlp.down_proj.weight"]
    assert np.abs(got - original).max() < 0.1 * np.abs(original).max()


def find_blocks(raw: np.ndarray, values: np.ndarray, size: int, kind: GGMLQuantizationType) -> np.ndarray:
    """The tensor's blocks in the file's bytes: the aligned stretch whose first block gives its first values."""
    count = values.size // 32
    for start in range(0, len(raw) - count * size + 1, 32):
        with np.errstate(all="ignore"):
            if np.allclose(BLOCK_FORMULAS[kind](raw[start : start + size]), values.reshape(-1)[:32], rtol=1e-6):
                return raw[start : start + count * size].reshape(count, size)
    raise AssertionError("no such blocks in the file")


DEQUANTISED = [
    kind
    for kind in GGMLQuantizationType
    if kind.name[0] in "QIMT" and kind.name not in ("Q8_1", "Q8_K", "I8", "I16", "I32", "I64")
]


@pytest.mark.parametrize("kind", DEQUANTISED)
def test_every_quantisation_of_the_gguf_package_is_read(tmp_path: Path, kind: GGMLQuantizationType) -> None:
    block, size = GGML_QUANT_SIZES[kind]
    raw = np.random.default_rng(0).integers(0, 60, (3, 2 * size), dtype=np.uint8)  # small bytes make finite scales
    try:
        wanted = dequantize(raw, kind)
    except NotImplementedError:
        pytest.skip(f"this version of gguf does not dequantise {kind.name}")
    file = tmp_path / "m.gguf"
    name = "token_embd.weight"
    write_gguf(file, "llama", {}, metadata("llama"), kinds={name: kind}, extra={name: raw})
    got = GGUF(file).tensor("model.embed_tokens.weight")
    assert (got.dtype, got.shape) == (np.float32, (3, 2 * block))
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize(("kind", "dtype"), [("F16", "float16"), ("BF16", "bfloat16")])
def test_plain_floats_stay_as_they_are_stored(tmp_path: Path, kind: str, dtype: str) -> None:
    kinds = {"token_embd.weight": GGMLQuantizationType[kind]}
    source = GGUF(write_gguf(tmp_path / "m.gguf", "qwen2", tensors("qwen2"), metadata("qwen2"), kinds=kinds))
    got = source.tensor("model.embed_tokens.weight")
    assert got.dtype.name == dtype
    np.testing.assert_array_equal(got, tensors("qwen2")["model.embed_tokens.weight"].astype(got.dtype))


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3_scaling_is_recognised_by_its_factors(tmp_path: Path, factor: float) -> None:
    """factor_i = 1 for wavelengths below 8192/4, `factor` above 8192, and between 1/((1 - s)/factor + s)."""
    frequency = 500_000.0 ** (-np.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    ramp = np.clip((8192 * frequency / (2 * np.pi) - 1.0) / 3.0, 0, 1)  # s
    factors = (1 / ((1 - ramp) / factor + ramp)).astype(np.float32)
    extra = {"rope_freqs.weight": factors}
    keys = metadata("llama", llama__rope__freq_base=500_000.0)
    file = write_gguf(tmp_path / "m.gguf", "llama", tensors("llama"), keys, extra=extra)
    checkpoint = load_checkpoint(file)
    wanted = Rope(500_000.0, "llama3", factor, 8192, 1.0, 4.0)
    assert checkpoint.config.ropes == (wanted,) * LAYERS
    np.testing.assert_allclose(wanted.frequencies(HEAD_DIM, 0), frequency / factors, rtol=1e-6)

    extra = {"rope_freqs.weight": factors[::-1].copy()}
    file = write_gguf(tmp_path / "other.gguf", "llama", tensors("llama"), keys, extra=extra)
    with pytest.raises(ValueError, match=r"other.gguf: tensor 'rope_freqs.weight': got factors .* wanted Llama 3's"):
        GGUF(file)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"type": "none"}, None),
        ({"type": "linear", "factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        (
            {"type": "yarn", "factor": 2.5, "original_context_length": 64},
            {"rope_type": "yarn", "factor": 2.5, "original_max_position_embeddings": 64},
        ),
    ],
)
def test_scaling_in_the_metadata_becomes_rope_scaling(tmp_path: Path, changes: dict, wanted: dict | None) -> None:
    keys = {f"qwen2__rope__scaling__{key}": value for key, value in changes.items()}
    assert GGUF(small_file(tmp_path / "m.gguf", "qwen2", **keys)).config["rope_scaling"] == wanted


def test_gemma3_pattern_and_the_scale_of_its_largest_size(tmp_path: Path) -> None:
    keys = metadata("gemma3", gemma3__block_count=62, gemma3__attention__key_length=HEAD_DIM)
    source = GGUF(write_gguf(tmp_path / "m.gguf", "gemma3", tensors("gemma3"), keys | {"gemma3.embedding_length": 40}))
    assert source.config["query_pre_attn_scalar"] == 40 // HEADS
    kinds = source.config["layer_types"]
    assert [n for n, kind in enumerate(kinds) if kind == "full_attention"] == list(range(5, 62, 6))


BAD = [
    ("llama", {"llama__block_count": None}, r"llama.block_count: got nothing, wanted a whole number"),
    ("llama", {"llama__block_count": "two"}, r"llama.block_count: got 'two', wanted a whole number"),
    ("llama", {"llama__attention__head_count": 0}, r"llama.attention.head_count: got 0, wanted a whole number"),
    ("llama", {"llama__attention__head_count": 12}, r"q_proj.*got 32 rows, wanted a multiple of 2 for each of 12"),
    ("llama", {"llama__rope__dimension_count": 4}, r"rope.dimension_count: got 4, wanted 8: no partial rotation"),
    ("llama", {"llama__expert_count": 8}, r"llama.expert_used_count: got nothing, wanted a whole number"),
    ("llama", {"llama__rope__scaling__type": "longrope"}, r"rope.scaling.type: got 'longrope', wanted none, linear"),
    ("llama", {"split__count": 3}, r"split.count: got 3, wanted one whole file"),
    ("granite", {"granite__rope__scaling__finetuned": False}, r"finetuned: got False, wanted true: without, llama.cpp"),
    ("phi3", {"phi3__rope__scaling__type": "yarn"}, r"rope.scaling.type: got 'yarn', wanted none or longrope"),
    ("olmo2", {"olmo2__attention__sliding_window": 8}, r"sliding_window: got 8, wanted it left out"),
    ("gemma3", {"gemma3__attention__sliding_window": None}, r"sliding_window: got nothing, wanted a whole number"),
    ("llama", {"tokenizer__ggml__eos_token_id": 99}, r"eos_token_id: got 99, wanted an id below 11"),
    ("llama", {"tokenizer__ggml__token_type": [1, 1]}, r"token_type: got 2 entries, wanted one for each of 12 tokens"),
    (
        "llama",
        {"tokenizer__ggml__tokens": [1, 2]},
        r"tokenizer.ggml.tokens: got something else, wanted an array of str",
    ),
]


@pytest.mark.parametrize(("arch", "changes", "line"), BAD)
def test_wrong_metadata_is_one_line_with_file_and_key(tmp_path: Path, arch: str, changes: dict, line: str) -> None:
    file = small_file(tmp_path / "bad.gguf", arch, **changes)
    with pytest.raises(ValueError, match=rf"bad\.gguf.*{line}") as caught:
        load_checkpoint(file)
    assert "\n" not in str(caught.value)


def test_unknown_architectures_and_tensors_are_named(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    write_gguf(file, "mamba", {}, {})
    with pytest.raises(ValueError, match=r"m.gguf: general.architecture: got 'mamba', wanted one of llama, qwen2"):
        GGUF(file)
    extra = {"blk.0.attn_sinks.weight": np.ones(4, np.float32)}
    write_gguf(file, "llama", tensors("llama"), metadata("llama"), extra=extra)
    with pytest.raises(ValueError, match=r"m.gguf: tensor 'blk.0.attn_sinks.weight': got a name that 'llama' has not"):
        GGUF(file)
    with pytest.raises(ValueError, match=r"m.gguf: tensor 'nonsense': got no such tensor"):
        GGUF(small_file(file)).tensor("nonsense")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return small_file(tmp_path_factory.mktemp("gguf") / "m.gguf").read_bytes()


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_truncated_file_is_one_line_that_names_it(
    whole: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    length = data.draw(st.integers(0, len(whole) - 40), label="bytes kept")
    file = tmp_path_factory.mktemp("cut") / "cut.gguf"
    file.write_bytes(whole[:length])
    with pytest.raises(ValueError, match=r"cut\.gguf") as caught:
        GGUF(file)
    assert "\n" not in str(caught.value)


def test_other_files_are_not_taken_for_gguf(tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("once upon a time, long enough to be a header of some kind")
    with pytest.raises(ValueError, match=r"text.gguf: got a file that `gguf` cannot read"):
        load_checkpoint(tmp_path / "text.gguf")
    with pytest.raises(FileNotFoundError, match=r"none.gguf"):
        load_checkpoint(tmp_path / "none.gguf")


def test_file_without_a_vocabulary_still_computes(tmp_path: Path) -> None:
    file = small_file(tmp_path / "m.gguf", **{key.replace(".", "__"): None for key in TOKENIZER})
    checkpoint = load_checkpoint(file)
    assert checkpoint.config.vocab_size == VOCAB
    assert checkpoint.template is None
    with pytest.raises(FileNotFoundError, match=r"m.gguf: got no tokenizer.json"):
        _ = checkpoint.tokenizer


KEY_AND_TYPE = struct.pack("<Q", 1) + b"k" + struct.pack("<I", 9)  # key "k", an array
TENSOR = struct.pack("<Q", 1) + b"t"


@pytest.mark.parametrize(
    ("tensors_and_keys", "rest"),
    [
        ((0, 1), KEY_AND_TYPE + struct.pack("<IQ", 4, 2**60)),  # numbers
        ((0, 1), KEY_AND_TYPE + struct.pack("<IQ", 8, 2**60)),  # strings
        ((0, 1), KEY_AND_TYPE + struct.pack("<IQQ", 8, 1, 2**60)),  # one long string
        ((0, 2**60), b""),
        ((2**60, 0), b""),
        ((1, 0), TENSOR + struct.pack("<I", 2**31)),  # axes
        ((1, 0), TENSOR + struct.pack("<IQQIQ", 2, 2**40, 2**40, 0, 0)),  # elements
        ((1, 0), TENSOR + struct.pack("<IQIQ", 1, 4, 0, 2**40)),  # offset
        ((1, 0), TENSOR + struct.pack("<IQIQ", 1, 4, 999, 0)),  # a type that there is not
    ],
)
def test_file_that_lies_about_its_lengths_is_named(
    tmp_path: Path, tensors_and_keys: tuple[int, int], rest: bytes
) -> None:
    file = tmp_path / "liar.gguf"
    file.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, *tensors_and_keys) + rest + bytes(64))
    with pytest.raises(ValueError, match=r"liar\.gguf: got a file that `gguf` cannot read") as caught:
        GGUF(file)
    assert "\n" not in str(caught.value)

"""What a GGUF's metadata may say beside the usual: used as llama.cpp uses it, or refused by name."""

from __future__ import annotations

import json
import math
import struct
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loaders import load_checkpoint
from loaders.gguf import GGUF
from tests.loaders.files import draw
from tests.loaders.gguf_files import (
    HEAD_DIM,
    HEADS,
    KV_HEADS,
    LAYERS,
    TOKENIZER,
    WIDTH,
    metadata,
    stored,
    tensors,
    write_gguf,
)

LLAMA3 = {"rope_freqs.weight": np.ones(HEAD_DIM // 2, np.float32)}


def file_with(path: Path, keys: dict[str, Any], *, arch: str = "llama", extra: Any = None) -> Path:
    return write_gguf(path / "m.gguf", arch, tensors(arch), metadata(arch) | keys, extra=extra)


def yarn(**more: Any) -> dict[str, Any]:
    return {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256} | more


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        ({}, None),
        ({"scaling.factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),  # a type that is left out is linear
        ({"scale_linear": 4.0}, {"rope_type": "linear", "factor": 4.0}),  # as it was called at first
        ({"scale_linear": 2.0, "scaling.factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        ({"scaling.factor": 0.0}, None),
        ({"scaling.type": "linear"}, None),
        ({"scaling.type": "none", "scaling.factor": 4.0}, None),
        ({"scaling.type": "yarn", "scaling.factor": 4.0}, yarn()),
        ({"scaling.type": "yarn", "scale_linear": 4.0, "scaling.yarn_ext_factor": 1.0}, yarn()),
        (
            {
                "scaling.type": "yarn",
                "scaling.factor": 4.0,
                "scaling.original_context_length": 64,
                "scaling.yarn_beta_fast": 16.0,
                "scaling.yarn_beta_slow": 2.0,
                "scaling.attn_factor": 0.5,
            },
            yarn(
                original_max_position_embeddings=64,
                beta_fast=16.0,
                beta_slow=2.0,
                attention_factor=0.5 * (1 + 0.1 * math.log(4)),
            ),
        ),
    ],
)
def test_scaling_of_the_rotation(tmp_path: Path, keys: dict[str, Any], wanted: dict[str, Any] | None) -> None:
    file = file_with(tmp_path, {f"llama.rope.{key}": value for key, value in keys.items()})
    assert GGUF(file).config["rope_scaling"] == wanted
    rope = load_checkpoint(file).config.ropes[0]
    assert rope is not None
    assert rope.magnitude == pytest.approx(
        (wanted or {}).get("attention_factor", 1 + 0.1 * math.log(rope.factor)) if rope.scaling == "yarn" else 1.0
    )


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"rope.scaling.attn_factor": 1.19}, r"rope.scaling.attn_factor: got 1.19.*, wanted 1 with a scaling of type"),
        ({"rope.scaling.alpha": 1000.0}, "rope.scaling.alpha: got 1000.0, wanted it left out"),
        ({"rope.scaling.yarn_log_multiplier": 0.1}, "yarn_log_multiplier: got 0.1.*, wanted it left out"),
        ({"rope.scaling.yarn_ext_factor": 0.5}, "yarn_ext_factor: got 0.5, wanted 1"),
        ({"rope.scaling.type": "longrope"}, "rope.scaling.type: got 'longrope', wanted none, linear or yarn"),
        ({"attention.value_length": 16}, "attention.value_length: got 16, wanted 8: as wide as keys"),
        ({"attention.scale": 0.5}, "attention.scale: got 0.5, wanted it left out"),
        ({"attention.causal": False}, "attention.causal: got False, wanted True"),
        ({"attention.clamp_kqv": 8.0}, "attention.clamp_kqv: got 8.0, wanted it left out"),
        ({"attention.sliding_window": 64}, "attention.sliding_window: got 64, wanted it left out"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping: got 30.0, wanted it left out"),
        ({"logit_scale": 0.5}, "logit_scale: got 0.5, wanted it left out"),
        ({"residual_scale": 0.5}, "residual_scale: got 0.5, wanted it left out"),
        ({"expert_count": 8}, "expert_used_count: got nothing, wanted a whole number"),
        ({"nextn_predict_layers": 1}, "nextn_predict_layers: got 1, wanted it left out"),
        ({"a.key.of.next.year": "x"}, "a.key.of.next.year: got 'x', wanted it left out"),
        ({"attention.head_count_kv": [2, 1]}, r"attention.head_count_kv: got \[2, 1\], wanted a whole number"),
        ({"block_count": 2**31}, "block_count: got 2147483648, wanted a whole number of at most 100000"),
    ],
)
def test_keys_of_another_model_are_refused(tmp_path: Path, keys: dict[str, Any], line: str) -> None:
    file = file_with(tmp_path, {f"llama.{key}": value for key, value in keys.items()})
    with pytest.raises(ValueError, match=rf"m\.gguf: llama\..*{line}") as caught:
        GGUF(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "keys",
    [
        {"vocab_size": 12, "tensor_data_layout": "Meta AI original pth", "rope.scaling.finetuned": True},
        {"attention.causal": True, "pooling_type": 3, "attention.layer_norm_epsilon": 1e-5},
        {"expert_count": 0, "expert_used_count": 0, "attention.clamp_kqv": 0.0, "final_logit_softcapping": 0.0},
        {"attention.head_count": [HEADS] * LAYERS, "feed_forward_length": [64] * LAYERS},
        {"attention.value_length": HEAD_DIM, "attention.key_length": HEAD_DIM},
    ],
)
def test_keys_that_change_nothing(tmp_path: Path, keys: dict[str, Any]) -> None:
    plain = load_checkpoint(file_with(tmp_path, {})).config
    assert load_checkpoint(file_with(tmp_path, {f"llama.{key}": value for key, value in keys.items()})).config == plain


def test_a_scaling_beside_factors_is_refused(tmp_path: Path) -> None:
    """llama.cpp would apply both; no Hugging Face config says so."""
    with pytest.raises(ValueError, match=r"rope\.scaling\.type: got nothing, wanted no scaling beside the factors"):
        GGUF(file_with(tmp_path, {"llama.rope.scaling.factor": 2.0}, extra=LLAMA3))
    with pytest.raises(ValueError, match=r"tensor 'rope_freqs\.weight': got a name that 'qwen3' has not"):
        GGUF(file_with(tmp_path, {}, arch="qwen3", extra=LLAMA3))


def test_the_period_of_gemmas_windows(tmp_path: Path) -> None:
    file = file_with(tmp_path, {"gemma3.attention.sliding_window_pattern": 2}, arch="gemma3")
    assert load_checkpoint(file).config.windows == (16, None)


BIASES = {"q": HEADS * HEAD_DIM, "k": KV_HEADS * HEAD_DIM, "v": KV_HEADS * HEAD_DIM, "output": WIDTH}
OURS = {"q": "b_q", "k": "b_k", "v": "b_v", "output": "b_o"}


@pytest.mark.parametrize("some", [c for n in range(5) for c in combinations(BIASES, n)])
def test_biases_of_llama_in_any_selection(tmp_path: Path, some: tuple[str, ...]) -> None:
    """Those of q and k are permuted like their matrices; those that are left out beside others are zeros."""
    given = {f"blk.{n}.attn_{part}.bias": draw(f"{n}.{part}.bias", (BIASES[part],)) for part in some for n in (0, 1)}
    extra = {name: stored("llama", name, x) for name, x in given.items()}
    for number, layer in enumerate(load_checkpoint(file_with(tmp_path, {}, extra=extra)).weights.layers):
        for part, length in BIASES.items():
            got, name = getattr(layer, OURS[part]), f"blk.{number}.attn_{part}.bias"
            if not some:
                assert got is None
            else:
                np.testing.assert_array_equal(got, given.get(name, np.zeros(length, np.float32)), err_msg=name)


def test_other_biases_are_refused(tmp_path: Path) -> None:
    for name in ("blk.0.ffn_up.bias", "blk.0.attn_norm.bias", "output_norm.bias", "output.bias"):
        with pytest.raises(ValueError, match=r"m\.gguf: tensor '.*\.bias': got a weight that llama with 2 layers"):
            load_checkpoint(file_with(tmp_path, {}, extra={name: np.ones(WIDTH, np.float32)}))


def test_files_of_another_kind_or_byte_order_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"m\.gguf: general.type: got 'adapter', wanted model"):
        GGUF(file_with(tmp_path, {"general.type": "adapter"}))
    head = struct.pack(">4sIQQ", b"GGUF", 3, 0, 1) + struct.pack(">Q", 20) + b"general.architecture"
    (tmp_path / "big.gguf").write_bytes(head + struct.pack(">IQ", 8, 5) + b"llama" + bytes(64))
    with pytest.raises(ValueError, match=r"big\.gguf: .*its bytes are in the other order: gguf-convert-endian"):
        GGUF(tmp_path / "big.gguf")


@pytest.mark.parametrize(
    ("name", "value"),
    [("padding", 4294967295), ("padding", 12), ("padding", 999), ("unknown", 4294967295), ("bos", 2**32 - 1)],
)
def test_ids_that_mean_none(tmp_path: Path, name: str, value: int) -> None:
    checkpoint = load_checkpoint(file_with(tmp_path, {f"tokenizer.ggml.{name}_token_id": value}))
    assert checkpoint.tokenizer.encode("abc").ids == [7]
    assert checkpoint.generation.stop_ids == (8, 0)


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"tokenizer.ggml.merges": []}, "merges: got .*, wanted the merges of a byte-level vocabulary"),
        ({"tokenizer.ggml.pre": None}, "pre: got nothing, wanted one of gpt-2, smollm, qwen2, llama-bpe, deepseek"),
    ],
)
def test_byte_level_vocabularies_that_cannot_be_read(tmp_path: Path, keys: dict[str, Any], line: str) -> None:
    every = metadata("llama") | keys
    kept = {key: value for key, value in every.items() if value not in (None, [])}
    checkpoint = load_checkpoint(write_gguf(tmp_path / "m.gguf", "llama", tensors("llama"), kept))
    with pytest.raises(ValueError, match=rf"m\.gguf: tokenizer\.ggml\.{line}"):
        _ = checkpoint.tokenizer


def test_merges_of_tokens_that_start_with_a_space(tmp_path: Path) -> None:
    tokens = [" ", "a", "b", "c", " a", "bc", *TOKENIZER["tokenizer.ggml.tokens"][6:]]
    keys = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.merges": ["  a", "b c"]}
    merges = json.loads(load_checkpoint(file_with(tmp_path, keys)).tokenizer.to_str())["model"]["merges"]
    assert merges == [[" ", "a"], ["b", "c"]]


def test_tokens_without_a_text_and_tokens_twice(tmp_path: Path) -> None:
    tokens = list(TOKENIZER["tokenizer.ggml.tokens"])
    empty = load_checkpoint(file_with(tmp_path, {"tokenizer.ggml.tokens": [*tokens[:9], "", *tokens[10:]]}))
    assert empty.tokenizer.id_to_token(9) == "[EMPTY_9]"
    twice = load_checkpoint(file_with(tmp_path, {"tokenizer.ggml.tokens": [*tokens[:9], "c", *tokens[10:]]}))
    with pytest.raises(ValueError, match=r"m\.gguf: tokenizer\.ggml\.tokens: got 'c' more than once"):
        _ = twice.tokenizer


def test_the_base_of_gemmas_rotation_has_llama_cpps_default(tmp_path: Path) -> None:
    keys = metadata("gemma3")
    del keys["gemma3.rope.freq_base"]
    file = write_gguf(tmp_path / "m.gguf", "gemma3", tensors("gemma3"), keys)
    assert GGUF(file).config["rope_theta"] == 10_000.0


@pytest.mark.parametrize("kind", [1, 3, 4])
def test_a_token_called_like_an_end_is_one(tmp_path: Path, kind: int) -> None:
    """Whatever its type: else an answer would go on after it, with its name in the text."""
    types = [3, 1, 1, 1, 1, 1, 1, 1, kind, 4, 1, 5]
    keys = {"tokenizer.ggml.token_type": types, "tokenizer.ggml.eos_token_id": 0}
    checkpoint = load_checkpoint(file_with(tmp_path, keys))
    assert checkpoint.generation.stop_ids == (0, 8)
    assert checkpoint.tokenizer.encode("a<|im_end|>", add_special_tokens=False).ids == [1, 8]
    assert checkpoint.tokenizer.decode([1, 8]) == "a"

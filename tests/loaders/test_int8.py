"""Checkpoints loaded in 8 bits: quantised as `reference` means it, or taken as a GGUF file has them."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from gguf import GGMLQuantizationType

from loaders import eight_bits, load_checkpoint
from loaders.gguf import GGUF
from reference import Int8, Weights, dequantize, quantize
from tests.loaders.files import LLAMA, llama_tensors, write_checkpoint
from tests.loaders.gguf_files import metadata, names, tensors, write_gguf

QUANTISED = ("Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K")


def matrices(weights: Weights) -> dict[str, np.ndarray | Int8]:
    """Every matrix by name."""
    found = {"embedding": weights.embedding, "output": weights.output}
    for n, layer in enumerate(weights.layers):
        found |= {f"{n}.{name}": x for name, x in vars(layer).items() if x is not None and len(x.shape) == 2}
    return found


@pytest.mark.parametrize("numbers", [1, 70, 1 << 18])
def test_a_checkpoint_is_quantised_a_few_rows_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, numbers: int
) -> None:
    monkeypatch.setattr(eight_bits, "NUMBERS", numbers)
    directory = write_checkpoint(tmp_path / "model", LLAMA, llama_tensors())
    got, plain = (load_checkpoint(directory, dtype=dtype).weights for dtype in ("int8", "float32"))
    assert got.cache_dtype == ml_dtypes.bfloat16
    assert (got.output is got.embedding) == (plain.output is plain.embedding)
    for name, weight in matrices(got).items():
        assert isinstance(weight, Int8), name
        wanted = quantize(matrices(plain)[name])
        np.testing.assert_array_equal(weight.values, wanted.values)
        np.testing.assert_array_equal(weight.scales, wanted.scales)
    for layer, meant in zip(got.layers, plain.layers, strict=True):
        for name in ("attention_norm", "ffn_norm"):
            assert getattr(layer, name).dtype == np.float32
            np.testing.assert_array_equal(getattr(layer, name), getattr(meant, name))


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 1e30])
def test_what_no_scale_can_hold_is_named(tmp_path: Path, wrong: float) -> None:
    held, name = llama_tensors(), "model.layers.1.mlp.up_proj.weight"
    held[name] = held[name].copy()
    held[name][3, 2] = wrong
    directory = write_checkpoint(tmp_path / "model", LLAMA, held)
    with pytest.raises(ValueError, match=rf"model.safetensors: tensor '{name}': got .*, wanted finite numbers"):
        load_checkpoint(directory, dtype="int8")


@pytest.mark.parametrize("arch", ["llama", "qwen2", "phi3"])
def test_q8_0_is_taken_as_it_stands(tmp_path: Path, arch: str) -> None:
    """Groups whose largest number is not 127 scales, which quantising again would change, and rows of q and k that the
    file has in another order."""
    kinds, extra, rng = {}, {}, np.random.default_rng(0)
    for stored, (_, shape) in names(arch, tied=True).items():
        if len(shape) == 2 and shape[1] % 32 == 0:
            kinds[stored] = GGMLQuantizationType.Q8_0
            groups = shape[0], shape[1] // 32
            numbers = rng.integers(-128, 120, (*groups, 32)).astype(np.int8)
            numbers[..., 0] = -128  # which quantising would never make
            scales = (rng.random((*groups, 1)) / 1000).astype(np.float16)
            extra[stored] = np.concatenate([scales.view(np.uint8), numbers.view(np.uint8)], axis=-1).reshape(
                shape[0], -1
            )
    assert any("attn_q" in name for name in kinds)
    file = write_gguf(tmp_path / "m.gguf", arch, tensors(arch), metadata(arch), kinds=kinds, extra=extra)
    got, plain = (matrices(load_checkpoint(file, dtype=dtype).weights) for dtype in ("int8", "float32"))
    taken = 0
    for name, weight in got.items():
        assert isinstance(weight, Int8)
        exact = weight.values.min() == -128
        taken += exact
        if exact:
            np.testing.assert_array_equal(dequantize(weight), plain[name])
    assert taken >= len(kinds)


@pytest.mark.parametrize("kind", QUANTISED)
def test_other_quantisations_are_quantised_again(tmp_path: Path, kind: str) -> None:
    raw_of = {"Q8_0": (32, 34), "Q4_0": (32, 18), "Q4_1": (32, 20), "Q4_K": (256, 144), "Q6_K": (256, 210)}
    block, size = raw_of[kind]
    raw = np.random.default_rng(0).integers(0, 60, (3, 2 * size), dtype=np.uint8)  # small bytes make finite scales
    name = "token_embd.weight"
    kinds = {name: GGMLQuantizationType[kind]}
    source = GGUF(write_gguf(tmp_path / "m.gguf", "llama", {}, metadata("llama"), kinds=kinds, extra={name: raw}))
    plain, stands = source.tensor("model.embed_tokens.weight"), source.eight_bits("model.embed_tokens.weight")
    assert plain.shape == (3, 2 * block)
    assert (stands is not None) == (kind == "Q8_0")
    stored = eight_bits.quantized("here", plain) if stands is None else stands
    scales = np.repeat(stored.scales.astype(np.float64), 32, axis=1)
    assert (np.abs(dequantize(stored) - plain) <= scales * (0.5 + 1e-6)).all()


def test_a_scale_that_is_no_number_is_named(tmp_path: Path) -> None:
    raw = np.zeros((3, 68), np.uint8)
    raw[1, 34:36] = np.array([np.inf], np.float16).view(np.uint8)
    kinds = {"token_embd.weight": GGMLQuantizationType.Q8_0}
    file = write_gguf(
        tmp_path / "m.gguf", "llama", {}, metadata("llama"), kinds=kinds, extra={"token_embd.weight": raw}
    )
    with pytest.raises(ValueError, match=r"tensor 'token_embd.weight': got a scale of inf, wanted finite numbers"):
        GGUF(file).eight_bits("model.embed_tokens.weight")


def test_what_was_let_go_is_read_again(tmp_path: Path) -> None:
    for path in (
        write_checkpoint(tmp_path / "model", LLAMA, llama_tensors()),
        write_gguf(tmp_path / "m.gguf", "qwen2", tensors("qwen2"), metadata("qwen2")),
    ):
        checkpoint = load_checkpoint(path)
        name = "model.embed_tokens.weight"
        view = checkpoint.source.tensor(name)
        before = view.copy()
        checkpoint.source.let_go()
        np.testing.assert_array_equal(view, before)
        np.testing.assert_array_equal(checkpoint.source.tensor(name), before)

"""Weights in 8-bit floating point with scales, against the format's formula: number by number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import thresher
from loaders import load_checkpoint
from loaders.tensors import write_tensors
from reference.int8 import plain
from tests.loaders.files import draw, write_checkpoint
from tests.loaders.test_experts import CONFIGS, RECORDED, stacks, tensors

BLOCK = (5, 7)
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": list(BLOCK)}
IDS = list(range(12)) * 2


def value(byte: int) -> float:
    """What a byte of E4M3 stands for: a sign, 4 bits of exponent with a bias of 7, 3 of mantissa."""
    sign, exponent, mantissa = -1.0 if byte >> 7 else 1.0, byte >> 3 & 15, byte & 7
    if (exponent, mantissa) == (15, 7):
        return float("nan")
    return sign * (mantissa / 8 * 2**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7))


TABLE = np.array([value(byte) for byte in range(256)])


def written(directory: Path, config: dict[str, Any], stored: dict[str, np.ndarray]) -> Path:
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    write_tensors(directory / "model.safetensors", stored, {})
    return directory


def scaled(
    tensors: dict[str, np.ndarray], block: tuple[int, int] | None = BLOCK
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The matrices of a model in 8 bits with scales; and what they stand for, by the formula."""
    rng, stored, meant = np.random.default_rng(0), dict(tensors), dict(tensors)
    for name, x in tensors.items():
        if not name.endswith(("_proj.weight", "_proj")):
            continue
        out, width = x.shape[-2:]
        rows, columns = block or (out, width)
        grid = -(-out // rows), -(-width // columns)
        bytes_ = rng.integers(0, 256, x.shape, np.uint8)
        bytes_[bytes_ % 128 == 127] = 0  # no number
        scales = np.exp(rng.normal(-6, 1, (*x.shape[:-2], *grid))).astype(np.float32)
        i, j = np.arange(out)[:, None], np.arange(width)
        wide = TABLE[bytes_] * scales[..., i // rows, j // columns]
        scales = scales.reshape(()) if block is None else scales
        stored |= {name: bytes_.view(ml_dtypes.float8_e4m3fn), f"{name}_scale_inv": scales}
        if block is None:
            stored[name.replace("weight", "activation_scale")] = np.float32(3).reshape(())
        meant[name] = wide.astype(np.float32)
    return stored, meant


def latents() -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A small DeepSeek-V3."""
    config, shapes = (json.loads(str(RECORDED[f"deepseek_v3-latents/{part}"])) for part in ("config", "shapes"))
    return config, {name: draw(name, tuple(shape)) for name, shape in shapes.items()}


@pytest.mark.parametrize("kind", ["deepseek_v3", "qwen3_moe", "fused", "one scale"])
def test_matrices_are_numbers_times_scales(tmp_path: Path, kind: str) -> None:
    config, wide = latents() if kind == "deepseek_v3" else (CONFIGS["qwen3_moe"], tensors("qwen3_moe"))
    stored, meant = scaled(
        stacks(wide, fused=True) if kind == "fused" else wide, None if kind == "one scale" else BLOCK
    )
    told = FP8 | ({"weight_block_size": None} if kind == "one scale" else {})
    ours = written(tmp_path / "fp8", {**config, "quantization_config": told}, stored)
    theirs = write_checkpoint(tmp_path / "plain", config, meant)
    for dtype in ("float32", "bfloat16", "int8"):
        got, wanted = (load_checkpoint(path, dtype=dtype).weights for path in (ours, theirs))
        for one, other in zip(got.layers, wanted.layers, strict=True):
            arrays = other.arrays()
            assert one.arrays().keys() == arrays.keys()
            for name, x in one.arrays().items():
                np.testing.assert_array_equal(plain(x), plain(arrays[name]), err_msg=name)
    whole, few = (thresher.load(ours, backend="cpu", **options) for options in ({}, {"expert_memory": 0}))
    assert few.experts_on_disk
    np.testing.assert_array_equal(few.logits(IDS), whole.logits(IDS))


NAME = "model.layers.1.mlp.experts.2.up_proj.weight"


@pytest.mark.parametrize(
    ("told", "change", "line"),
    [
        ({}, {f"{NAME}_scale_inv": None}, rf"model\.safetensors: tensor '{NAME}': got no scales, wanted them as"),
        (
            {},
            {f"{NAME}_scale_inv": np.ones((3, 2), np.float32)},
            rf"tensor '{NAME}': got scales of shape \(3, 2\), wanted \(13, 5\) for \(64, 32\)",
        ),
        ({}, {f"{NAME}_scale_inv": np.full((13, 5), np.nan, np.float32)}, rf"tensor '{NAME}': got nan at index"),
        ({}, {NAME: np.full((64, 32), 0x7F, np.uint8).view(ml_dtypes.float8_e4m3fn)}, rf"'{NAME}': got nan at index"),
        (
            {"weight_block_size": [128]},
            {},
            r"config\.json: quantization_config: weight_block_size: got \[128\], wanted",
        ),
        (
            {"weight_block_size": [0, 7]},
            {},
            r"weight_block_size: got \[0, 7\], wanted two whole numbers of at least 1, or null",
        ),
        ({"weight_block_size": None}, {}, r"got scales of shape \(7, 5\), wanted \(1, 1\) for \(32, 32\)"),
        ({"quant_method": "mxfp4"}, {}, r"quantization_config: got {'quant_method': 'mxfp4'.*, wanted"),
        ({"quant_method": "bitsandbytes"}, {}, r"quantization_config: got {'quant_method': 'bitsandbytes'.*, wanted"),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path: Path, told: dict, change: dict, line: str) -> None:
    stored = scaled(tensors("qwen3_moe"))[0] | change
    config = {**CONFIGS["qwen3_moe"], "quantization_config": FP8 | told}
    path = written(tmp_path / "m", config, {name: x for name, x in stored.items() if x is not None})
    with pytest.raises(ValueError, match=line) as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)

"""Adapters of families that keep their matrices in other ways: fused, latent, or one for each expert.

A merged base is written out: what `load` makes of base and adapter are the weights that it makes of that file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loaders import load_checkpoint
from reference import Weights
from tests.loaders.cases import norm_offset
from tests.loaders.files import draw, write_checkpoint
from tests.loaders.test_families import RECORDED
from tests.loaders.test_lora import LORA, PREFIX, write_adapter

SCALE = LORA["lora_alpha"] / LORA["r"]
ATTENTION = ("self_attn.",)
ALL = ("self_attn.", "mlp.", "lm_head")
CASES = [
    ("phi3-window", ALL),
    ("qwen3_moe-some-dense", ALL),
    ("qwen3_moe-normalised", ALL),
    ("deepseek_v3-latents", ALL),
    ("deepseek_v3-no-query-latent", ATTENTION),
    ("axk1-latents", ALL),
    ("mixtral-two-of-five", ATTENTION),
]


def base_of(case: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The config and the tensors of a recorded case."""
    config, shapes = (json.loads(str(RECORDED[f"{case}/{part}"])) for part in ("config", "shapes"))
    offset = norm_offset(config["model_type"])
    return config, {name: draw(name, tuple(shape), norm_offset=offset) for name, shape in shapes.items()}


def factors(tensors: dict[str, np.ndarray], parts: tuple[str, ...]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Random A and B for every matrix in these parts of the model, by the tensor's name."""
    rng = np.random.default_rng(0)
    chosen = {name: x.shape for name, x in tensors.items() if x.ndim == 2 and any(part in name for part in parts)}
    draw_one = rng.standard_normal
    return {
        name: (
            draw_one((LORA["r"], inner)).astype(np.float32) / 4,
            draw_one((outer, LORA["r"])).astype(np.float32) / 4,
        )
        for name, (outer, inner) in chosen.items()
    }


def as_peft(found: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
    """The tensors of an adapter's file."""
    modules = {PREFIX + name.removesuffix(".weight"): pair for name, pair in found.items()}
    return {f"{module}.lora_{'AB'[n]}.weight": pair[n] for module, pair in modules.items() for n in (0, 1)}


def arrays(weights: Weights) -> Iterator[tuple[str, np.ndarray]]:
    """Every array of a model, experts apart, by a name."""

    def of(name: str, value: Any) -> Iterator[tuple[str, np.ndarray]]:
        if isinstance(value, np.ndarray):
            yield name, value
        elif isinstance(value, (tuple, list)):
            for n, each in enumerate(value):
                yield from of(f"{name}.{n}", each)
        elif hasattr(value, "__dict__"):
            for key, each in vars(value).items():
                yield from of(f"{name}.{key}", each)

    yield from of("", weights)


@pytest.mark.parametrize(("case", "parts"), CASES, ids=[case for case, _ in CASES])
def test_a_merged_model_is_the_model_of_the_merged_file(case: str, parts: tuple[str, ...], tmp_path: Path) -> None:
    config, tensors = base_of(case)
    found = factors(tensors, parts)
    merged = {
        name: (x + SCALE * (found[name][1].astype(np.float64) @ found[name][0])).astype(np.float32)
        if name in found
        else x
        for name, x in tensors.items()
    }
    plain = write_checkpoint(tmp_path / "base", config, tensors)
    adapter = write_adapter(tmp_path / "adapter", LORA, as_peft(found))
    got = dict(arrays(load_checkpoint(plain, adapter=adapter).weights))
    wanted = dict(arrays(load_checkpoint(write_checkpoint(tmp_path / "merged", config, merged)).weights))
    before = dict(arrays(load_checkpoint(plain).weights))
    assert got.keys() == wanted.keys()
    for name, x in wanted.items():
        np.testing.assert_allclose(got[name], x, rtol=0, atol=1e-5 * max(np.abs(x).max(), 1e-9), err_msg=name)
    changed = sum(not np.array_equal(before[name], x) for name, x in wanted.items())
    assert changed >= len(found)  # a fused or a latent tensor is more than one weight


@pytest.mark.parametrize(
    ("case", "config", "module", "wanted"),
    [
        (
            "mixtral-two-of-five",
            {},
            "model.layers.0.block_sparse_moe.experts.1.w1",  # as PEFT called it before transformers 5
            r"got a change to 'model\.layers\.0\.block_sparse_moe\.experts\.1\.w1\.weight', which .*base does not have",
        ),
        (
            "qwen3_moe-some-dense",
            {"target_parameters": ["mlp.experts.gate_up_proj"]},
            "model.layers.0.mlp.experts",
            r"target_parameters: got \['mlp\.experts\.gate_up_proj'\], wanted",
        ),
        (
            "deepseek_v3-latents",
            {},
            "model.layers.0.self_attn.q_proj",
            r"got a change to 'model\.layers\.0\.self_attn\.q_proj\.weight', which .*base does not have",
        ),
        (
            "phi3-window",
            {},
            "model.layers.0.self_attn.q_proj",
            r"got a change to 'model\.layers\.0\.self_attn\.q_proj\.weight', which .*base does not have",
        ),
        (
            "phi3-window",
            {},
            "model.layers.0.self_attn.qkv_proj",
            r"module 'model\.layers\.0\..*qkv_proj\.weight': got a product of shape \(24, 24\), wanted \(48, 24\)",
        ),
    ],
)
def test_what_the_base_has_otherwise_is_refused_by_name(
    case: str, config: dict[str, Any], module: str, wanted: str, tmp_path: Path
) -> None:
    base = write_checkpoint(tmp_path / "base", *base_of(case))
    pair = {f"{module}.weight": (np.ones((LORA["r"], 24), np.float32), np.ones((24, LORA["r"]), np.float32))}
    with pytest.raises(ValueError, match=wanted):
        load_checkpoint(base, adapter=write_adapter(tmp_path / "adapter", {**LORA, **config}, as_peft(pair)))

"""Models in 8 bits from loading to the answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import thresher
from thresher.info import describe


def test_a_model_in_8_bits_answers_as_its_definition(directory: Path) -> None:
    ours, meant = (thresher.load(directory, dtype="int8", backend=backend) for backend in ("auto", "reference"))
    ids = list(np.random.default_rng(0).integers(0, ours.config.vocab_size, 90))
    got, wanted = ours.logits(ids), meant.logits(ids)
    assert np.linalg.norm(got - wanted) < 1e-2 * np.linalg.norm(wanted)
    plain = thresher.load(directory, backend="cpu").logits(ids)
    assert 1e-4 < np.linalg.norm(got - plain) / np.linalg.norm(plain) < 0.05  # 8 bits are not 32, and nearly enough
    assert repr(ours).endswith("int8 on cpu)")
    assert "".join(ours.generate(ids, max_new_tokens=3, min_new_tokens=3)) == "".join(
        meant.generate(ids, max_new_tokens=3, min_new_tokens=3)
    )
    assert ours.prefill(ids).cache.layers[0].k.dtype.name == "bfloat16"


def test_a_gpu_is_refused_in_one_line(directory: Path) -> None:
    with pytest.raises(ValueError, match="dtype: got int8 for the GPU, wanted float32, float16 or bfloat16 there"):
        thresher.load(directory, dtype="int8", backend="cuda")


def test_info_tells_what_8_bits_take(directory: Path) -> None:
    plain, ours = describe(str(directory)), describe(str(directory), "int8")
    assert ours["parameters"] == plain["parameters"]
    assert ours["bytes"]["ffn"] <= plain["bytes"]["ffn"] * 0.3
    assert ours["cache_bytes_per_token"] < 0.6 * plain["cache_bytes_per_token"]

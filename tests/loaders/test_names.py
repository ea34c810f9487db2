"""Which tensor is which: tied outputs, prefixes, and tensors that nobody reads. transformers is the judge where it is
installed; what it says stands here for where it is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import reference
from loaders import load_checkpoint
from reference import Model
from tests.loaders.files import LLAMA, draw, llama_tensors, write_checkpoint

TIED = {**LLAMA, "tie_word_embeddings": True}
EMBED, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
IDS = np.arange(12)
Tensors = dict[str, np.ndarray]


def logits(directory: Path) -> np.ndarray:
    checkpoint = load_checkpoint(directory)
    model = Model(checkpoint.config, checkpoint.weights, reference)
    return reference.prefill(model, reference.new_state(model), IDS, every=True)


def check_live(directory: Path, got: np.ndarray) -> None:
    """The logits are those of transformers, where it is installed."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    with torch.no_grad():
        wanted = model(torch.from_numpy(IDS)[None]).logits[0].numpy()
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def only_head(tensors: Tensors) -> Tensors:
    return {HEAD if name == EMBED else name: array for name, array in tensors.items()}


def bare(tensors: Tensors) -> Tensors:
    return {name.removeprefix("model."): array for name, array in tensors.items()}


def with_head(tensors: Tensors) -> Tensors:
    return {**tensors, HEAD: draw("another", (50, 24))}


# What is stored, and whether it means the model as saved.
READ: dict[str, tuple[Callable[[Tensors], Tensors], bool]] = {
    "as saved": (lambda tensors: tensors, True),
    "an output of its own": (with_head, False),
    "an output like the embedding": (lambda tensors: {**tensors, HEAD: tensors[EMBED].copy()}, True),
    "only the output": (only_head, True),
    "without model.": (bare, True),
    "only the output, without model.": (lambda tensors: bare(only_head(tensors)), True),
    "an output of its own, without model.": (lambda tensors: bare(with_head(tensors)), False),
    "norms without model.": (lambda tensors: {n[6:] if "norm" in n else n: a for n, a in tensors.items()}, True),
    "counters and flags": (
        lambda tensors: {**tensors, "step": np.zeros(1, np.int8), "empty": np.zeros((0, 4), np.float32)},
        True,
    ),
}


@pytest.mark.parametrize("case", READ)
@pytest.mark.filterwarnings("ignore")
def test_what_is_stored_means_what_it_means_to_transformers(case: str, tmp_path: Path) -> None:
    change, same = READ[case]
    saved = logits(write_checkpoint(tmp_path / "saved", TIED, llama_tensors(TIED)))
    got = logits(write_checkpoint(tmp_path / "changed", TIED, change(llama_tensors(TIED))))
    assert np.array_equal(got, saved) is same
    check_live(tmp_path / "changed", got)


def test_a_tied_config_with_an_output_of_its_own_is_not_tied(tmp_path: Path) -> None:
    loaded = load_checkpoint(write_checkpoint(tmp_path, TIED, with_head(llama_tensors(TIED))), dtype="bfloat16")
    assert not loaded.config.tied
    assert loaded.weights.output is not loaded.weights.embedding
    loaded = load_checkpoint(write_checkpoint(tmp_path, TIED, only_head(llama_tensors(TIED))))
    assert loaded.config.tied
    assert loaded.weights.output is loaded.weights.embedding


@pytest.mark.filterwarnings("ignore")
def test_a_tensor_that_the_index_forgets_still_counts(tmp_path: Path) -> None:
    """transformers reads its shards whole."""
    write_checkpoint(tmp_path, TIED, with_head(llama_tensors(TIED)), shards=2)
    index = tmp_path / "model.safetensors.index.json"
    listed = json.loads(index.read_text())
    del listed["weight_map"][HEAD]
    index.write_text(json.dumps(listed))
    np.testing.assert_array_equal(load_checkpoint(tmp_path).weights.output, draw("another", (50, 24)))
    check_live(tmp_path, logits(tmp_path))


MATRIX = np.ones((4, 4), np.float32)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            lambda t: {"_orig_mod." + n: a for n, a in t.items()},
            r"got '_orig_mod\.model\.embed_tokens\.weight', wanted",
        ),
        (lambda t: {"module." + n: a for n, a in t.items()}, r"got 'module\.model\.embed_tokens\.weight', wanted"),
        (lambda t: {n: a for n, a in t.items() if n != EMBED}, "got no embedding, wanted tensor"),
        (lambda t: {**t, "norm.weight": t[NORM] * 2}, r"tensor 'norm\.weight': got a weight that llama"),
        (lambda t: {**t, "score.weight": MATRIX}, r"tensor 'score\.weight': got a weight that llama"),
        (lambda t: {**t, "v_head.summary.weight": MATRIX}, r"tensor 'v_head\.summary\.weight': got a weight"),
        (lambda t: {**t, "lm_head.bias": np.ones(50, np.float32)}, r"tensor 'lm_head\.bias': got a weight"),
        (lambda t: {**t, "model.layers.7.mlp.up_proj.weight": MATRIX}, r"layers\.7.*got a weight that llama with 2"),
        (lambda t: {**t, "lm_head.qweight": np.ones((4, 4), np.int8)}, r"tensor 'lm_head\.qweight': got a weight"),
        (lambda t: {**t, "model.vision_tower.x": MATRIX}, r"tensor 'model\.vision_tower\.x': got a weight"),
    ],
)
def test_tensors_that_nobody_reads_are_refused_by_name(
    change: Callable[[Tensors], dict[str, Any]], line: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=line) as caught:
        load_checkpoint(write_checkpoint(tmp_path, TIED, change(llama_tensors(TIED))))
    assert str(tmp_path) in str(caught.value)


def test_an_untied_config_needs_both(tmp_path: Path) -> None:
    both = llama_tensors()
    for missing in (EMBED, HEAD):
        tensors = {name: array for name, array in both.items() if name != missing}
        with pytest.raises(ValueError, match=rf"tensor '{missing}': got no such tensor"):
            load_checkpoint(write_checkpoint(tmp_path, LLAMA, tensors))

"""Records what transformers computes for the small models of `cases`:

    python -m tests.loaders.record_families [beginning of a case's name …]

records those cases, or all, and writes families.npz beside this file: for every case the config.json that transformers
saved, the name and shape of every tensor in its file, a prompt, logits after some of its tokens, and the tokens
generated greedily after it. The weights are drawn anew from the names wherever they are needed. Needs torch and
transformers.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.loaders.cases import CASES, NEW, ROWS, norm_offset, prompt
from tests.loaders.files import draw, write_checkpoint

RECORDED = Path(__file__).with_name("families.npz")


def build(family: str, config: dict[str, Any], directory: Path) -> tuple[Any, dict[str, list[int]]]:
    """The case's model with drawn weights, saved as real files in `directory`; also its tensors' names and shapes."""
    layout = directory / "layout"
    AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **config)).save_pretrained(layout)
    shapes = saved_shapes(layout)
    saved = json.loads((layout / "config.json").read_text())
    drawn = write_checkpoint(directory / "drawn", saved, draw_all(family, shapes))
    model, report = AutoModelForCausalLM.from_pretrained(drawn, output_loading_info=True, dtype=torch.float32)
    unread = {kind: names for kind, names in report.items() if names}
    if unread:
        raise RuntimeError(f"{family}: transformers did not read its own layout: {unread}")
    model.eval().save_pretrained(directory / "model")
    return plainly(model), shapes


def plainly(model: Any) -> Any:
    """The model, with experts computed one by one: its faster ways ask for widths that are multiples of 4."""
    if hasattr(model.config, "num_experts_per_tok"):
        model.set_experts_implementation("eager")
    return model


def saved_shapes(directory: Path) -> dict[str, list[int]]:
    """Name and shape of every tensor in model.safetensors."""
    data = (directory / "model.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}


def draw_all(family: str, shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """Every tensor of a case."""
    return {name: draw(name, tuple(shape), norm_offset=norm_offset(family)) for name, shape in shapes.items()}


@torch.no_grad()
def random_model(family: str, config: dict[str, Any], seed: int) -> Any:
    """A model whose parameters are drawn from their names and `seed`."""
    model = plainly(AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **config)).eval())
    biases = [(name, buffer) for name, buffer in model.named_buffers() if name.endswith("_bias")]  # of a router
    for name, parameter in [*model.named_parameters(), *biases]:
        values = draw(name, tuple(parameter.shape), seed=seed, norm_offset=norm_offset(family))
        parameter.copy_(torch.from_numpy(values))
    return model


@torch.no_grad()
def logits(model: Any, ids: np.ndarray) -> np.ndarray:
    """Logits (T, V) after every token, read in one pass."""
    return model(torch.from_numpy(ids)[None]).logits[0].numpy()


@torch.no_grad()
def run(model: Any, ids: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Logits (T, V) after every token of the prompt, read in one pass, and NEW greedy tokens."""
    out = model(torch.from_numpy(ids)[None], use_cache=True)
    logits, greedy = out.logits[0].numpy(), []
    for _ in range(NEW):
        greedy.append(int(out.logits[0, -1].argmax()))
        out = model(torch.tensor([greedy[-1:]]), past_key_values=out.past_key_values, use_cache=True)
    return logits, greedy


def main() -> None:
    wanted = [name for name in CASES if not sys.argv[1:] or name.startswith(tuple(sys.argv[1:]))]
    arrays = dict(np.load(RECORDED)) if sys.argv[1:] else {}
    arrays = {key: x for key, x in arrays.items() if key.partition("/")[0] not in wanted}
    for name in wanted:
        family, config = CASES[name]
        with tempfile.TemporaryDirectory() as folder:
            model, shapes = build(family, config, Path(folder))
            saved = (Path(folder) / "model/config.json").read_text()
        logits, greedy = run(model, prompt(config))
        arrays[f"{name}/config"] = np.array(json.dumps(json.loads(saved), separators=(",", ":")))
        arrays[f"{name}/shapes"] = np.array(json.dumps(shapes, separators=(",", ":")))
        arrays[f"{name}/logits"] = logits[ROWS]
        arrays[f"{name}/greedy"] = np.array(greedy, np.int16)
        print(f"{name}: largest logit {np.abs(logits).max():.2f}")
    np.savez_compressed(RECORDED, **arrays)


if __name__ == "__main__":
    main()

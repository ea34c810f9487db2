"""A Llama, a Qwen and a Gemma of random weights, in transformers and in thresher's own engine, under QUOKA and KeyDiff.

    python examples/transformers_models.py

Needs the extra `transformers`. Each model is written to a temporary folder, loaded by both, and continues the same
prompt; the largest difference of their logits is shown beside the tokens.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

import reference
from accel import cpu
from loaders import load_checkpoint
from reference import Model, Policy
from thresher.hf import wrap

SMALL = {
    "vocab_size": 500,
    "hidden_size": 96,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 2048,
    "initializer_range": 0.08,
}
GEMMA = {
    "sliding_window": 64,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "query_pre_attn_scalar": 16,
}
CONFIGS = {
    "Llama": transformers.LlamaConfig(**SMALL),
    "Qwen": transformers.Qwen3Config(**SMALL),
    "Gemma": transformers.Gemma3TextConfig(**SMALL, **GEMMA),
}
POLICIES = {
    "QUOKA": Policy(select="quoka:budget=96"),
    "KeyDiff": Policy(evict="keydiff:budget=96"),
}
PROMPT, NEW, CHUNK = 500, 12, 64  # tokens; with 4 chunks and more, every method has something to leave out


def random_model(config: Any) -> Any:
    """A model with random weights, the same at every run."""
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def in_transformers(model: Any, policy: Policy, ids: np.ndarray) -> tuple[list[int], np.ndarray]:
    """The tokens that `generate` adds, and the logits that it drew each from (NEW, V)."""
    model = wrap(model, policy, chunk=CHUNK)
    prompt = torch.from_numpy(ids)[None]
    out = model.generate(
        prompt, max_new_tokens=NEW, do_sample=False, eos_token_id=None, output_logits=True, return_dict_in_generate=True
    )
    return out.sequences[0, len(ids) :].tolist(), torch.cat(out.logits).float().numpy()


def in_the_engine(directory: Path, policy: Policy, ids: np.ndarray) -> tuple[list[int], np.ndarray]:
    """The same by thresher's own forward pass."""
    checkpoint = load_checkpoint(directory)
    model = Model(checkpoint.config, cpu.prepare_weights(checkpoint.weights), cpu)
    state = reference.new_state(model, policy)
    reference.prefill(model, state, ids, chunk=CHUNK)
    tokens, rows = [], []
    for _ in range(NEW):
        rows.append(np.array(state.logits))
        tokens.append(int(rows[-1].argmax()))
        reference.decode(model, [state], [tokens[-1]])
    return tokens, np.stack(rows)


def compare(name: str, policy: Policy, directory: Path) -> tuple[list[int], list[int], float]:
    """Tokens of transformers and of the engine, and ‖a − b‖/‖b‖ of their logits."""
    ids = np.random.default_rng(1).integers(0, SMALL["vocab_size"], PROMPT)
    model = random_model(CONFIGS[name])
    model.save_pretrained(directory)
    own, wanted = in_the_engine(directory, policy, ids)
    theirs, logits = in_transformers(model, policy, ids)
    return theirs, own, float(np.linalg.norm(logits - wanted) / np.linalg.norm(wanted))


def main() -> None:
    """Every family under every method."""
    transformers.utils.logging.disable_progress_bar()
    for name in CONFIGS:
        for method, policy in POLICIES.items():
            with tempfile.TemporaryDirectory() as directory:
                theirs, own, apart = compare(name, policy, Path(directory))
            print(f"{name} with {method}: logits differ by {apart:.1e}")
            print(f"  transformers {theirs}\n  thresher     {own}")


if __name__ == "__main__":
    main()

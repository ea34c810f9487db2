"""Records what transformers makes of the pulled models:

    python -m tests.loaders.record_real

writes real.json beside this file: for every pulled model its perplexity, in float32 from the directory that `pull`
made, on the first tokens of the text that thresher ships; and the ids of a text full of corner cases, from the
tokenizer that transformers itself rebuilds from the GGUF file. Needs torch and transformers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from loaders import catalogue
from tests.loaders.test_real import TOKENS, TRICKY, perplexity, play

RECORDED = Path(__file__).with_name("real.json")


def record(name: str) -> dict[str, Any]:
    """What the model and the tokenizer of that name give."""
    directory = catalogue.find(name)
    tokenizer = AutoTokenizer.from_pretrained(str(directory), gguf_file=catalogue.gguf_file(name).name)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    ids = tokenizer(play(), add_special_tokens=False)["input_ids"][:TOKENS]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].numpy()
    return {
        "perplexity": perplexity(logits, np.array(ids)),
        "tricky": tokenizer(TRICKY, add_special_tokens=False)["input_ids"],
    }


if __name__ == "__main__":
    recorded = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
    recorded |= {entry.name: record(entry.name) for entry in catalogue.models() if catalogue.is_pulled(entry.name)}
    RECORDED.write_text(json.dumps(recorded, indent=1) + "\n")

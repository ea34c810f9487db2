"""kvpress's methods on prompts of token ids, in a process of its own.

    python benchmarks/kvpress_contestant.py '{"model": "DIRECTORY", "device": "cpu", "dtype": "float32"}'

Every line on standard input is a question, {"ids": …, "method": "keydiff", "budget": 0.5, "most": 32, "stops": […]};
each is answered by a line, the list of new token ids. This file imports nothing of ours: kvpress wants another
transformers than ours.
"""

import json
import sys

import torch
from kvpress import KeyDiffPress, SnapKVPress, TOVAPress
from transformers import AutoModelForCausalLM
from transformers.utils import logging

PRESSES = {"keydiff": KeyDiffPress, "snapkv": SnapKVPress, "tova": TOVAPress}


def main() -> None:
    settings = json.loads(sys.argv[1])
    logging.disable_progress_bar()
    dtype = getattr(torch, settings["dtype"])
    model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=dtype, attn_implementation="sdpa")
    model = model.to(settings["device"]).eval()
    for line in sys.stdin:
        asked = json.loads(line)
        ids = torch.tensor([asked["ids"]], device=settings["device"])
        generate = {
            "attention_mask": torch.ones_like(ids),
            "max_new_tokens": asked["most"],
            "do_sample": False,
            "eos_token_id": asked["stops"],
            "pad_token_id": asked["stops"][0],
        }
        with torch.inference_mode():
            if asked["method"] == "dense":
                whole = model.generate(ids, **generate)
            else:
                with PRESSES[asked["method"]](compression_ratio=1 - asked["budget"])(model):
                    whole = model.generate(ids, **generate)
        print(json.dumps(whole[0, ids.shape[1] :].tolist()), flush=True)


if __name__ == "__main__":
    main()

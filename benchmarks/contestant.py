"""One program that reads a prompt and goes on from it, in a process of its own with so many threads.

    python benchmarks/contestant.py '{"program": "openvino", "model": "DIRECTORY", "threads": 4, …}'

Its first line of output is the resident memory in bytes, now and at its peak, once the model is loaded. The first line
on standard input is the prompt, a JSON list of token ids; every further line is a number of new tokens. Each is
answered by a line of JSON: seconds to the first token, tokens per second after it, and the memory then. This file
imports nothing of ours unless it is asked to run us, so that any Python may run it, also one whose packages do not
agree with ours.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any


class Thresher:
    """Ours. `dtype`; `select`, `evict` and `ffn` are specs as on the command line, `expert_memory` is
    `load`'s."""

    def __init__(self, settings: dict[str, Any]) -> None:
        os.environ["THRESHER_NUM_THREADS"] = str(settings["threads"])  # before anything of ours is imported
        sys.path.insert(0, str(Path(__file__).parents[1]))
        import thresher

        memory = settings.get("expert_memory")
        self.llm = thresher.load(settings["model"], backend="cpu", dtype=settings["dtype"], expert_memory=memory)
        self.policy = thresher.Policy(settings.get("select"), settings.get("evict"), settings.get("ffn"))

    def run(self, ids: list[int], tokens: int) -> tuple[float, float]:
        answer = self.llm.generate(ids, self.policy, max_new_tokens=tokens, min_new_tokens=tokens)
        for _ in answer:
            pass
        return answer.stats.time_to_first_token, answer.stats.tokens_per_second


class Transformers:
    """transformers: torch's scaled_dot_product_attention, the prompt in one shot. `dtype`."""

    def __init__(self, settings: dict[str, Any]) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(settings["threads"])
        self.torch = torch
        self.model = AutoModelForCausalLM.from_pretrained(
            settings["model"], dtype=getattr(torch, settings["dtype"]), attn_implementation="sdpa"
        )

    def run(self, ids: list[int], tokens: int) -> tuple[float, float]:
        with self.torch.inference_mode():
            started = perf_counter()
            seen = self.model(self.torch.tensor([ids]), use_cache=True, logits_to_keep=1)
            token = seen.logits[:, -1:].argmax(-1)
            first = perf_counter()
            for _ in range(tokens - 1):
                seen = self.model(token, past_key_values=seen.past_key_values, use_cache=True)
                token = seen.logits[:, -1:].argmax(-1)
            return first - started, (tokens - 1) / (perf_counter() - first)


class OpenVino:
    """OpenVINO GenAI over a model that `optimum-cli export openvino` wrote. `dtype`: what it computes in, of its own
    choice for int8; `sparse`: XAttention in the prompt, as it comes. Its cache is in 8 bits, also as it comes."""

    def __init__(self, settings: dict[str, Any]) -> None:
        import numpy
        import openvino
        import openvino_genai

        self.numpy, self.openvino, self.genai = numpy, openvino, openvino_genai
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.enable_prefix_caching = False  # else every prompt after the first would be known
        scheduler.max_num_batched_tokens = settings["positions"]
        if settings.get("sparse"):
            scheduler.use_sparse_attention = True
            scheduler.sparse_attention_config = openvino_genai.SparseAttentionConfig(
                mode=openvino_genai.SparseAttentionMode.XATTENTION
            )
        hints = {"float32": "f32", "bfloat16": "bf16"}
        precision = {"INFERENCE_PRECISION_HINT": hint} if (hint := hints.get(settings["dtype"])) else {}
        self.pipeline = openvino_genai.LLMPipeline(
            settings["model"], "CPU", scheduler_config=scheduler, INFERENCE_NUM_THREADS=settings["threads"], **precision
        )

    def run(self, ids: list[int], tokens: int) -> tuple[float, float]:
        config = self.genai.GenerationConfig(max_new_tokens=tokens, ignore_eos=True, do_sample=False)
        asked = self.openvino.Tensor(self.numpy.array([ids], self.numpy.int64))
        mask = self.openvino.Tensor(self.numpy.ones((1, len(ids)), self.numpy.int64))
        told = self.pipeline.generate(self.genai.TokenizedInputs(asked, mask), config).perf_metrics
        return told.get_ttft().mean / 1e3, 1e3 / told.get_tpot().mean


class LlamaCpp:
    """llama.cpp over a GGUF file, whose numbers it first writes anew as `dtype`. Its cache is in float16, as it
    comes."""

    def __init__(self, settings: dict[str, Any]) -> None:
        import llama_cpp
        import numpy

        self.numpy, threads = numpy, settings["threads"]
        types = {
            "float32": llama_cpp.LLAMA_FTYPE_ALL_F32,
            "bfloat16": llama_cpp.LLAMA_FTYPE_MOSTLY_BF16,
            "int8": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
        }
        told = llama_cpp.llama_model_quantize_default_params()
        told.ftype, told.allow_requantize, told.nthread = types[settings["dtype"]], True, threads
        with tempfile.TemporaryDirectory() as folder:
            file = os.path.join(folder, "model.gguf")
            if llama_cpp.llama_model_quantize(settings["model"].encode(), file.encode(), told):
                raise RuntimeError(f"llama.cpp could not write {settings['model']} as {settings['dtype']}")
            self.model = llama_cpp.Llama(
                file, n_ctx=settings["positions"], n_threads=threads, n_threads_batch=threads, verbose=False
            )

    def run(self, ids: list[int], tokens: int) -> tuple[float, float]:
        started = perf_counter()
        self.model.reset()
        self.model.eval(ids)
        token = self._likeliest()
        first = perf_counter()
        for _ in range(tokens - 1):
            self.model.eval([token])
            token = self._likeliest()
        return first - started, (tokens - 1) / (perf_counter() - first)

    def _likeliest(self) -> int:
        logits = self.model._ctx.get_logits()
        return int(self.numpy.ctypeslib.as_array(logits, (self.model.n_vocab(),)).argmax())


PROGRAMS = {"thresher": Thresher, "transformers": Transformers, "openvino": OpenVino, "llama.cpp": LlamaCpp}


def memory() -> dict[str, int]:
    """Resident bytes, now and at most, where the system tells."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    return {name: 1024 * int(facts[key].split()[0]) for name, key in (("resident", "VmRSS"), ("peak", "VmHWM"))}


def main() -> None:
    settings = json.loads(sys.argv[1])
    sys.path.pop(0)  # this folder: its names are no packages
    program = PROGRAMS[settings["program"]](settings)
    print(json.dumps({"loaded": True, **memory()}), flush=True)
    ids = json.loads(sys.stdin.readline())
    for line in sys.stdin:
        first, speed = program.run(ids, int(line))
        print(json.dumps({"first": first, "speed": speed, **memory()}), flush=True)


if __name__ == "__main__":
    main()

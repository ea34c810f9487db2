"""Kernels of `accel.cuda` against what a user of PyTorch would call: needs a GPU, and torch with CUDA.

    python -m benchmarks.gpu [--short]

Shape of Llama-3.1-8B: H 32, KV 8, D 128, bfloat16. Times are medians of events on the device, in milliseconds, with the
least and the most. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import normalize, scaled_dot_product_attention

import accel.cuda as cuda
from accel.cuda.linear.inverse_norms import with_rates
from accel.cuda.runtime.arrays import BF16, F32, I64, Array
from accel.cuda.runtime.device import machine
from accel.cuda.runtime.views import Positions
from accel.shared.lazy import Chosen

H, KV, D, QUERIES, BUDGET, CHUNK = 32, 8, 128, 16, 1024, 128
PEERS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
TYPES = {torch.bfloat16: BF16, torch.float32: F32, torch.int64: I64}
Times = tuple[float, float, float]


def ours(x: torch.Tensor) -> Array:
    """A tensor as an array of the backend, without a copy."""
    size = x.element_size()
    return Array(x, x.data_ptr(), tuple(x.shape), tuple(s * size for s in x.stride()), TYPES[x.dtype])


def timed(call: Callable[[], Any], count: int) -> Times:
    """Milliseconds per call on the backend's stream: median, least and most of seven runs."""
    stream = torch.cuda.ExternalStream(int(machine().stream.handle))
    found = []
    with torch.cuda.stream(stream):
        for run in range(8):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            start.record()
            for _ in range(count):
                call()
            end.record()
            torch.cuda.synchronize()
            if run:
                found.append(start.elapsed_time(end) / count)
    return round(median(found), 4), round(min(found), 4), round(max(found), 4)


def plain_quoka(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, past: int) -> torch.Tensor:
    """QUOKA as it is written in a few lines of PyTorch: q (H, T, D), k and v (KV, S, D) -> (H, T, D)."""
    x = q.float()
    alike = (normalize(x, dim=-1) * normalize(x.mean(1, keepdim=True), dim=-1)).sum(-1)
    chosen = alike.topk(QUERIES, largest=False).indices  # (H, N)
    slots = normalize(x.gather(1, chosen[:, :, None].expand(-1, -1, D)), dim=-1).view(KV, H // KV, QUERIES, D).mean(1)
    scores = (slots @ normalize(k[:, :past].float(), dim=-1).transpose(1, 2)).amax(1)
    kept = scores.topk(BUDGET).indices.sort().values
    own = torch.arange(past, k.shape[1], device=k.device).expand(KV, -1)
    columns = torch.cat([kept, own], 1)[:, :, None].expand(-1, -1, D)
    mask = torch.ones(q.shape[1], columns.shape[1], dtype=torch.bool, device=q.device)
    mask[:, BUDGET:] = torch.ones_like(mask[:, BUDGET:]).tril()
    keys, values = k.gather(1, columns), v.gather(1, columns)
    return scaled_dot_product_attention(q[None], keys[None], values[None], attn_mask=mask, enable_gqa=True)[0]


def tensors(tokens: int, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Positions]:
    """q, k, v and the positions of `size` keys."""
    q, k, v = (
        torch.randn(n, m, D, device="cuda", dtype=torch.bfloat16) for n, m in ((H, tokens), (KV, size), (KV, size))
    )
    positions = torch.arange(size, device="cuda").expand(KV, size).contiguous()
    torch.cuda.synchronize()
    return q, k, v, Positions(ours(positions), size - 1, size)


def peers(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, past: int, count: int) -> dict[str, Times]:
    """Each of PyTorch's kernels for the same queries over the past alone."""
    found = {}
    for name, backend in PEERS.items():
        with sdpa_kernel(backend):
            found[name] = timed(
                lambda: scaled_dot_product_attention(q[None], k[None, :, :past], v[None, :, :past], enable_gqa=True),
                count,
            )
    return found


def dense(tokens: int, past: int, count: int) -> dict[str, Any]:
    """Attention of `tokens` queries, causal, over a past and themselves."""
    q, k, v, positions = tensors(tokens, past + tokens)
    read = (ours(q), ours(k), ours(v), past, positions)
    times = {"cuda": timed(lambda: cuda.attention_each([read]), count), **peers(q, k, v, past, count)}
    best = min(times[name][0] for name in PEERS)
    rate = 4 * H * tokens * past * D / times["cuda"][0] / 1e9
    return {
        "tokens": tokens,
        "past": past,
        **times,
        "tflops": round(rate),
        "speedup": round(best / times["cuda"][0], 2),
    }


def quoka(chunks: int, past: int, count: int) -> dict[str, Any]:
    """QUOKA in full, from norms known to the output, for chunks that share a pass."""
    q, k, v, positions = tensors(chunks * CHUNK, past + chunks * CHUNK)
    keys, values = with_rates(ours(k)), ours(v)
    pasts = [past + c * CHUNK for c in range(chunks)]
    queries = [ours(q)[:, c * CHUNK : (c + 1) * CHUNK] for c in range(chunks)]

    def call() -> list[Array]:
        kept = cuda.select_keys_each(queries, keys, pasts, [BUDGET] * chunks, QUERIES)
        columns = [cuda.with_chunk(rows, at, at + CHUNK) for rows, at in zip(kept, pasts, strict=True)]
        reads = [
            (one, *(Chosen(x, c) for x in (keys.held, values)), at, Chosen(positions, c))
            for one, c, at in zip(queries, columns, pasts, strict=True)
        ]
        return cuda.attention_each(reads)

    last = slice((chunks - 1) * CHUNK, None)
    got = np.asarray(cuda.to_numpy(call()[-1])).reshape(CHUNK, H, D).swapaxes(0, 1)
    wanted = plain_quoka(q[:, last], k, v, pasts[-1]).float().cpu().numpy()
    apart = float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))
    times = {"cuda": timed(call, count), **peers(q[:, :CHUNK], k, v, past, count)}
    times["plain torch"] = timed(lambda: plain_quoka(q[:, last], k, v, pasts[-1]), count)
    each = times["cuda"][0] / chunks
    best = min(times[name][0] for name in PEERS)
    return {
        "chunks": chunks, "past": past, **times, "off by": round(apart, 4), "speedup per chunk": round(best / each, 2),
        "over plain torch": round(times["plain torch"][0] / each, 2),
    }  # fmt: skip


def scores(size: int, count: int) -> dict[str, Any]:
    """KeyDiff's scores against copying the keys once."""
    _, k, _, _ = tensors(1, size)
    keys, copy = with_rates(ours(k)), torch.empty_like(k)
    times = {"cuda": timed(lambda: cuda.keydiff_scores(keys), count), "copy": timed(lambda: copy.copy_(k), count)}
    return {"keys": size, **times, "times a copy": round(times["cuda"][0] / times["copy"][0], 2)}


def main() -> None:
    """Measure, print, and print JSON last."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="fewer lengths")
    short = parser.parse_args().short
    pasts = (32_768,) if short else (32_768, 65_536, 131_072)
    results: dict[str, list[dict[str, Any]]] = {"dense": [], "quoka": [], "keydiff": []}
    for name, rows in (
        ("dense", [dense(t, past, 10) for t in (1, 128, 1024) for past in pasts]),
        ("quoka", [quoka(chunks, past, 10) for chunks in (1, 8) for past in pasts]),
        ("keydiff", [scores(size, 20) for size in (8_192, 131_072)]),
    ):
        for row in rows:
            print(name, row, flush=True)
        results[name] = rows
    print(json.dumps({"gpu": machine().name, "torch": torch.__version__, **results}))


if __name__ == "__main__":
    main()

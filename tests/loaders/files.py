"""Small checkpoints written as real files, for any test that loads one."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

CODES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int8": "I8"}


def write_checkpoint(
    directory: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    *,
    shards: int = 1,
    dtype: str | None = None,
) -> Path:
    """A Hugging Face model directory: config.json and the tensors, cast to `dtype`, in one file or in shards."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    names = list(tensors)
    if shards == 1:
        write_safetensors(directory / "model.safetensors", tensors, dtype=dtype)
        return directory
    shard_of = {name: f"model-{n % shards + 1:05}-of-{shards:05}.safetensors" for n, name in enumerate(names)}
    for shard in sorted(set(shard_of.values())):
        part = {name: tensors[name] for name in names if shard_of[name] == shard}
        write_safetensors(directory / shard, part, dtype=dtype)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shard_of}))
    return directory


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray], *, dtype: str | None = None) -> None:
    """One safetensors file, its header padded with spaces to a multiple of eight bytes as the format asks."""
    header, data = {}, b""
    for name, array in tensors.items():
        stored = np.ascontiguousarray(array if dtype is None else array.astype(np.dtype(dtype)))
        start, data = len(data), data + stored.tobytes()
        header[name] = {
            "dtype": CODES[stored.dtype.name],
            "shape": list(stored.shape),
            "data_offsets": [start, len(data)],
        }
    write_raw_safetensors(path, header, data)


def write_raw_safetensors(path: Path, header: Any, data: bytes) -> None:
    """A safetensors file with this header, true or not."""
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def draw(name: str, shape: tuple[int, ...], *, seed: int = 0, norm_offset: float = 0.0) -> np.ndarray:
    """Float32 values for the tensor of that name: matrices that keep activations near 1, norms near 1, small biases.

    `norm_offset` is what the family adds to a norm's weight when it is used. Values depend on name and seed only, so
    they come out the same in whatever order tensors are made.
    """
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    values = rng.standard_normal(shape)
    if "norm" in name:
        return (1 - norm_offset + 0.2 * values).astype(np.float32)
    if name.endswith("bias"):
        return (0.3 * values).astype(np.float32)
    return (values / np.sqrt(shape[-1])).astype(np.float32)


LLAMA = {
    "model_type": "llama",
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "vocab_size": 50,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}


def llama_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a Llama without biases."""
    e, f, v = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    q = config["num_attention_heads"] * config["head_dim"]
    kv = config["num_key_value_heads"] * config["head_dim"]
    layer = {
        "input_layernorm.weight": (e,),
        "self_attn.q_proj.weight": (q, e),
        "self_attn.k_proj.weight": (kv, e),
        "self_attn.v_proj.weight": (kv, e),
        "self_attn.o_proj.weight": (e, q),
        "post_attention_layernorm.weight": (e,),
        "mlp.gate_proj.weight": (f, e),
        "mlp.up_proj.weight": (f, e),
        "mlp.down_proj.weight": (e, f),
    }
    shapes = {"model.embed_tokens.weight": (v, e), "model.norm.weight": (e,)}
    for n in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{n}.{name}": shape for name, shape in layer.items()}
    return shapes if config["tie_word_embeddings"] else shapes | {"lm_head.weight": (v, e)}


def llama_tensors(config: Mapping[str, Any] = LLAMA, *, seed: int = 0) -> dict[str, np.ndarray]:
    """Random tensors of a small Llama."""
    return {name: draw(name, shape, seed=seed) for name, shape in llama_shapes(config).items()}

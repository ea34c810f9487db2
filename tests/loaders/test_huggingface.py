"""Hugging Face directories: what is written is what is loaded, and what cannot be right is one clear line."""

from __future__ import annotations

import contextlib
import json
import os
import re
import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from loaders import load_checkpoint
from loaders.tensors import TensorFile
from reference import Weights
from tests.loaders.files import LLAMA, llama_tensors, write_checkpoint, write_raw_safetensors, write_safetensors

Q0 = "model.layers.0.self_attn.q_proj.weight"
TIED = {**LLAMA, "tie_word_embeddings": True}


def check_equal(weights: Weights, tensors: dict[str, np.ndarray], dtype: str = "float32") -> None:
    """Every weight holds its tensor, cast to `dtype` where it is a matrix."""
    second = weights.layers[1]
    pairs = {
        "model.embed_tokens.weight": weights.embedding,
        "model.norm.weight": weights.final_norm,
        "lm_head.weight": weights.output,
        "model.layers.1.input_layernorm.weight": second.attention_norm,
        "model.layers.1.self_attn.q_proj.weight": second.w_q,
        "model.layers.1.self_attn.k_proj.weight": second.w_k,
        "model.layers.1.self_attn.v_proj.weight": second.w_v,
        "model.layers.1.self_attn.o_proj.weight": second.w_o,
        "model.layers.1.post_attention_layernorm.weight": second.ffn_norm,
        "model.layers.1.mlp.gate_proj.weight": second.w_gate,
        "model.layers.1.mlp.up_proj.weight": second.w_up,
        "model.layers.1.mlp.down_proj.weight": second.w_down,
    }
    for name, array in pairs.items():
        wanted = np.dtype(dtype) if array.ndim == 2 or dtype == "float64" else np.dtype(np.float32)
        assert array.dtype == wanted, name
        np.testing.assert_array_equal(array, tensors[name].astype(wanted), err_msg=name)
    assert second.b_q is None
    assert second.q_norm is None
    assert second.post_ffn_norm is None


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_single_and_sharded_files(shards: int, tmp_path: Path) -> None:
    tensors = llama_tensors()
    checkpoint = load_checkpoint(write_checkpoint(tmp_path, LLAMA, tensors, shards=shards))
    assert checkpoint.path == tmp_path
    check_equal(checkpoint.weights, tensors)


@pytest.mark.parametrize("stored", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_every_dtype_from_every_stored_dtype(stored: str, dtype: str, tmp_path: Path) -> None:
    tensors = {name: array.astype(stored) for name, array in llama_tensors().items()}
    checkpoint = load_checkpoint(write_checkpoint(tmp_path, LLAMA, tensors), dtype=dtype)
    check_equal(checkpoint.weights, tensors, dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tensors_of_the_wanted_dtype_stay_views_of_the_file(dtype: str, tmp_path: Path) -> None:
    weights = load_checkpoint(write_checkpoint(tmp_path, LLAMA, llama_tensors(), dtype=dtype), dtype=dtype).weights
    owner = weights.embedding
    while isinstance(owner, np.ndarray) and owner.base is not None:
        owner = owner.base
    assert not isinstance(owner, np.ndarray)  # the mapping itself, no array that owns its memory
    before = (tmp_path / "model.safetensors").read_bytes()
    weights.embedding[0, 0] = 7  # copied on write
    assert (tmp_path / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("stored", "wanted"), [("bfloat16", "bfloat16"), ("bfloat16", "float32"), ("float32", "float16")]
)
def test_loading_needs_little_memory_beside_the_weights(stored: str, wanted: str, tmp_path: Path) -> None:
    """Tensors of the wanted dtype take none, since they are the file; others once, in the wanted dtype."""
    config = {**TIED, "hidden_size": 256, "vocab_size": 16_000, "intermediate_size": 4000}
    write_checkpoint(tmp_path, config, llama_tensors(config), dtype=stored)
    tracemalloc.start()
    weights = load_checkpoint(tmp_path, dtype=wanted).weights
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    matrices = weights.embedding.nbytes + sum(3 * layer.w_up.nbytes for layer in weights.layers)
    assert matrices > 15 * 2**20
    assert peak < (0 if stored == wanted else matrices) + 5 * 2**20


def test_tied_output_is_the_embedding_itself(tmp_path: Path) -> None:
    weights = load_checkpoint(write_checkpoint(tmp_path, TIED, llama_tensors(TIED))).weights
    assert weights.output is weights.embedding


def test_unaligned_tensors_are_copied_to_where_kernels_can_read_them(tmp_path: Path) -> None:
    text = json.dumps({"x": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}}).encode()
    text += b" " * (1 - len(text) % 2)  # an odd length: the data starts at an odd byte
    values = np.array([1, 2, 3], np.float32)
    (tmp_path / "odd.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + values.tobytes())
    array = TensorFile(tmp_path / "odd.safetensors").tensor("x")
    assert array.flags.aligned
    np.testing.assert_array_equal(array, values)


names = st.text("abc.", min_size=1, max_size=6)
shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
kinds = st.sampled_from(["float64", "float32", "float16", "int64", "int32", "int8", "uint8", "bool"])


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(names, st.tuples(shapes, kinds), max_size=5), st.integers(0, 2**32))
def test_reads_what_the_safetensors_package_writes(
    tmp_path_factory: pytest.TempPathFactory, layout: dict[str, tuple[tuple[int, ...], str]], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    tensors = {name: rng.integers(0, 100, shape).astype(kind) for name, (shape, kind) in layout.items()}
    path = tmp_path_factory.mktemp("file") / "x.safetensors"
    save_file(tensors, path)
    file = TensorFile(path)
    assert set(file.entries) == set(tensors)
    for name, wanted in tensors.items():
        assert file.tensor(name).dtype == wanted.dtype
        np.testing.assert_array_equal(file.tensor(name), wanted)


@pytest.mark.parametrize("metadata", [None, {}, {"format": "mlx"}])
def test_metadata_of_any_kind(metadata: Any, tmp_path: Path) -> None:
    header = {"__metadata__": metadata, "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    write_raw_safetensors(tmp_path / "x.safetensors", header, bytes(8))
    assert TensorFile(tmp_path / "x.safetensors").metadata == (metadata or {})


def test_the_tests_own_writer_keeps_the_format(tmp_path: Path) -> None:
    tensors = llama_tensors()
    write_safetensors(tmp_path / "x.safetensors", tensors)
    for name, array in load_file(tmp_path / "x.safetensors").items():
        np.testing.assert_array_equal(array, tensors[name])


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_file_cut_anywhere_is_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("file") / "cut.safetensors"
    write_safetensors(path, {"a": np.ones((3, 2), np.float32), "b": np.ones(4, np.float16)})
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(ValueError, match=r"cut\.safetensors: .*got .*, wanted "):
        TensorFile(path)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60), st.one_of(st.none(), st.integers(0, 2**64 - 1)))
def test_random_bytes_are_refused_and_never_crash(
    tmp_path_factory: pytest.TempPathFactory, body: bytes, length: int | None
) -> None:
    path = tmp_path_factory.mktemp("file") / "noise.safetensors"
    path.write_bytes((len(body) + 1 if length is None else length).to_bytes(8, "little") + b"{" + body)
    with contextlib.suppress(ValueError):
        assert TensorFile(path).entries == {}  # only an empty header over no data can pass


entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        ([], "got a header that is a list, wanted an object"),
        ({"__metadata__": [1]}, r"__metadata__: got \[1\], wanted an object"),
        ({"a": 3}, "tensor 'a': got dtype None, wanted one of F64, F32"),
        ({"a": {**entry, "dtype": "F4"}}, "tensor 'a': got dtype 'F4', wanted one of F64, F32"),
        ({"a": {**entry, "shape": [-2]}}, r"tensor 'a': got shape \[-2\], wanted a list of whole numbers"),
        ({"a": {**entry, "shape": [True, 2]}}, r"tensor 'a': got shape \[True, 2\], wanted"),
        ({"a": {**entry, "shape": [3]}}, r"tensor 'a': got 8 bytes, wanted 12 for F32 of shape \(3,\)"),
        ({"a": {**entry, "data_offsets": [8, 0]}}, r"tensor 'a': got data_offsets \[8, 0\], wanted \[start, stop\]"),
        ({"a": {**entry, "data_offsets": [0]}}, r"tensor 'a': got data_offsets \[0\], wanted \[start, stop\]"),
        ({"a": {**entry, "data_offsets": [8, 16]}}, "tensor 'a': got data from byte 8, wanted it from 0"),
        ({"a": entry, "b": entry}, "tensor 'b': got data from byte 0, wanted it from 8"),
        (
            {"a": {**entry, "shape": [4], "data_offsets": [0, 16]}},
            "tensor 'a': got 8 bytes of data in the file, wanted 16",
        ),
        ({}, "got 8 bytes of data, wanted 0, where the last tensor ends"),
    ],
)
def test_a_header_that_lies(header: Any, wanted: str, tmp_path: Path) -> None:
    write_raw_safetensors(tmp_path / "lie.safetensors", header, bytes(8))
    with pytest.raises(ValueError, match=r"lie\.safetensors: " + wanted):
        TensorFile(tmp_path / "lie.safetensors")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", [Q0, "model.norm.weight"])
def test_nan_and_infinity_are_refused(bad: float, dtype: str, name: str, tmp_path: Path) -> None:
    tensors = llama_tensors()
    tensors[name].reshape(-1)[5] = bad
    index = re.escape(str((0, 5) if name == Q0 else (5,)))
    write_checkpoint(tmp_path, LLAMA, tensors, dtype=dtype)
    with pytest.raises(ValueError, match=rf"safetensors: tensor '{name}': got {bad} at index {index}, wanted a finite"):
        load_checkpoint(tmp_path, dtype=dtype)


def test_a_value_that_the_wanted_dtype_cannot_hold(tmp_path: Path) -> None:
    tensors = llama_tensors()
    tensors[Q0][1, 2] = 1e6
    write_checkpoint(tmp_path, LLAMA, tensors)
    with pytest.raises(ValueError, match=rf"'{Q0}': got 1000000.0 at index \(1, 2\), wanted one that fits float16"):
        load_checkpoint(tmp_path, dtype="float16")


def test_a_bad_value_far_into_a_tensor(tmp_path: Path) -> None:
    config = {**TIED, "vocab_size": 100_000}
    tensors = llama_tensors(config)
    tensors["model.embed_tokens.weight"][99_999, 23] = np.nan
    with pytest.raises(ValueError, match=r"got nan at index \(99999, 23\)"):
        load_checkpoint(write_checkpoint(tmp_path, config, tensors))


def test_wrong_shape(tmp_path: Path) -> None:
    tensors = {**llama_tensors(), Q0: np.ones((24, 23), np.float32)}
    wanted = rf"model\.safetensors: tensor '{Q0}': got shape \(24, 23\), wanted \(24, 24\) as the config says"
    with pytest.raises(ValueError, match=wanted):
        load_checkpoint(write_checkpoint(tmp_path, LLAMA, tensors))


def test_quantised_tensor(tmp_path: Path) -> None:
    tensors = {**llama_tensors(), Q0: np.ones((24, 24), np.int8)}
    with pytest.raises(ValueError, match=rf"tensor '{Q0}': got dtype int8, wanted a floating-point type"):
        load_checkpoint(write_checkpoint(tmp_path, LLAMA, tensors))


@pytest.mark.parametrize("name", [Q0, "model.norm.weight", "lm_head.weight"])
def test_missing_tensor(name: str, tmp_path: Path) -> None:
    tensors = {other: array for other, array in llama_tensors().items() if other != name}
    with pytest.raises(ValueError, match=rf"{re.escape(str(tmp_path))}: tensor '{name}': got no such tensor, wanted"):
        load_checkpoint(write_checkpoint(tmp_path, LLAMA, tensors))


def test_missing_embedding(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"got no embedding, wanted tensor 'model\.embed_tokens\.weight'"):
        load_checkpoint(write_checkpoint(tmp_path, LLAMA, {"x": np.ones(1, np.float32)}))


def test_missing_shard(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, LLAMA, llama_tensors(), shards=3)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"model-00002-of-00003\.safetensors: got no such file, wanted the shard"
    ):
        load_checkpoint(tmp_path)


def test_truncated_shard(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, LLAMA, llama_tensors(), shards=2)
    shard = tmp_path / "model-00001-of-00002.safetensors"
    os.truncate(shard, shard.stat().st_size - 100)
    with pytest.raises(
        ValueError, match=r"model-00001-of-00002\.safetensors: tensor '.*': got .* the file is truncated"
    ):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("weight_map", "wanted"),
    [
        ([1], r"index\.json: weight_map: got \[1\], wanted an object"),
        (
            {Q0: "../x.safetensors"},
            rf"index\.json: tensor '{Q0}': got file '\.\./x\.safetensors', wanted the name of a",
        ),
        ({Q0: 4}, rf"index\.json: tensor '{Q0}': got file 4, wanted the name of a file"),
        ({"nothing": "model-00001-of-00002.safetensors"}, "00001-of-00002.safetensors: tensor 'nothing': got no such"),
    ],
)
def test_an_index_that_lies(weight_map: Any, wanted: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, LLAMA, llama_tensors(), shards=2)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ValueError, match=wanted):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("{", "config.json: got text that is not JSON"),
        ("[" * 200_000, "config.json: got text that is not JSON"),
        ("[]", "config.json: got a JSON list, wanted an object"),
        ("\xff", "config.json: got bytes that are not UTF-8 text"),
        ("{}", "config.json: model_type: got None, wanted one of the supported families"),
    ],
)
def test_a_config_that_is_none(text: str, wanted: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, LLAMA, llama_tensors())
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=wanted):
        load_checkpoint(tmp_path)


def test_a_header_nested_without_end(tmp_path: Path) -> None:
    text = b"[" * 200_000
    (tmp_path / "deep.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(ValueError, match=r"deep\.safetensors: got a header that is not JSON"):
        TensorFile(tmp_path / "deep.safetensors")


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere: got no such file or directory, wanted"):
        load_checkpoint(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"config\.json: got no such file, wanted the config\.json of a model"):
        load_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    with pytest.raises(FileNotFoundError, match=r"got neither model\.safetensors nor model\.safetensors\.index\.json"):
        load_checkpoint(tmp_path)


def test_a_file_that_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"model\.bin: got a file, wanted a model directory or a \.gguf file"):
        load_checkpoint(tmp_path / "model.bin")


def test_a_model_without_tokenizer_loads_and_says_so_only_when_asked(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(write_checkpoint(tmp_path, LLAMA, llama_tensors()))
    assert checkpoint.template is None
    with pytest.raises(FileNotFoundError, match=r"got no tokenizer\.json, wanted one"):
        _ = checkpoint.tokenizer


def test_text_that_is_not_text(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(write_checkpoint(tmp_path, LLAMA, llama_tensors()))
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"tokenizer\.json: got bytes that are not UTF-8 text"):
        _ = checkpoint.tokenizer


def test_unknown_dtype(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dtype: got 'int4', wanted one of float32, float64, float16, bfloat16"):
        load_checkpoint(write_checkpoint(tmp_path, LLAMA, llama_tensors()), dtype="int4")


def test_bfloat16_reads_the_bits_as_they_are(tmp_path: Path) -> None:
    values = np.array([1.0, -2.5, 3.140625], np.float32)  # each exact in bfloat16
    write_safetensors(tmp_path / "x.safetensors", {"x": values}, dtype="bfloat16")
    stored = TensorFile(tmp_path / "x.safetensors").tensor("x")
    assert stored.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(
        stored.view(np.uint16), values.view(np.uint32) >> 16
    )  # bfloat16 is float32's upper half

"""Checkpoints with something wrong anywhere in them: they load, or one line names the file. Never another exception."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from loaders import load_checkpoint
from reference import Model
from tests.loaders.files import LLAMA, llama_tensors, write_checkpoint
from tests.loaders.gguf_files import metadata, tensors, write_gguf
from tests.loaders.test_tokenizer import byte_level, from_metadata

CONFIG = {**LLAMA, "vocab_size": 420}
TEXTS = {
    **from_metadata(byte_level("qwen2")).texts,
    "generation_config.json": {"eos_token_id": [407], "do_sample": True, "temperature": 0.7, "top_k": 5},
    "special_tokens_map.json": {"eos_token": {"content": "</s>"}},
    "added_tokens.json": {"<new>": 411},
    "chat_template.jinja": "{% for m in messages %}{{ m.content }}{% endfor %}",
}
JSONS = ["config.json", *(name for name in TEXTS if name.endswith(".json"))]
DATA = sum(array.nbytes for array in tensors("llama").values())
NUMBERS = [10**6, 2**31, 2**53, 2**64, 10**30, 10**400, -1, 0, 1, 0.5, 1e308, 1e-308, float("nan"), float("inf")]
VALUES = [*NUMBERS, None, True, "", "1e5", "\ud800", "a" * 5000, [], {}, [[]], {"a": 1}]
ROTATION = ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor", "beta_fast")
KEYS = ("rope_scaling", "rope_parameters", "layer_types", "sliding_window", "head_dim", "added_tokens_decoder")


def nested(depth: int) -> Any:
    value: Any = 1
    for n in range(depth):
        value = [value] if n % 2 else {"a": value}
    return value


rotations = st.fixed_dictionaries(
    {"rope_type": st.sampled_from(["linear", "dynamic", "llama3", "yarn"])},
    optional={key: st.sampled_from(NUMBERS) for key in ROTATION},
)
values = st.sampled_from(VALUES) | st.sampled_from([5, 50]).map(nested) | rotations


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """Every place in a JSON value down to the sixth level, of long lists the first entries."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for n, (key, inner) in enumerate(inside):
        if n < 30 and len(path) < 6:
            yield (*path, key)
            yield from places(inner, (*path, key))


def changed_json(data: st.DataObject, text: str) -> bytes:
    """The JSON with something taken out, put in, or put in its place, once or a few times."""
    value = json.loads(text)
    for _ in range(data.draw(st.integers(1, 3))):
        *outer, last = data.draw(st.sampled_from(list(places(value)) or [("x",)]))
        holder = value
        for key in outer:
            holder = holder[key]
        how = data.draw(st.sampled_from(["remove", "replace", "add"]))
        if how == "remove" and (isinstance(holder, list) or last in holder):
            holder.pop(last)
        elif how == "add" and isinstance(holder, dict):
            holder[data.draw(st.sampled_from(KEYS))] = deepcopy(data.draw(values))  # the next turn may change it
        else:
            holder[last] = deepcopy(data.draw(values))
    return json.dumps(value).encode("utf-8", "surrogatepass")


def changed_bytes(data: st.DataObject, content: bytes, upto: int) -> bytes:
    """The bytes with some of the first `upto` others, gone, doubled, or a very long nesting among them."""
    new = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(0, min(upto, len(new)) - 1)))
        how = data.draw(st.sampled_from(["byte", "word", "gone", "cut", "nested"]))
        if how == "byte":
            new[at : at + 1] = data.draw(st.binary(min_size=1, max_size=1))
        elif how == "word":
            new[at : at + 8] = data.draw(st.sampled_from([0, 1, 7, 2**31, 2**32 - 1, 2**60])).to_bytes(8, "little")
        elif how == "gone":
            del new[at : at + data.draw(st.sampled_from([1, 8]))]
        elif how == "cut":
            del new[at:]
        else:
            new[at:at] = b"[" * data.draw(st.sampled_from([10, 100_000]))
    return bytes(new)


def check(path: Path) -> None:
    """Load all of it and run it, or fail as one should."""
    stage, said = "load", None
    try:
        checkpoint = load_checkpoint(path)
        ids = checkpoint.tokenizer.encode("ab cab", add_special_tokens=False).ids
        checkpoint.tokenizer.decode(ids)
        _ = checkpoint.generation
        template, stage = checkpoint.template, "run"
        if template is not None:
            template.render([{"role": "user", "content": "x"}])
        model = Model(checkpoint.config, checkpoint.weights, reference)
        with np.errstate(all="ignore"):
            reference.prefill(model, reference.new_state(model), [1, 2, 3])
    except (ValueError, OSError) as error:
        said = error
    if said is not None:
        assert type(said) in (ValueError, FileNotFoundError)
        assert "\n" not in str(said)
        assert len(str(said)) < 2000
        assert stage == "run" or str(path) in str(said)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = write_checkpoint(tmp_path_factory.mktemp("whole") / "model", CONFIG, llama_tensors(CONFIG))
    for name, text in TEXTS.items():
        (directory / name).write_text(text if isinstance(text, str) else json.dumps(text))
    write_gguf(directory / "m.gguf", "llama", tensors("llama"), metadata("llama"))
    check(directory)
    check(directory / "m.gguf")
    return directory


@settings(deadline=None, max_examples=150)
@given(data=st.data(), name=st.sampled_from([*JSONS, *TEXTS, "model.safetensors", "model.safetensors", "m.gguf"]))
def test_a_changed_file_loads_or_is_named(
    whole: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, name: str
) -> None:
    directory = tmp_path_factory.mktemp("changed")
    shutil.copytree(whole, directory, dirs_exist_ok=True)
    file = directory / name
    content = file.read_bytes()
    if name == "m.gguf":
        file.write_bytes(changed_bytes(data, content, len(content) - DATA))
    elif name == "model.safetensors":
        length = int.from_bytes(content[:8], "little")
        head = content[8 : 8 + length]
        head = data.draw(st.sampled_from([changed_json, lambda d, t: changed_bytes(d, t, len(t))]))(data, head)
        file.write_bytes(len(head).to_bytes(8, "little") + head + content[8 + length :])
    elif name in JSONS and data.draw(st.booleans()):
        file.write_bytes(changed_json(data, content.decode()))
    else:
        file.write_bytes(changed_bytes(data, content, len(content)))
    check(file if name == "m.gguf" else directory)


@pytest.mark.parametrize("name", JSONS)
def test_nesting_without_end_is_named(whole: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    (tmp_path / name).write_text('{"a": ' + "[" * 100_000)
    with pytest.raises(ValueError, match=re.escape(str(tmp_path))) as caught:
        _ = load_checkpoint(tmp_path).generation
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", [*LLAMA, *KEYS])
def test_any_value_under_any_key_of_the_config(whole: Path, tmp_path: Path, key: str) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    rotations = [{"rope_type": kind, part: n} for kind in ("linear", "yarn") for part in ROTATION for n in NUMBERS]
    for value in [*VALUES, *(rotations if key.startswith("rope_") and key != "rope_theta" else [])]:
        (tmp_path / "config.json").write_text(json.dumps({**CONFIG, key: value}))
        check(tmp_path)


def test_a_model_beyond_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch, whole: Path) -> None:
    def out_of_memory(*args: Any, **options: Any) -> None:
        raise MemoryError("Unable to allocate 8.00 EiB")

    monkeypatch.setattr("loaders.weights.check_finite", out_of_memory)
    with pytest.raises(ValueError, match="model: got a checkpoint that needs more memory than there is"):
        load_checkpoint(whole)

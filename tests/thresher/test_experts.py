"""Experts that stay on disk: the same bits as in memory, within the budget, those that are used most."""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from hypothesis import given
from hypothesis import strategies as st

import thresher
from loaders.tensors import write_tensors
from reference import Expert, StoredExperts
from tests.checkpoints import byte_tokenizer
from tests.loaders.files import draw, write_checkpoint
from tests.loaders.test_experts import CONFIGS, RECORDED, gguf, stacks, tensors
from tests.thresher.test_cli import one_line
from tests.thresher.test_cli import thresher as thresher_command
from thresher.experts import ExpertMemory
from thresher.memory import available, forget_peak, peak, resident
from thresher.sizes import read_size, size

IDS = np.random.default_rng(1).integers(0, 12, 30).tolist()
MIB = 1 << 20


def latents() -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A small A.X K1."""
    config, shapes = (json.loads(str(RECORDED[f"axk1-latents/{part}"])) for part in ("config", "shapes"))
    return config, {name: draw(name, tuple(shape)) for name, shape in shapes.items()}


def stored(directory: Path, kind: str) -> Path:
    """A mixture whose experts stand in the file in one way or another."""
    if kind == "gguf":
        return gguf(directory / "m.gguf", "mixtral", GGMLQuantizationType.Q8_0)
    if kind == "axk1":
        return write_checkpoint(directory, *latents())
    apart = tensors("qwen3_moe")
    return write_checkpoint(directory, CONFIGS["qwen3_moe"], stacks(apart, fused=True) if kind == "fused" else apart)


def all_logits(llm: thresher.LanguageModel) -> bytes:
    """Of a prompt in chunks and of tokens that are decoded."""
    rows = [llm.logits(IDS, chunk=7)]
    state = llm.prefill(IDS[:9])
    for token in IDS[:5]:
        llm.prefill([token], state=state)
        rows.append(np.asarray(state.logits)[None])
    return b"".join(row.tobytes() for row in rows)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("apart", "float32"), ("fused", "bfloat16"), ("gguf", "int8"), ("gguf", "float32"), ("axk1", "float32")],
)
def test_the_same_bits_from_disk(tmp_path: Path, kind: str, dtype: str, backend: str) -> None:
    path = stored(tmp_path / "m", kind) if kind != "gguf" else stored(tmp_path, kind)
    whole = thresher.load(path, backend=backend, dtype=dtype)
    assert whole.experts_on_disk == ""
    experts = sum(x.nbytes for w in whole.model.weights.layers for e in w.experts or () for x in vars(e).values())
    wanted = all_logits(whole)
    for budget in (0, experts // 2):
        llm = thresher.load(path, backend=backend, dtype=dtype, expert_memory=budget)
        assert llm.model.weights.nbytes == whole.model.weights.nbytes - experts
        assert all_logits(llm) == wanted
        assert llm.expert_memory.nbytes <= budget
        assert bool(llm.expert_memory.nbytes) == bool(budget)
        assert llm.expert_memory.reads > len(llm.model.weights.layers[-1].experts or ())
    assert thresher.load(path, backend=backend, dtype=dtype, expert_memory=experts).experts_on_disk == ""


def test_it_is_told_and_by_default_if_memory_is_short(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = stored(tmp_path, "apart")
    line = "6 experts of 144.0 KiB stay on disk and are read when a token is sent to them, which is slow; {} of memory"
    with caplog.at_level(logging.WARNING):
        thresher.load(path, backend="cpu", expert_memory="40kB")
        assert [line.format("39.1 KiB") in record.message for record in caplog.records] == [True]
        caplog.clear()
        monkeypatch.setattr("thresher.model.available", lambda: 10**6)
        llm = thresher.load(path)
        assert [line.format("488.3 KiB") in record.message for record in caplog.records] == [True]
        assert llm.device == "cpu"
        caplog.clear()
        monkeypatch.setattr("thresher.model.available", lambda: None)  # the system does not say
        assert thresher.load(path, backend="cpu").experts_on_disk == ""
        assert not caplog.records


def test_what_is_wrong_with_an_expert_is_one_line(tmp_path: Path) -> None:
    config, apart = CONFIGS["qwen3_moe"], tensors("qwen3_moe")
    name = "model.layers.1.mlp.experts.2.up_proj.weight"
    lacking = write_checkpoint(tmp_path / "lacking", config, {n: x for n, x in apart.items() if n != name})
    with pytest.raises(ValueError, match=f"{name}.*no such tensor"):
        thresher.load(lacking, expert_memory=0)
    narrow = write_checkpoint(tmp_path / "narrow", config, {**apart, name: np.ones((63, 32), np.float32)})
    with pytest.raises(ValueError, match=rf"{name}.*got shape \(63, 32\), wanted \(64, 32\)"):
        thresher.load(narrow, expert_memory=0)
    spoilt = apart[name].copy()
    spoilt[5, 7] = np.nan
    llm = thresher.load(write_checkpoint(tmp_path / "nan", config, {**apart, name: spoilt}), expert_memory=0)
    with pytest.raises(ValueError, match=rf"{name}.*got nan at index \(5, 7\), wanted a finite number"):
        llm.logits(IDS)


LAYERS, EXPERTS = 3, 8


def remembering(budget: int) -> tuple[ExpertMemory, Any]:
    """A memory, and what takes an expert of one layer out of it: 12 bytes that say which it is."""
    memory = ExpertMemory(budget)

    def take(layer: int, n: int) -> Expert:
        def read(n: int) -> Expert:
            held = memory.nbytes
            assert held == 0 or held + 12 <= budget  # room was made before
            return Expert(*(np.array([value], np.int32) for value in (layer, n, 0)))

        return memory.take(layer, n, StoredExperts(EXPERTS, read(0), read))

    return memory, take


@given(st.integers(0, 12 * 30), st.lists(st.tuples(st.integers(0, LAYERS - 1), st.integers(0, EXPERTS - 1))))
def test_the_right_expert_within_the_budget(budget: int, asked: list[tuple[int, int]]) -> None:
    memory, take = remembering(budget)
    for layer, n in asked:
        expert = take(layer, n)
        assert (expert.w_gate[0], expert.w_up[0]) == (layer, n)
        assert memory.nbytes <= max(budget - 12, 0)
    assert len(set(asked)) <= memory.reads <= len(asked) if asked else memory.reads == 0
    if budget >= 12 * (len(set(asked)) + 1):
        assert memory.reads == len(set(asked))


def test_those_used_most_are_kept_and_a_prompt_does_not_drive_them_out() -> None:
    """In turn, all of 24 with room for 12: nearly half of them need no reading, though the one that was used last is
    always the one that is asked for last. And what is asked for often stays, until something else is."""
    memory, take = remembering(12 * 13)
    rounds = 40
    for _ in range(rounds):
        for layer in range(LAYERS):
            for n in range(EXPERTS):
                take(layer, n)
    assert memory.reads / (rounds * 24) < 0.6
    rng = np.random.default_rng(0)
    for favourites in ([0, 1, 2, 3], [4, 5, 6, 7]):
        reads: Counter[str] = Counter()
        for step in range(600):
            before = memory.reads
            n = int(rng.choice(favourites)) if rng.random() < 0.8 else int(rng.integers(EXPERTS))
            take(step % LAYERS, n)
            reads["late" if step >= 400 else "early"] += memory.reads - before
        assert reads["late"] / 200 < 0.25  # of the others there are four in eight of a fifth: 0.1


SHAPE = {  # of A.X K1, all parts in small; an expert is 768 KiB in bfloat16
    "model_type": "axk1", "hidden_size": 256, "intermediate_size": 512, "moe_intermediate_size": 512,
    "num_hidden_layers": 3, "first_k_dense_replace": 1, "n_routed_experts": 40, "num_experts_per_tok": 4,
    "n_group": 4, "topk_group": 2, "num_attention_heads": 4, "q_lora_rank": 48, "kv_lora_rank": 32,
    "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16, "vocab_size": 300, "max_position_embeddings": 512,
}  # fmt: skip


def axk1_tensors(c: dict[str, Any]) -> dict[str, np.ndarray]:
    """Random tensors of a model of that shape."""
    e, h, plain, turned = c["hidden_size"], c["num_attention_heads"], c["qk_nope_head_dim"], c["qk_rope_head_dim"]

    def ffn(prefix: str, width: int) -> dict[str, tuple[int, ...]]:
        return {f"{prefix}{m}_proj.weight": (e, width) if m == "down" else (width, e) for m in ("gate", "up", "down")}

    shapes = {"model.embed_tokens.weight": (c["vocab_size"], e), "model.norm.weight": (e,)}
    shapes["lm_head.weight"] = c["vocab_size"], e
    for n in range(c["num_hidden_layers"]):
        layer: dict[str, tuple[int, ...]] = {
            "input_layernorm.weight": (e,),
            "post_attention_layernorm.weight": (e,),
            "post_mlp_layernorm.weight": (e,),
            "self_attn.q_a_proj.weight": (c["q_lora_rank"], e),
            "self_attn.q_a_layernorm.weight": (c["q_lora_rank"],),
            "self_attn.q_b_proj.weight": (h * (plain + turned), c["q_lora_rank"]),
            "self_attn.kv_a_proj_with_mqa.weight": (c["kv_lora_rank"] + turned, e),
            "self_attn.kv_a_layernorm.weight": (c["kv_lora_rank"],),
            "self_attn.kv_b_proj.weight": (h * (plain + c["v_head_dim"]), c["kv_lora_rank"]),
            "self_attn.o_proj.weight": (e, h * c["v_head_dim"]),
        }
        if n < c["first_k_dense_replace"]:
            layer |= ffn("mlp.", c["intermediate_size"])
        else:
            layer |= {"mlp.gate.weight": (c["n_routed_experts"], e)} | ffn(
                "mlp.shared_experts.", c["moe_intermediate_size"]
            )
            layer["mlp.gate.e_score_correction_bias"] = (c["n_routed_experts"],)
            for x in range(c["n_routed_experts"]):
                layer |= ffn(f"mlp.experts.{x}.", c["moe_intermediate_size"])
        shapes |= {f"model.layers.{n}.{name}": shape for name, shape in layer.items()}
    return {name: draw(name, shape) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def many_experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of that shape, in bfloat16."""
    path = tmp_path_factory.mktemp("axk1")
    (path / "config.json").write_text(json.dumps(SHAPE))
    stored = {name: x.astype(ml_dtypes.bfloat16) for name, x in axk1_tensors(SHAPE).items()}
    write_tensors(path / "model.safetensors", stored, {})
    byte_tokenizer().save(str(path / "tokenizer.json"))
    return path


@pytest.mark.skipif(not forget_peak(), reason="this system does not let a process forget its peak")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_memory_stays_within_the_budget(many_experts: Path, dtype: str) -> None:
    """A model of A.X K1's kind, whose experts take ten times what they may, or twenty in float32."""
    budget = 6 * MIB
    llm = thresher.load(many_experts, backend="cpu", dtype=dtype, expert_memory=budget)
    experts = sum(w.stored.nbytes for w in llm.model.weights.layers if w.stored)
    assert experts >= 10 * budget * (1 if dtype == "bfloat16" else 2)
    forget_peak()
    before = resident()
    state = llm.prefill(np.arange(200).tolist())
    for token in range(10):
        llm.prefill([token], state=state)
    most = peak()
    assert before is not None
    assert most is not None
    assert llm.expert_memory.nbytes > budget / 2
    assert most - before < budget + 14 * MIB  # an expert on its way, what a pass works in, and pages of the file


@pytest.mark.skipif(not forget_peak(), reason="this system does not let a process forget its peak")
def test_experts_that_fit_are_in_memory_once_also_while_they_are_read(many_experts: Path) -> None:
    thresher.load(many_experts, backend="cpu")  # whatever the first load brings along
    forget_peak()
    before = resident()
    llm = thresher.load(many_experts, backend="cpu")
    most = peak()
    assert before is not None
    assert most is not None
    assert llm.experts_on_disk == ""
    assert llm.model.weights.nbytes > 120 * MIB  # in the file half of it
    assert most - before < llm.model.weights.nbytes + 16 * MIB


def test_the_command_tells_it_in_one_line(many_experts: Path) -> None:
    options = ("--raw", "--max-new-tokens", 2, "--backend", "cpu", "--dtype", "bfloat16", "--expert-memory")
    result = thresher_command("generate", many_experts, "-p", "Hello", *options, "6MiB")
    assert result.returncode == 0, result.stderr
    lines = result.stderr.split("\n")
    told = [line for line in lines if line.startswith("thresher: 80 experts of 60.0 MiB stay on disk and")]
    assert len(told) == 1
    assert "6.0 MiB of memory" in told[0]
    refused = one_line(thresher_command("generate", many_experts, "-p", "Hello", *options, "six"))
    assert refused == "thresher: --expert-memory takes bytes, such as 2GB, 500MiB or 0, not 'six'\n"


def test_amounts_of_memory_are_read_as_they_are_written() -> None:
    for text, wanted in (("2GB", 2 * 10**9), ("1.5 GiB", 3 << 29), ("500 mb", 5 * 10**8), ("64", 64), (7, 7), ("0", 0)):
        assert read_size("expert_memory", text) == wanted
    for wrong in ("2 apples", "", "-1", -1, True, 1.5, None, "GB", "1e9"):
        with pytest.raises(ValueError, match=r"^expert_memory: got .*, wanted bytes, such as 2GB, 500MiB or 0$"):
            read_size("expert_memory", wrong)  # type: ignore[arg-type]
    assert [size(n) for n in (7, 2048, 3 << 20, 5 << 30)] == ["7 B", "2.0 KiB", "3.0 MiB", "5.00 GiB"]
    with pytest.raises(ValueError, match=r"^expert_memory: got '2 apples', wanted bytes"):
        thresher.load("nowhere", expert_memory="2 apples")


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({}, 8 << 20),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/memory.max": "max\n"}, 8 << 20),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/memory.max": "5000000\n",
                "sys/fs/cgroup/a/memory.current": "3000000\n",
                "sys/fs/cgroup/a/memory.stat": "anon 7\ninactive_file 1000000\n",
            },
            3_000_000,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/m\n1:cpu:/\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "5000000\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "6000000\n",
            },
            0,
        ),
    ],
)
def test_memory_that_is_left(tmp_path: Path, files: dict[str, str], wanted: int) -> None:
    for name, text in {"proc/meminfo": "MemTotal: 99 kB\nMemAvailable:    8192 kB\n", **files}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert available(tmp_path) == wanted
    assert available(tmp_path / "another-system") is None

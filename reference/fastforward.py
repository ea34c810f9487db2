"""FastForward: run only the feed-forward neurons that matter to a block of tokens.

Per layer, on the FFN's own (post-norm) input X (T, E) of one block of a prompt:

    pool        a = softmax(q_pred·Xᵀ / √E) · X                   one trained query, no projections
    predict     s = ReLU(a W1) W2
    select      M = the top K of s, K = round(b · F)              one choice for the whole block
    sparse FFN  y = W_down[:, M] (act(W_gate[M] X) * (W_up[M] X))
    compensate  y += C2 act(C1 X)

with b the layer's density, the share of its neurons that is kept. Layers share an overall density b by how much they
mix tokens (`layer_densities`). Blocks that hold any of the first or last 128 tokens of the prompt are dense, and so
every prompt of up to 256 tokens is; so is a block whose layer keeps all its neurons; a dense block is not compensated.

Source: FastForward (arXiv 2602.00397). Ties: the lower neuron wins. Dtype: the input's, at least float32. Differs from
the paper by chosen values: "last block" means the last 128 tokens, however they fall into blocks, and "first" likewise;
the schedule visits layers by falling importance, since the paper's order 1 … L loses budget when a late layer clips; K
is at least 1; dense blocks skip the compensator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np

from reference import contract
from reference.cache import LayerCache
from reference.checks import listed, match, one_of, require, whole, widen
from reference.config import ModelConfig
from reference.int8 import Matrix, plain
from reference.layers import activate, gated_ffn, linear
from reference.model import Model
from reference.neurons import check_density, kept_neurons
from reference.predictor import Compensator, FastForwardWeights, Predictor
from reference.topk import keep_top

NEURONS = ("predictor", "griffin", "oracle", "random", "magnitude")
SCHEDULES = ("layerwise", "uniform")


def predictor_scores(x: np.ndarray, predictor: Predictor) -> np.ndarray:
    """s = ReLU(a W1) W2 with a the block pooled by attention to q_pred: x (T, E) of at least one token -> (F,)."""
    sizes = contract.predictor_scores(x, predictor)
    x = widen(x)
    q_pred, w1, w2 = (array.astype(x.dtype, copy=False) for array in (predictor.q_pred, predictor.w1, predictor.w2))
    logits = x @ q_pred / np.sqrt(sizes["E"]).astype(x.dtype)  # (T,)
    shares = np.exp(logits - logits.max())
    pooled = shares / shares.sum() @ x  # (E,)
    return np.maximum(pooled @ w1, 0) @ w2


def select_neurons(scores: np.ndarray, keep: int) -> np.ndarray:
    """The `keep` highest-scoring neurons, ties to the lower: scores (F,) -> (min(keep, F),) int64, ascending."""
    contract.select_neurons(scores, keep)
    return keep_top(scores[None], keep)[0]


def sparse_ffn(
    x: np.ndarray,
    w_gate: Matrix,
    w_up: Matrix,
    w_down: Matrix,
    neurons: np.ndarray,
    *,
    compensator: Compensator | None = None,
    act: str = "silu",
) -> np.ndarray:
    """W_down[:, M] (act(W_gate[M] x) * (W_up[M] x)) + C2 act(C1 x): x (T, E), M = neurons (K,) ascending -> (T, E).

    Weights as in `gated_ffn`; the second term only with a compensator. ValueError for shapes or neurons out of range.
    """
    sizes = contract.sparse_ffn(x, w_gate, w_up, w_down, neurons, compensator, act)
    listed("neurons", neurons, sizes["F"])
    y = gated_ffn(x, plain(w_gate)[neurons], plain(w_up)[neurons], plain(w_down)[:, neurons], act=act)
    if compensator is None:
        return y
    return y + linear(activate(linear(x, compensator.c1), act), compensator.c2)


def fastforward_blocks(
    x: np.ndarray,
    block: int,
    predictor: Predictor,
    keep: int,
    w_gate: Matrix,
    w_up: Matrix,
    w_down: Matrix,
    *,
    compensator: Compensator | None = None,
    act: str = "silu",
) -> tuple[np.ndarray, np.ndarray]:
    """Predict, select and run for each `block` tokens of x (T, E), the last perhaps fewer: the output (T, E), and the
    neurons of each block (B, K)."""
    parts = [x[start : start + block] for start in range(0, len(x), block)]
    chosen = [select_neurons(predictor_scores(part, predictor), keep) for part in parts]
    outputs = [
        sparse_ffn(part, w_gate, w_up, w_down, own, compensator=compensator, act=act)
        for part, own in zip(parts, chosen, strict=True)
    ]
    return np.concatenate(outputs), np.stack(chosen)


def layer_densities(importance: np.ndarray | Sequence[float], density: float) -> np.ndarray:
    """Each layer's share of its neurons, in proportion to importance (L,) ≥ 0 but at most 1 -> (L,), sum density · L.

    Layers are visited by falling importance (ties: lower layer first): b_l = min(1, s_l / open · left), then
    left -= b_l and open -= s_l, from left = density · L and open = Σ s. Layers that all weigh nothing share the rest
    evenly.
    """
    importance = np.asarray(importance, np.float64)
    match(importance=(importance, "L"))
    check_density(density)
    require(
        bool(np.isfinite(importance).all() and (importance >= 0).all()),
        "importance: got a negative, infinite or NaN entry, wanted numbers of at least 0",
    )
    densities, left = np.zeros(len(importance)), density * len(importance)
    order = np.argsort(-importance, kind="stable")
    for rank, layer in enumerate(order):
        rest = importance[order[rank:]]  # summed afresh: subtracting would leave rounding where the rest is zero
        share = importance[layer] / rest.sum() if rest.sum() > 0 else 1 / len(rest)
        densities[layer] = min(1.0, share * left)
        left -= densities[layer]
    return densities


def check_dense(config: ModelConfig) -> None:
    """ValueError for a mixture of experts, of whose neurons the router has chosen already."""
    require(config.mixture is None, "ffn: got FastForward for a mixture of experts, wanted a model of dense FFNs")


@dataclass(frozen=True)
class Block:
    """What the FFN of one layer is given of one sequence: at most `FastForward.block` tokens.

    x is the FFN's own (post-norm) input, (T, E), and `rows` its rows of the x that `run` is given; `first` the position
    of its first token; `length` the prompt's.
    """

    x: np.ndarray
    rows: slice
    first: int
    length: int
    decoding: bool
    layer: int
    model: Model
    cache: LayerCache

    @property
    def weights(self) -> tuple[Any, Any, Any]:
        """W_gate, W_up and W_down of its layer."""
        w = self.model.weights.layers[self.layer]
        return w.w_gate, w.w_up, w.w_down

    def dense(self) -> Any:
        """The FFN in full, (T, E)."""
        return self.model.backend.gated_ffn(self.x, *self.weights, act=self.model.config.activation)

    def sparse(self, neurons: Any, compensator: Compensator | None) -> Any:
        """The FFN of these neurons alone, (T, E)."""
        act = self.model.config.activation
        return self.model.backend.sparse_ffn(self.x, *self.weights, neurons, compensator=compensator, act=act)

    def statistic(self) -> Any:
        """GRIFFIN's statistic of this block, (F,)."""
        gate, up, _ = self.weights
        return self.model.backend.griffin_statistic(self.x, gate, up, act=self.model.config.activation)


@dataclass(frozen=True)
class FastForward:
    """FastForward (arXiv 2602.00397): blocks of a prompt run only the feed-forward neurons that matter to them.

    density: share of the neurons that sparse blocks run, on average over the layers, in (0, 1].
    weights: trained predictors and compensators, or the path of their file; only neurons="predictor" needs them, and
      `thresher` finds those that it brings along for a model it knows.
    neurons: how they are chosen: by the trained "predictor", or by a baseline: "griffin" (best of the first block, for
      the whole sequence), "oracle" (the block's own best, at dense cost), "random", "magnitude" (largest weights).
    schedule: "layerwise" (as trained; needs weights) or "uniform"; by default layerwise where there are weights.
    compensate: add the trained correction.
    decode: thin decoding too, in blocks of one token.
    block: tokens that share a choice.
    dense_first, dense_last: a block that holds any of so many first or last tokens of the prompt is dense.
    seed: of the random baseline.
    """

    density: float = 0.5
    weights: FastForwardWeights | str | None = None
    neurons: str = "predictor"
    schedule: str | None = None
    compensate: bool = True
    decode: bool = False
    block: int = 128
    dense_first: int = 128
    dense_last: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        check_density(self.density)
        one_of("neurons", self.neurons, NEURONS)
        if self.schedule is not None:
            one_of("schedule", self.schedule, SCHEDULES)
        whole("block", self.block)
        whole("dense_first", self.dense_first, least=0)
        whole("dense_last", self.dense_last, least=0)

    def resolve(self, length: int) -> FastForward:
        """Itself: nothing here depends on the length of the prompt until a block comes."""
        return self

    def check(self, config: ModelConfig) -> None:
        """ValueError unless the weights that it needs are there, loaded, and belong to a model of this shape."""
        check_dense(config)
        require(
            self.weights is not None or self.neurons != "predictor",
            "weights: got none, wanted trained FastForward weights for neurons='predictor' "
            f"(neurons of {', '.join(NEURONS[1:])} need none)",
        )
        require(
            self.weights is not None or self.schedule != "layerwise",
            "schedule: got 'layerwise' without weights, wanted 'uniform' or trained weights, which know the layers",
        )
        if self.weights is not None:
            self._trained().check(config)

    def run(self, x: Any, blocks: Sequence[Block]) -> tuple[Any, list[Any]]:
        """The FFN of neighbouring blocks of one sequence, whose rows make up x: their output (T, E), and of each block
        the neurons run (K,), or None where it was dense. Blocks of one size that are predicted for are one call."""
        outputs, ran = [], []
        for (keep, _), group in groupby(blocks, key=lambda block: (self._predicted(block), len(block.x))):
            some = list(group)
            if keep:
                output, neurons = self._by_prediction(x[some[0].rows.start : some[-1].rows.stop], some[0], keep)
                outputs.append(output)
                ran += [neurons[n] for n in range(len(some))]
            else:
                for block in some:
                    output, chosen = self._run_alone(block)
                    outputs.append(output)
                    ran.append(chosen)
        return blocks[0].model.backend.concatenate(outputs), ran

    def _predicted(self, block: Block) -> int:
        """How many neurons the predictor chooses for a block; 0 where it does not choose."""
        keep, every = self._kept(block), block.model.config.ffn_width
        return keep if self.neurons == "predictor" and keep < every and not self._stays_dense(block) else 0

    def _by_prediction(self, x: Any, first: Block, keep: int) -> tuple[Any, Any]:
        """Blocks of the size of the first, whose rows are x (T, E), each with the neurons that are predicted for it."""
        model, trained = first.model, first.model.prepared(self._trained()).layers[first.layer]
        return model.backend.fastforward_blocks(
            x, len(first.x), trained.predictor, keep, *first.weights,
            compensator=self._compensator(first), act=model.config.activation,
        )  # fmt: skip

    def _kept(self, block: Block) -> int:
        """How many neurons sparse blocks of this layer run."""
        return kept_neurons(self.density_of(block.layer), block.model.config.ffn_width)

    def _run_alone(self, block: Block) -> tuple[Any, Any]:
        """One block by a baseline's choice, or in full: its output, and its neurons or None."""
        keep = self._kept(block)
        if self.neurons in ("griffin", "magnitude") and block.cache.neurons is None:
            block.cache.neurons = self._choose(block, keep)  # once per sequence, on its first block
        if keep >= block.model.config.ffn_width or self._stays_dense(block):
            return block.dense(), None
        neurons = block.cache.neurons if self.neurons in ("griffin", "magnitude") else self._choose(block, keep)
        return block.sparse(neurons, self._compensator(block)), neurons

    def density_of(self, layer: int) -> float:
        """b of one layer. Densities trained for are in proportion to importance, so they stand for it here, and are
        given back as they are where `density` is their mean."""
        if self.schedule == "uniform" or self.weights is None:
            return self.density
        return float(self._densities[layer])

    @cached_property
    def _densities(self) -> np.ndarray:
        return layer_densities([trained.density for trained in self._trained().layers], self.density)

    def _stays_dense(self, block: Block) -> bool:
        """Whether a block is left alone: in decoding unless asked for, and at both ends of a prompt."""
        if block.decoding:
            return not self.decode
        return block.first < self.dense_first or block.first + len(block.x) > block.length - self.dense_last

    def _choose(self, block: Block, keep: int) -> Any:
        """The neurons that a baseline takes for a block, (K,) ascending."""
        model, backend = block.model, block.model.backend
        if self.neurons == "random":
            rng = np.random.default_rng([self.seed, block.layer, block.first])
            scores = backend.to_backend(rng.random(model.config.ffn_width))
        elif self.neurons == "magnitude":
            scores = model.magnitudes(block.layer)
        else:
            scores = block.statistic()
        return backend.select_neurons(scores, keep)

    def _compensator(self, block: Block) -> Compensator | None:
        """The trained correction where there is one and it is wanted."""
        if not self.compensate or self.weights is None:
            return None
        return block.model.prepared(self._trained()).layers[block.layer].compensator

    def _trained(self) -> FastForwardWeights:
        """The weights as arrays, or a ValueError where they are still a path."""
        if not isinstance(self.weights, FastForwardWeights):
            raise ValueError(f"weights: got {self.weights!r}, wanted the arrays that are read from a file")
        return self.weights

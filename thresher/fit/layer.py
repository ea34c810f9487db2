"""The training of one layer: its predictor, then its compensator with the oracle's masks and with the predictor's.

A layer needs nothing but its own FFN and the inputs that were recorded for it, so that layers can be trained anywhere
and in any order. Every draw comes from a generator that is seeded with what it is for and the step: the same seed gives
the same bits, wherever and however often a layer is trained.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np

from reference import Compensator, Predictor, predictor_targets, select_neurons
from reference.fitting import Adam, compensator_loss, cross_entropy, predictor_loss, score_blocks
from reference.layers import activate, linear
from reference.neurons import kept_neurons, statistic_of_products

STRIPES = 4  # to a block: blocks to train on may begin at any of them
LOOKS = 10  # at the held-out loss, in each of the three trainings; the best is kept

Losses = list[float]


@dataclass(frozen=True)
class Recipe:
    """How a layer is trained. Steps, rates and the blocks of a step are chosen: the paper gives none for its optimiser.

    steps: of Adam, for each of the three trainings; the rate falls to zero along them.
    """

    density: float
    block: int
    steps: int
    seed: int
    predictor_rate: float = 4e-3
    compensator_rate: float = 2e-3
    predictor_blocks: int = 32
    compensator_blocks: int = 8


@dataclass(frozen=True)
class Fitted:
    """What was trained, and held-out losses from first to last look.

    `losses` has the predictor's cross-entropy, and of the compensator the share of the missing output's square that is
    still missing with it (1: no better than none), for both masks. overlap: the share of the oracle's neurons that the
    predictor finds.
    """

    predictor: Predictor
    compensator: Compensator
    losses: dict[str, Losses]
    overlap: float


class Layer:
    """One layer's data: inputs (P, T, E), of which the last `held` prompts are not trained on, and its FFN.

    density: the share of its neurons that the layer will run, whose absence the compensator learns to make up for; by
      default the recipe's, which the predictor learns in any case.
    """

    def __init__(
        self,
        inputs: np.ndarray,
        ffn: tuple[np.ndarray, ...],
        act: str,
        *,
        layer: int,
        held: int,
        recipe: Recipe,
        density: float | None = None,
    ) -> None:
        self.recipe, self.act, self.layer = recipe, act, layer
        self.train = len(inputs) - held
        self.x = inputs.astype(np.float32)
        self.w_gate, self.w_up, self.w_down = (w.astype(np.float32) for w in ffn)
        # Everything is trained on inputs of unit size, so that one rate fits all layers and models.
        self.scale = float(np.sqrt(np.square(self.x, dtype=np.float64).mean())) or 1.0
        self.keep = kept_neurons(recipe.density if density is None else density, len(self.w_gate))
        self.blocks = self.x.shape[1] // recipe.block
        self.stripe = recipe.block // STRIPES if recipe.block % STRIPES == 0 else recipe.block
        self.per_block = recipe.block // self.stripe

    def fit(self) -> Fitted:
        """All three trainings."""
        statistics, target = self.survey(None)
        size = float(np.sqrt(np.square(target[: self.train], dtype=np.float64).mean())) or 1.0
        predictor, predicting = self._fit_predictor(statistics)
        compensator, with_oracle = self._fit_compensator(target / size, None, 1)
        _, target = self.survey(predictor)
        compensator, with_predictor = self._fit_compensator(target / size, compensator, 2)
        overlap = self._overlap(statistics, predictor)
        return Fitted(
            # Both take x as it is: x / scale was what they were trained on.
            Predictor(predictor.q_pred / self.scale, predictor.w1 / self.scale, predictor.w2),
            Compensator(compensator.c1 / self.scale, compensator.c2 * size),
            {"predictor": predicting, "oracle_masks": with_oracle, "predicted_masks": with_predictor},
            overlap,
        )

    def survey(self, predictor: Predictor | None) -> tuple[np.ndarray, np.ndarray]:
        """Squared GRIFFIN statistics of every stripe, which add up over tokens, (P, T / stripe, F), and what a sparse
        FFN misses of the dense one in the blocks after the first, (P, blocks − 1, block, E).

        Its neurons are the predictor's or, without one, the oracle's."""
        prompts, _, width = self.x.shape
        block, stripes = self.recipe.block, self.x.shape[1] // self.stripe
        statistics = np.empty((prompts, stripes, len(self.w_gate)), np.float32)
        missing = np.empty((prompts, self.blocks - 1, block, width), np.float32)
        for p, x in enumerate(self.x):
            z = activate(linear(x, self.w_gate), self.act) * linear(x, self.w_up)  # (T, F)
            for s in range(stripes):
                statistics[p, s] = statistic_of_products(z[s * self.stripe : (s + 1) * self.stripe]) ** 2
            for b in range(1, self.blocks):
                scores = self._statistic(statistics, p, b) if predictor is None else self._scores(predictor, p, b)
                out = np.ones(len(self.w_gate), bool)
                out[select_neurons(scores, self.keep)] = False
                missing[p, b - 1] = linear(z[b * block : (b + 1) * block, out], self.w_down[:, out])
        return statistics, missing

    def _statistic(self, statistics: np.ndarray, p: int, b: int) -> np.ndarray:
        """GRIFFIN's statistic of a block, (F,)."""
        return np.sqrt(statistics[p, b * self.per_block : (b + 1) * self.per_block].sum(axis=0))

    def _scores(self, predictor: Predictor, p: int, b: int) -> np.ndarray:
        """The predictor's scores of a block, (F,)."""
        return score_blocks(self._cut(np.array([p]), np.array([b * self.per_block])), predictor)[0]

    def _cut(self, prompts: np.ndarray, stripes: np.ndarray) -> np.ndarray:
        """Blocks that begin at these stripes, at unit size: (N,) twice -> (N, block, E)."""
        starts = stripes * self.stripe
        rows = [self.x[p, s : s + self.recipe.block] for p, s in zip(prompts, starts, strict=True)]
        return np.stack(rows) / np.float32(self.scale)

    def _rng(self, *purpose: int) -> np.random.Generator:
        return np.random.default_rng([self.recipe.seed, self.layer, *purpose])

    @cached_property
    def _held_blocks(self) -> tuple[np.ndarray, np.ndarray]:
        """Prompt and first stripe of every block after the first in the held-out prompts."""
        prompts, blocks = np.mgrid[self.train : len(self.x), 1 : self.blocks]
        return prompts.ravel(), blocks.ravel() * self.per_block

    def _labelled(self, statistics: np.ndarray, where: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, ...]:
        """Blocks that begin at these prompts and stripes, with labels and weights: (N, block, E), (N, F), (N, F)."""
        sums = [np.sqrt(statistics[p, s : s + self.per_block].sum(axis=0)) for p, s in zip(*where, strict=True)]
        targets = [predictor_targets(one, positives=self.recipe.density) for one in sums]
        labels, weights = (np.array(part, np.float32) for part in zip(*targets, strict=True))
        return self._cut(*where), labels, weights

    def _fit_predictor(self, statistics: np.ndarray) -> tuple[Predictor, Losses]:
        """The best predictor of unit-sized blocks, and its losses."""
        width, neurons = self.x.shape[2], len(self.w_gate)
        rank = predictor_rank(width)
        rng = self._rng(0)
        w1 = rng.standard_normal((width, rank)) / np.sqrt(width)
        # Blocks are much alike: each unit starts on the side where they are, or its ReLU would never open.
        w1 *= np.where(self.x[: self.train].mean(axis=(0, 1)) @ w1 < 0, -1, 1)
        start = Predictor(
            np.zeros(width, np.float32),  # the plain mean
            w1.astype(np.float32),
            (rng.standard_normal((rank, neurons)) / np.sqrt(rank)).astype(np.float32),
        )
        x, labels, weights = self._labelled(statistics, self._held_blocks)
        last = statistics.shape[1] - self.per_block

        def slope(now: Any, step: int) -> Any:
            rng, count = self._rng(0, step), self.recipe.predictor_blocks
            where = rng.integers(self.train, size=count), rng.integers(self.per_block, last + 1, size=count)
            x, labels, weights = self._labelled(statistics, where)
            return predictor_loss(x, now, labels, weights)[1]

        def held_loss(now: Any) -> float:
            return cross_entropy(score_blocks(x, now), labels, weights)[0]

        return descend(start, slope, held_loss, self.recipe.steps, self.recipe.predictor_rate)

    def _fit_compensator(self, target: np.ndarray, start: Compensator | None, phase: int) -> tuple[Compensator, Losses]:
        """The best compensator of unit-sized inputs for target (P, blocks − 1, block, E), and its losses."""
        width, block = self.x.shape[2], self.recipe.block
        rows = (self.x[:, block : self.blocks * block] / np.float32(self.scale)).reshape(target.shape)
        if start is None:
            c1 = self._rng(phase).standard_normal((max(1, width // 8), width)) / np.sqrt(width)
            start = Compensator(c1.astype(np.float32), np.zeros((width, len(c1)), np.float32))
        x_held, y_held = (part[self.train :].reshape(-1, width) for part in (rows, target))
        power = float(np.square(y_held, dtype=np.float64).mean()) or 1.0

        def slope(now: Any, step: int) -> Any:
            rng, count = self._rng(phase, step), self.recipe.compensator_blocks
            where = rng.integers(self.train, size=count), rng.integers(self.blocks - 1, size=count)
            x, y = (part[where].reshape(-1, width) for part in (rows, target))
            return compensator_loss(x, now, y, act=self.act)[1]

        def held_loss(now: Any) -> float:
            return compensator_loss(x_held, now, y_held, act=self.act)[0] / power

        return descend(start, slope, held_loss, self.recipe.steps, self.recipe.compensator_rate)

    def _overlap(self, statistics: np.ndarray, predictor: Predictor) -> float:
        """The share of the oracle's neurons, at the recipe's density, that the predictor finds in held-out blocks."""
        found, half = [], kept_neurons(self.recipe.density, len(self.w_gate))
        for p, stripe in zip(*self._held_blocks, strict=True):
            b = stripe // self.per_block
            oracle = select_neurons(self._statistic(statistics, p, b), half)
            found.append(np.isin(oracle, select_neurons(self._scores(predictor, p, b), half)).mean())
        return float(np.mean(found))


def predictor_rank(width: int) -> int:
    """r: E/16, rounded up to a power of two."""
    return 1 << (max(1, -(-width // 16)) - 1).bit_length()


def descend(
    start: Any, slope: Callable[[Any, int], Any], held_loss: Callable[[Any], float], steps: int, rate: float
) -> tuple[Any, Losses]:
    """Adam from `start`, a dataclass of arrays, with a rate that falls to zero: the best by held-out loss, and the
    losses at every look."""
    now = replace(start, **{f.name: getattr(start, f.name).copy() for f in fields(start)})
    names = [f.name for f in fields(now)]
    adam = Adam([getattr(now, name) for name in names])
    best, losses = start, [held_loss(start)]
    looks = {steps * (look + 1) // LOOKS for look in range(LOOKS)}
    for step in range(steps):
        gradient = slope(now, step)
        adam.step([getattr(gradient, name) for name in names], rate * (1 - step / steps))
        if step + 1 in looks:
            loss = held_loss(now)
            if loss < min(losses):
                best = replace(now, **{name: getattr(now, name).copy() for name in names})
            losses.append(loss)
    return best, losses

"""Beginnings of prompts that have been read: the next prompt that starts the same goes on from there.

An answer must not depend on what was asked before. So a beginning is kept only at the end of a pass, where it is to the
bit what reading the next prompt afresh would have made of it, and counts only for a prompt that is read in the same
way: under the same policy in tokens, in chunks of the same size.

    the state can be cut     nothing was evicted and no layer has a window: it serves every prompt that shares its
                             first passes, as far as they agree
    it cannot                it serves prompts that begin with all of it; the last two passes' ends are kept, since the
                             newest may hold the question that follows a document
"""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from reference import Counts, ModelConfig
from thresher.state import State


@dataclass(frozen=True)
class Way:
    """How a prompt is read, as far as what is read depends on it: `step` tokens share a pass."""

    policy: str
    chunk: int
    step: int
    length: int | None  # of the prompt, where the method or the rotation looks at it
    whole: bool  # whether states that are read so can be cut

    @classmethod
    def of(cls, config: ModelConfig, state: State, length: int, chunk: int, together: int) -> Way:
        """The way in which a prompt that ends at `length` tokens is read under the state's policy."""
        policy = state.given.resolve(length)
        parts = [policy, *policy.overrides.values()]
        looks = any(part.ffn for part in parts) or any(rope and rope.scaling == "dynamic" for rope in config.ropes)
        words = json.dumps(policy.specs, sort_keys=True)
        return cls(words, chunk, chunk * together, length if looks else None, state.can_be_cut(config))

    def ends(self, length: int) -> list[int]:
        """Where in a prompt of `length` tokens a beginning is worth keeping, at least one token before its end."""
        last = (length - 1) // self.step * self.step
        return [end for end in ([last] if self.whole else [last - self.step, last]) if end > 0]


class Prefixes:
    """States of prompts' beginnings, at most `budget` bytes of them; the one that was used longest ago goes first."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.nbytes = 0
        self._held: OrderedDict[tuple[Way, bytes], State] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def longest(self, way: Way, ids: list[int]) -> State | None:
        """A state of its own that has read the longest known beginning of `ids`, all of them never; or None."""
        wanted = np.array(ids, np.int64)
        best, length = None, 0
        for key in self._held:
            if key[0] == way and (shared := _shared(way, np.frombuffer(key[1], np.int64), wanted)) > length:
                best, length = key, shared
        if best is None:
            return None
        self._held.move_to_end(best)
        state = self._held[best].copy()
        if length < state.position:
            state.cut(length)
        return state

    def keep(self, way: Way, ids: list[int], state: State) -> None:
        """Remember a copy of the state, which has read `ids`. One that takes more than the whole budget is left out."""
        size, key = _bytes_of(state), (way, np.array(ids, np.int64).tobytes())
        if key in self._held or size > self.budget:
            return
        if way.whole:  # it serves wherever its own beginnings did
            for other in [k for k in self._held if k[0] == way and key[1].startswith(k[1])]:
                self._forget(other)
        while self._held and self.nbytes + size > self.budget:
            self._forget(next(iter(self._held)))
        kept = state.copy()
        kept.token_ids, kept.counts = list(ids), Counts.zeros(len(state.cache.layers))
        self._held[key] = kept
        self.nbytes += size

    def _forget(self, key: tuple[Way, bytes]) -> None:
        self.nbytes -= _bytes_of(self._held.pop(key))


def _bytes_of(state: State) -> int:
    """What a copy takes: buffers have room for more than they hold, where a backend says so."""
    layers = state.cache.layers
    return sum(layer.nbytes * getattr(layer, "capacity", layer.size) // max(layer.size, 1) for layer in layers)


def _shared(way: Way, held: np.ndarray, wanted: np.ndarray) -> int:
    """How many tokens of a kept beginning serve a prompt: whole passes that agree, and before the prompt's last."""
    most = min(len(held), len(wanted) - 1)
    differ = np.flatnonzero(held[:most] != wanted[:most])
    agree = (int(differ[0]) if differ.size else most) // way.step * way.step
    return agree if way.whole or agree == len(held) else 0

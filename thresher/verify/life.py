"""The life of a cache: whatever is done to a backend's is done to the reference's too, and after every step both hold
the same.

`STEPS` names what may happen. Each takes one number, from which it draws what it needs, so that a life is a list of
(step, number), and can be printed, saved and lived again.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import reference
from reference import LayerCache, ModelConfig, Rope
from thresher.verify.drawing import DTYPES, TOLERANCE

STEPS = (
    *("append", "gather", "keep", "keep_newest", "take_back", "reserve", "copy", "restore"),
    *("score", "attend", "receive", "note_queries"),
)
NEWEST = 4096  # tokens that a life may hold, so that it stays short


class Life:
    """Two caches of one layer that live alike. Every step raises AssertionError where they do not."""

    def __init__(self, module: Any, dtype: str, group: int, kv_heads: int, dim: int) -> None:
        self.tolerance = TOLERANCE[dtype]
        self.module, self.heads, self.kv_heads, self.dim = module, kv_heads * group, kv_heads, dim
        rope = Rope(10_000.0)
        config = ModelConfig(
            family="llama", layers=1, width=dim, heads=self.heads, kv_heads=kv_heads, head_dim=dim, ffn_width=8,
            vocab_size=8, max_positions=2**31, ropes=(rope,), windows=(None,), attention_scale=dim**-0.5,
        )  # fmt: skip
        self.ours, self.meant = (m.new_cache(config, DTYPES[dtype]) for m in (module, reference))
        self.position = 0  # of the next token
        self.left: list[tuple[Any, LayerCache]] = []  # caches that were copied, and what they held then
        self.there = getattr(module, "to_backend", lambda x: x)
        self.back = getattr(module, "to_numpy", np.asarray)

    @property
    def layers(self) -> tuple[Any, LayerCache]:
        """Both layers, the reference's last."""
        return self.ours.layers[0], self.meant.layers[0]

    @property
    def size(self) -> int:
        """Columns that must be held."""
        return self.meant.layers[0].size

    def live(self, steps: Sequence[tuple[str, int]]) -> None:
        """Take the steps one after another."""
        for n, (step, number) in enumerate(steps):
            try:
                getattr(self, step)(number)
                self.same()
            except Exception as error:
                told = str(error) if isinstance(error, AssertionError) else raised(error)
                raise AssertionError(f"after step {n}, {step}({number}), of {self.size} columns: {told}") from error

    def same(self) -> None:
        """Both hold the same, to the bit, and say so."""
        ours, meant = self.layers
        assert ours.size == meant.size, f"got size {ours.size}, wanted {meant.size}"
        assert ours.newest == meant.newest, f"got newest {ours.newest}, wanted {meant.newest}"
        assert self.ours.nbytes == self.meant.nbytes, f"got {self.ours.nbytes} bytes, wanted {self.meant.nbytes}"
        assert self.ours.sizes == self.meant.sizes, f"got sizes {self.ours.sizes}, wanted {self.meant.sizes}"
        for layer, wanted in [(ours, meant), *self.left]:
            held = layer.arrays()
            assert set(held) == set(wanted.arrays()), f"got arrays {sorted(held)}, wanted {sorted(wanted.arrays())}"
            for name, array in wanted.arrays().items():
                same_bits(name, np.asarray(self.back(held[name])), array)

    # Steps

    def append(self, number: int) -> None:
        """A chunk, mostly small; keys of any length, some zero, stored in any dtype; positions with a gap before."""
        rng = np.random.default_rng(number)
        tokens = min(int(rng.choice([0, 1, 1, 2, 7, 40, 300])), NEWEST - self.size)
        k, v = rng.standard_normal((2, self.kv_heads, tokens, self.dim))
        largest = 3 if "16" in self.meant.layers[0].k.dtype.name else 25
        if tokens and rng.random() < 0.5:
            k *= 10.0 ** rng.integers(-largest, largest + 1, (self.kv_heads, tokens, 1))
            k[:, rng.integers(tokens)] = 0
        given = self.meant.layers[0].k.dtype if rng.random() < 0.5 else np.dtype(np.float32)
        k, v = k.astype(given), v.astype(given)
        self.position += int(rng.choice([0, 0, 0, 0, 0, 5, 2**33]))
        for layer, there in zip(self.layers, (self.there, np.asarray), strict=True):
            layer.append(there(k.copy()), there(v.copy()), self.position)
        self.position += tokens

    def gather(self, number: int) -> None:
        """Some columns per head, or all, read and let go."""
        ours, meant = self.layers
        columns = self._columns(number) if number % 3 else None
        there = None if columns is None else self.there(columns)
        for name, got, wanted in zip(("k", "v", "positions"), ours.gather(there), meant.gather(columns), strict=True):
            assert tuple(got.shape) == wanted.shape, f"gathered {name} of shape {got.shape}, wanted {wanted.shape}"
            same_bits(f"gathered {name}", np.asarray(self.back(got)), wanted)
            if hasattr(got, "first"):  # positions that claim to follow one another
                follow = np.broadcast_to(got.first + np.arange(wanted.shape[1]), wanted.shape)
                same_bits("positions that follow one another", follow, wanted)

    def keep(self, number: int) -> None:
        """Forget all but some columns; what was looked at before stays as it was, for a trace."""
        columns, before = self._columns(number), self.layers[0].positions
        held = np.array(self.back(before))
        for layer, there in zip(self.layers, (self.there, np.asarray), strict=True):
            layer.keep(there(columns.copy()))
        same_bits("positions of before", np.asarray(self.back(before)), held)

    def keep_newest(self, number: int) -> None:
        """As a sliding window does."""
        for layer in self.layers:
            layer.keep_newest(number % (self.size + 2) or 1)

    def reserve(self, number: int) -> None:
        """Room ahead changes nothing that is held."""
        for layer in self.layers:
            layer.reserve(number % NEWEST)

    def copy(self, number: int) -> None:
        """Go on with a copy, or with the original; the other must stay as it is."""
        copied = self.ours.copy()
        assert type(copied) is type(self.ours), f"copied a {type(self.ours)} to a {type(copied)}"
        stays = self.ours if number % 2 else copied
        self.ours = copied if number % 2 else self.ours
        self.left = [*self.left[-2:], (stays.layers[0], self.meant.layers[0].copy())]

    def restore(self, number: int) -> None:
        """Go on with what was saved."""
        saved = {name: np.array(self.back(array)) for name, array in self.layers[0].arrays().items()}
        self.ours, self.meant = (module.restore_cache([dict(saved)]) for module in (self.module, reference))
        self.meant = self.meant.copy()

    def score(self, number: int) -> None:
        """What a cache knows of its keys gives the scores that the keys give; so does one that was copied before."""
        for ours, meant in [self.layers, *self.left]:
            if meant.size:
                self._score(number, ours, meant)

    def _score(self, number: int, ours: Any, meant: LayerCache) -> None:
        rng = np.random.default_rng(number)
        count = int(rng.integers(1, meant.size + 1))
        q = rng.standard_normal((self.heads, 5, self.dim), np.float32)
        exact = meant.k.astype(np.float64)
        wanted = reference.key_scores(q.astype(np.float64), exact[:, :count], 5)
        got = self.back(self.module.key_scores(self.there(q), ours.keys(count), 5))
        self._cosines(f"key_scores of the first {count}", got, wanted)
        sums = reference.unit(exact).sum(axis=1)
        known = np.linalg.norm(sums, axis=-1) > 0.1  # else the directions cancel, and the mean has none
        self._cosines(
            "keydiff_scores",
            self.back(self.module.keydiff_scores(ours.keys()))[known],
            reference.keydiff_scores(exact)[known],
        )

    def attend(self, number: int) -> None:
        """What is gathered, all and some, is what attention takes, in one call for both."""
        if not self.size:
            return
        ours, meant = self.layers
        columns = self._columns(number, least=1)
        q = np.random.default_rng(number).standard_normal((self.heads, 1 + number % 12, self.dim), np.float32)
        first = max(0, self.position - number % 20)
        scale = 0.3 / float(np.linalg.norm(meant.k.astype(np.float64), axis=-1).max() or 1)  # keys may be huge
        for window in (None, 1 + number % 50):
            reads, exact = [], []
            for chosen in (None, columns):
                k, v, positions = ours.gather(None if chosen is None else self.there(chosen))
                reads.append((self.there(q), k, v, first, positions))
                k, v, positions = meant.gather(chosen)
                exact.append((q.astype(np.float64), k.astype(np.float64), v.astype(np.float64), first, positions))
            got = self.module.attention_each(reads, scale=scale, window=window)
            meanings = reference.attention_each(exact, scale=scale, window=window)
            for what, one, wanted in zip(("all", "some"), got, meanings, strict=True):
                apart = np.linalg.norm(np.asarray(self.back(one), np.float64) - wanted)
                told = f"attention to {what} within {window} off by {apart:.2e} of {np.linalg.norm(wanted):.2e}"
                assert apart <= self.tolerance * np.linalg.norm(wanted), told

    def receive(self, number: int) -> None:
        """As H2O notes what every key has received, of those that were read."""
        columns = self._columns(number) if number % 2 else None
        count = self.size if columns is None else columns.shape[1]
        mass = np.random.default_rng(number).random((self.heads, count), np.float32)
        ours, meant = self.layers
        meant.receive(mass, columns)
        ours.receive(self.there(mass), None if columns is None else self.there(columns))

    def take_back(self, number: int) -> None:
        """What was appended last goes again, as after an interrupted pass."""
        before = self.size
        self.append(number)
        for layer in self.layers:
            layer.take_back(layer.size - before)
        self.position = self.layers[1].newest + 1

    def note_queries(self, number: int) -> None:
        """As SnapKV notes the newest queries, and GRIFFIN its neurons."""
        rng = np.random.default_rng(number)
        noted: dict[str, np.ndarray] = {
            "queries": rng.standard_normal((self.heads, 3, self.dim), np.float32),
            "neurons": np.arange(number % 5),
        }
        ours, meant = self.layers
        for name, array in noted.items():
            setattr(meant, name, array)
            setattr(ours, name, self.there(array.copy()))

    def _cosines(self, name: str, got: Any, wanted: np.ndarray) -> None:
        apart = np.abs(np.asarray(got, np.float64) - wanted)
        assert apart.max(initial=0) <= self.tolerance, f"{name}: off by {apart.max():.2e}"

    def _columns(self, number: int, least: int = 0) -> np.ndarray:
        """Some columns of every head, ascending: none, one, all or any number."""
        rng = np.random.default_rng(number)
        count = [0, 1, self.size, int(rng.integers(self.size + 1))][rng.integers(4)]
        every = np.tile(np.arange(self.size), (self.kv_heads, 1))
        return np.sort(rng.permuted(every, axis=1)[:, : min(max(count, least), self.size)], axis=1)


def raised(error: Exception) -> str:
    """What an exception says, and where it came from."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"raised {type(error).__name__}: {error} ({Path(last.filename).name}, line {last.lineno})"


def same_bits(name: str, got: np.ndarray, wanted: np.ndarray) -> None:
    """Both of one shape and dtype, and equal to the bit."""
    assert got.shape == wanted.shape, f"{name}: got shape {got.shape}, wanted {wanted.shape}"
    assert got.dtype == wanted.dtype, f"{name}: got dtype {got.dtype}, wanted {wanted.dtype}"
    if got.tobytes() != wanted.tobytes():
        unequal = np.frombuffer(got.tobytes(), np.uint8) != np.frombuffer(wanted.tobytes(), np.uint8)
        at = tuple(int(i) for i in np.unravel_index(unequal.argmax() // got.itemsize, got.shape))
        raise AssertionError(f"{name} at {at}: got {got[at]}, wanted {wanted[at]}")

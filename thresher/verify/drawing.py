"""Drawing one case: every choice has a name, and the numbers come from a generator whose seed is one of the choices, so
that a case is printed as the few values that it was drawn from.

Shapes: T from 1 to 600, S from 1 and rarely 5,000 to 40,000, G of 1, 2, 3, 4 and 8, D of 16 to 256 and odd, E and F to
2,000; budgets 1, S - 1, S, S + 1 and between. Numbers: float64, float32, float16, bfloat16 or some of each; equal rows,
zero rows, NaN rows, huge and tiny norms. Memory: `layouts`. Positions: ragged, with gaps, far from zero, of every
integer dtype, and queries that see nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
from hypothesis import strategies as st

from thresher.verify.layouts import LAYOUTS, laid_out

DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float64": np.dtype(np.float64),
}
TOLERANCE = {"float32": 1e-5, "float64": 1e-5, "float16": 1e-2, "bfloat16": 1e-2}  # by what is stored
INTEGERS = [np.dtype(kind + size) for size in "8421" for kind in "iu"]
HEAD_DIMS = (16, 17, 32, 33, 48, 64, 80, 96, 127, 128, 255, 256)
WIDTHS = (1, 2, 15, 16, 17, 40, 64, 96, 130, 256)  # around the widths of registers and tiles, and usual ones
ALONE = 16  # sums that are all of a row: one may cancel, and says nothing then, so that their terms are positive
PAIRS = 1_500_000  # of queries and keys in a case, so that the reference answers in a moment
PRODUCTS = 1_000_000  # numbers of a weight matrix, or of the keys


@dataclass(repr=False)
class Case:
    """One call: positional and keyword arguments, and what they were drawn from."""

    drawn: dict[str, Any]
    arguments: tuple[Any, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.drawn.items())

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """What hypothesis prints: the same, without the arrays."""
        printer.text(repr(self))


class Drawing:
    """One case being drawn: remembers every choice, and makes arrays in the drawn dtypes and memory layouts."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.chosen: dict[str, Any] = {}
        self.dtype = self.pick("dtype", st.sampled_from([*DTYPES, "mixed"]))
        self.layout = self.pick("layout", st.sampled_from([*LAYOUTS, "mixed"]))
        self.rng = np.random.default_rng(self.pick("seed", st.integers(0, 2**31)))

    def pick(self, name: str, strategy: st.SearchStrategy) -> Any:
        """Draw a value under a name."""
        self.chosen[name] = self.draw(strategy)
        return self.chosen[name]

    def perhaps(self, name: str) -> bool:
        """True in every other case."""
        return bool(self.pick(name, st.booleans()))

    def rarely(self, name: str) -> bool:
        """True in one case of eight."""
        return bool(self.pick(name, st.integers(0, 7).map(lambda n: n == 7)))

    def case(self, *arguments: Any, **options: Any) -> Case:
        """The finished case."""
        return Case(self.chosen, arguments, options)

    # Sizes

    def heads(self) -> tuple[int, int, int]:
        """H, KV and D."""
        kv_heads = self.pick("KV", st.integers(1, 3))
        group = self.pick("G", st.sampled_from([1, 2, 3, 4, 8]))
        return kv_heads * group, kv_heads, self.pick("D", st.sampled_from(HEAD_DIMS) | st.integers(16, 256))

    def tokens(self, most: int = 600) -> int:
        """T, mostly small, and often one, as in decoding; at most `most`, which keeps the case small."""
        drawn = self.pick("T", st.just(1) | st.integers(1, 9) | st.integers(10, 70) | st.integers(71, 600))
        self.chosen["T"] = max(1, min(drawn, most))
        return int(self.chosen["T"])

    def keys(self) -> int:
        """S, mostly small, and around the sizes of tiles; rarely thousands, where heads are few and narrow."""
        edges = st.sampled_from([127, 128, 129, 256, 300, 520, 1100])
        usual = st.integers(1, 9) | st.integers(10, 150) | edges | st.integers(151, 2_000)
        drawn = self.pick("S", st.integers(5_000, 40_000) if self.rarely("long") else usual)
        self.chosen["S"] = min(drawn, PRODUCTS // (self.chosen.get("KV", 1) * self.chosen.get("D", 1)))
        return int(self.chosen["S"])

    def width(self, name: str, most: int = 2_000) -> int:
        """E, F or another side of a matrix, at most `most`."""
        drawn = self.pick(name, st.sampled_from(WIDTHS) | st.integers(1, 300) | st.integers(301, 2_000))
        self.chosen[name] = max(1, min(drawn, most))
        return int(self.chosen[name])

    def budget(self, keys: int) -> int:
        """1, S - 1, S, S + 1 or anything between."""
        edges = st.sampled_from([1, max(keys - 1, 1), keys, keys + 1])
        return int(self.pick("budget", edges | st.integers(1, keys + 1)))

    # Numbers

    def size(self, name: str, least: int = -12, most: int = 12) -> float:
        """A power of ten; float16 holds few of them."""
        few = self.dtype in ("float16", "mixed")
        return float(
            10.0 ** self.pick(f"log10 of {name}", st.integers(max(least, -2), 1) if few else st.integers(least, most))
        )

    def store(self, values: np.ndarray) -> np.ndarray:
        """The values in the drawn dtype and layout; where those are mixed, every array has its own."""
        dtype = list(DTYPES)[self.rng.integers(len(DTYPES))] if self.dtype == "mixed" else self.dtype
        with np.errstate(over="ignore", under="ignore"):
            return self.lay(values.astype(DTYPES[dtype]))

    def lay(self, stored: np.ndarray) -> np.ndarray:
        """In the drawn layout."""
        return laid_out(stored, LAYOUTS[self.rng.integers(len(LAYOUTS))] if self.layout == "mixed" else self.layout)

    def alone(self, sums: int) -> bool:
        """Whether so many sums are too few to outweigh one that cancels. With one row for all they are one sum."""
        return sums <= ALONE or self.layout in ("one row", "mixed")

    def normal(self, *shape: int, size: float = 1.0, positive: bool = False) -> np.ndarray:
        """Stored numbers of about `size`."""
        x = self.rng.standard_normal(shape, np.float32) * np.float64(size)
        return self.store(np.abs(x) if positive else x)

    def directions(self, name: str, *shape: int, spoiled: bool = False) -> np.ndarray:
        """Vectors of which only the direction counts: norms from tiny to huge, some zero, some equal, some NaN."""
        largest = 3 if self.dtype in ("float16", "mixed") else 25
        x = self.rng.standard_normal(shape)
        if self.perhaps(f"norms of {name}"):
            x *= 10.0 ** self.rng.integers(-largest, largest + 1, (*shape[:-1], 1))
        return self.store(self._with_odd_rows(name, x, spoiled))

    def vectors(self, name: str, *shape: int, size: float = 1.0, spoiled: bool = False) -> np.ndarray:
        """Vectors of about `size`, some zero, some equal, and with `spoiled` some NaN, which may spoil only what is
        computed from them."""
        return self.store(self._with_odd_rows(name, self.rng.standard_normal(shape) * size, spoiled))

    def rows(self, name: str, *shape: int, size: float = 1.0, positive: bool = False) -> np.ndarray:
        """Rows that are worked on one by one: as `vectors`, and at times of very different sizes."""
        x = self.rng.standard_normal(shape) * size
        if self.rarely(f"uneven {name}"):
            x *= 10.0 ** self.rng.integers(-3, 1, (*shape[:-1], 1))
        return self.store(self._with_odd_rows(name, np.abs(x) if positive else x, spoiled=True))

    def _with_odd_rows(self, name: str, x: np.ndarray, spoiled: bool) -> np.ndarray:
        rows = x.shape[-2]
        if self.perhaps(f"zero among {name}"):
            x[..., self.rng.integers(rows), :] = 0
        if self.perhaps(f"equal among {name}"):
            x[..., self.rng.integers(rows), :] = x[..., self.rng.integers(rows), :]
        if spoiled and self.rarely(f"NaN among {name}"):
            x[self.rng.random(x.shape[:-1]) < 0.3] = np.nan
        return x

    # Positions, and other integers

    def integers(self, values: np.ndarray) -> np.ndarray:
        """Whole numbers of at least 0 in any dtype that holds them."""
        fitting = [dtype for dtype in INTEGERS if values.max(initial=0) <= np.iinfo(dtype).max]
        return self.lay(values.astype(fitting[self.rng.integers(len(fitting))]))

    def positions(self, kv_heads: int, tokens: int, keys: int) -> tuple[np.ndarray | int, np.ndarray]:
        """q_positions (T,), or where those follow one another the first alone, and ragged k_positions (KV, S); some
        queries may come before every key."""
        gaps, offset = (
            self.pick("gaps", st.integers(0, 40)),
            self.pick("offset", st.sampled_from([0, 0, 100, 3 * 2**30])),
        )
        span = keys + gaps
        k_positions = np.stack([np.sort(self.rng.choice(span, keys, replace=False)) for _ in range(kv_heads)])
        first = self.pick("first position", st.just(max(span - tokens, 0)) | st.integers(0, span))
        steps = self.rng.integers(1, 4, tokens) if self.rarely("queries apart") else np.ones(tokens, np.int64)
        if (steps == 1).all() and self.perhaps("first position alone"):
            return int(offset + first), self.integers(offset + k_positions)
        return self.integers(offset + first + np.cumsum(steps) - steps[0]), self.integers(offset + k_positions)


def strategy(build: Callable[[Drawing], Case]) -> st.SearchStrategy[Case]:
    """A strategy from a function that fills in a Drawing."""

    @st.composite
    def cases(draw: st.DrawFn) -> Case:
        return build(Drawing(draw))

    return cases()

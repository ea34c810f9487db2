"""Steps 2, 3 and 6 of the forward pass for one layer and all chunks of a pass: append, select, attend, evict.

What each chunk reads and what is kept is as if one chunk came after the other. But work is done for as many of them at
once as their methods allow:

    no method      all rows of a sequence read the cache in one call; positions alone keep it causal
    a selection    the chunks are appended together and choose in one reading of the keys, chunk c among the columns
                   before its own; then each reads what it chose
    an eviction    a chunk that brings its layer above the budget attends alone, and the next finds the layer evicted

A turn is what attends at the same time: of every sequence in the pass its next run of chunks. All their reads are one
call of the backend, and so sequences that decode together share it, each with its own cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby, zip_longest
from typing import Any

import numpy as np

from reference.eviction import Seen
from reference.model import Model
from reference.state import Chunk, State


@dataclass(frozen=True)
class Read:
    """Rows of a pass that read the same keys: which rows, the values of those keys, what an evictor will see, and
    whether it notes the attention that each key receives."""

    rows: slice
    v: Any  # (KV, R, D)
    seen: Seen
    noted: bool

    @property
    def arguments(self) -> tuple[Any, Any, Any, int, Any]:
        """What `attention` takes."""
        return self.seen.q, self.seen.k, self.v, self.seen.first, self.seen.k_positions


def attend(model: Model, n: int, chunks: Sequence[Chunk], q: Any, k: Any, v: Any) -> Any:
    """Attention of layer n for the rows of all chunks: q (H, ΣT, D), k and v (KV, ΣT, D) -> (ΣT, H·D).

    Afterwards every sequence's layer holds the new tokens, evicted to its budget.
    """
    outputs: dict[int, Any] = {}
    for turn in _turns(model, n, chunks):
        reads = [_append(model, n, run, q, k, v) for run in turn]  # those of each run
        attended = _attended(model, n, [read for own in reads for read in own])
        outputs |= {start: rows for start, (rows, _) in attended.items()}
        for run, own in zip(turn, reads, strict=True):
            _evict(model, n, run[-1], [replace(read.seen, mass=attended[read.rows.start][1]) for read in own])
    return model.backend.concatenate([outputs[start] for start in sorted(outputs)])


def _attended(model: Model, n: int, reads: list[Read]) -> dict[int, tuple[Any, Any]]:
    """By the first row of each read its output (T, H·D), and what its keys receive (H, R), or None where that is not
    noted."""
    config, backend = model.config, model.backend
    options = {"scale": config.attention_scale, "window": config.windows[n], "cap": config.score_cap}
    plain, noted = ([read for read in reads if read.noted == wanted] for wanted in (False, True))
    attended: dict[int, tuple[Any, Any]] = {}
    if plain:
        every = backend.attention_each([read.arguments for read in plain], **options)
        attended |= {read.rows.start: (rows, None) for read, rows in zip(plain, every, strict=True)}
    if noted:
        both = backend.attention_and_mass_each([read.arguments for read in noted], **options)
        attended |= {read.rows.start: pair for read, pair in zip(noted, both, strict=True)}
    return attended


def _evictor(model: Model, n: int, state: State) -> Any:
    """The eviction method of layer n, which one with a window never has: it is cut to it when the pass is over, so that
    until then an interrupted pass can be taken back."""
    return state.policy.at(n).evict if model.config.windows[n] is None else None


def _turns(model: Model, n: int, chunks: Sequence[Chunk]) -> list[list[list[Chunk]]]:
    """The runs of chunks that attend together, turn by turn."""
    sequences = [list(own) for _, own in groupby(chunks, key=lambda chunk: id(chunk.state))]
    each = [_runs(model, n, own) for own in sequences]
    return [[run for run in turn if run] for turn in zip_longest(*each)]


def _runs(model: Model, n: int, chunks: list[Chunk]) -> list[list[Chunk]]:
    """A sequence's chunks in runs: together as long as nothing can be evicted, then one by one."""
    state = chunks[0].state
    evict = _evictor(model, n, state)
    if evict is None:
        return [chunks]
    runs: list[list[Chunk]] = []
    size = state.cache.layers[n].size
    for chunk in chunks:
        size += len(chunk.token_ids)
        if runs and size <= evict.budget:
            runs[-1].append(chunk)
        else:
            runs.append([chunk])
            size = min(size, evict.budget)
    return runs


def _append(model: Model, n: int, run: list[Chunk], q: Any, k: Any, v: Any) -> list[Read]:
    """Append a run's keys and values to its layer, and let each chunk choose what it reads.

    Chunks that read everything held before them are one read: they come first, since the past only grows.
    """
    state, window = run[0].state, model.config.windows[n]
    cache, select = state.cache.layers[n], state.policy.at(n).select if window is None else None
    rows, before = slice(run[0].rows.start, run[-1].rows.stop), cache.size
    cache.append(k[:, rows], v[:, rows], run[0].first)
    pasts = [before + chunk.first - run[0].first for chunk in run]  # columns before each chunk's own
    narrow = next((c for c, past in enumerate(pasts) if select and past > select.budget_of(past)), len(run))
    choosing = run[narrow:]
    queries = [q[:, chunk.rows] for chunk in choosing]
    chosen: list[Any] = []
    if select is not None and choosing:
        chosen = select.columns(model.backend, queries, cache, pasts[narrow:])
    _note(model, n, run, pasts, [None] * narrow + chosen)
    reads: list[Read] = []
    if narrow:
        rows = slice(rows.start, run[narrow - 1].rows.stop)
        reads.append(_read(model, n, run[0], rows, q[:, rows], None))
    for chunk, own, columns in zip(choosing, queries, chosen, strict=True):
        reads.append(_read(model, n, chunk, chunk.rows, own, columns))
    return reads


def _read(model: Model, n: int, chunk: Chunk, rows: slice, q: Any, columns: Any) -> Read:
    """What some rows read, the first of which are the chunk's: `columns` (KV, R) of their cache, or None for all."""
    cache, evict = chunk.state.cache.layers[n], _evictor(model, n, chunk.state)
    k, v, positions = cache.gather(columns)
    scale, cap, backend = model.config.attention_scale, model.config.score_cap, model.backend
    seen = Seen(q, chunk.first, k, positions, columns, cache, scale, cap, chunk.decoding, backend)
    return Read(rows, v, seen, evict is not None and evict.notes_mass)


def _note(model: Model, n: int, run: list[Chunk], pasts: list[int], chosen: list[Any]) -> None:
    """Count what each chunk read of what it could have, and trace it."""
    window, to_numpy = model.config.windows[n], model.backend.to_numpy
    for chunk, past, columns in zip(run, pasts, chosen, strict=True):
        tokens, state = len(chunk.token_ids), chunk.state
        visible = tokens + (past if window is None else min(past, window))
        state.counts.read(n, visible if columns is None else columns.shape[1], visible)
        if state.trace is not None:
            positions = state.cache.layers[n].positions
            of_past = None if columns is None else np.take_along_axis(to_numpy(positions), to_numpy(columns), axis=1)
            state.trace.read(n, chunk.first, None if of_past is None else of_past[:, :-tokens])


def _evict(model: Model, n: int, last: Chunk, seen: list[Seen]) -> None:
    """Step 6 after a run that ends with the chunk `last`: let the method see what was read, and bring the layer back to
    its budget."""
    state, to_numpy = last.state, model.backend.to_numpy
    evict = _evictor(model, n, state)
    if evict is None:
        return
    for one in seen[:-1]:
        evict.observe(one)
    before = state.cache.layers[n].positions
    if (evicted := evict.evict(seen[-1])) is not None:
        scores, kept = evicted
        state.counts.evicted(n, scores.shape[1] - kept.shape[1])
        if state.trace is not None:
            state.trace.evicted(n, last.first, to_numpy(before), to_numpy(scores), to_numpy(kept))

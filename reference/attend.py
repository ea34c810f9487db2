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
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np

from reference.eviction import Seen
from reference.model import Model
from reference.state import Chunk, State


class Read(NamedTuple):
    """Rows of a pass that read the same keys: the first row, its position, the queries, and what they read."""

    row: int
    first: int
    q: Any  # (H, T, D)
    columns: Any  # (KV, R) of the cache, or None for all
    gathered: tuple[Any, Any, Any]  # keys and values (KV, R, D) and positions (KV, R) of those

    @property
    def arguments(self) -> tuple[Any, Any, Any, int, Any]:
        """What `attention` takes."""
        k, v, positions = self.gathered
        return self.q, k, v, self.first, positions


def attend(model: Model, n: int, sequences: Sequence[list[Chunk]], q: Any, k: Any, v: Any) -> Any:
    """Attention of layer n for the rows of all sequences' chunks: q (H, ΣT, D), k and v (KV, ΣT, D) -> (ΣT, H·D).

    Afterwards every sequence's layer holds the new tokens, evicted to its budget.
    """
    outputs: dict[int, Any] = {}
    for turn in _turns(model, n, sequences):
        reads = [_append(model, n, run, q, k, v) for run in turn]  # those of each run
        evictors = [_evictor(model, n, run[0].state) for run in turn]
        noting = [evict is not None and evict.notes_mass for evict in evictors]
        attended: dict[int, tuple[Any, Any]] = {}
        for wanted in (False, True):
            some = [own for own, noted in zip(reads, noting, strict=True) if noted == wanted]
            attended |= _attended(model, n, [read for own in some for read in own], wanted)
        outputs |= {row: rows for row, (rows, _) in attended.items()}
        for run, evict, own in zip(turn, evictors, reads, strict=True):
            if evict is not None:
                _evict(model, n, run[-1], evict, own, [attended[read.row][1] for read in own])
    return model.backend.concatenate([outputs[row] for row in sorted(outputs)])


def _attended(model: Model, n: int, reads: list[Read], noted: bool) -> dict[int, tuple[Any, Any]]:
    """By the first row of each read its output (T, H·D), and what its keys receive (H, R), or None where that is not
    noted."""
    if not reads:
        return {}
    config, backend = model.config, model.backend
    options = {"scale": config.attention_scale, "window": config.windows[n], "cap": config.score_cap}
    every = [read.arguments for read in reads]
    if noted:
        pairs = backend.attention_and_mass_each(every, **options)
    else:
        pairs = [(rows, None) for rows in backend.attention_each(every, **options)]
    return {read.row: pair for read, pair in zip(reads, pairs, strict=True)}


def _evictor(model: Model, n: int, state: State) -> Any:
    """The eviction method of layer n, which one with a window never has: it is cut to it when the pass is over, so that
    until then an interrupted pass can be taken back."""
    return state.policy.at(n).evict if model.config.windows[n] is None else None


def _turns(model: Model, n: int, sequences: Sequence[list[Chunk]]) -> list[list[list[Chunk]]]:
    """The runs of chunks that attend together, turn by turn."""
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
    reads, chosen = [], []
    if narrow:
        before_any = q[:, rows.start : run[narrow - 1].rows.stop]
        reads.append(Read(rows.start, run[0].first, before_any, None, cache.gather(None)))
    if select is not None and (choosing := run[narrow:]):
        queries = [q[:, chunk.rows] for chunk in choosing]
        chosen = select.columns(model.backend, queries, cache, pasts[narrow:])
        each = zip(choosing, queries, chosen, cache.gather_each(chosen), strict=True)
        reads += [Read(chunk.rows.start, chunk.first, *what) for chunk, *what in each]
    _note(model, n, run, pasts, [None] * narrow + chosen)
    return reads


def _note(model: Model, n: int, run: list[Chunk], pasts: list[int], chosen: list[Any]) -> None:
    """Count what the chunks read of what they could have, and trace it."""
    window, state, to_numpy = model.config.windows[n], run[0].state, model.backend.to_numpy
    visible = [
        len(chunk.token_ids) + (past if window is None else min(past, window))
        for chunk, past in zip(run, pasts, strict=True)
    ]
    read = [of if columns is None else columns.shape[1] for columns, of in zip(chosen, visible, strict=True)]
    state.counts.read(n, sum(read), sum(visible))
    if state.trace is None:
        return
    positions = to_numpy(state.cache.layers[n].positions)
    for chunk, columns in zip(run, chosen, strict=True):
        of_past = None if columns is None else np.take_along_axis(positions, to_numpy(columns), axis=1)
        state.trace.read(n, chunk.first, None if of_past is None else of_past[:, : -len(chunk.token_ids)])


def _evict(model: Model, n: int, last: Chunk, evict: Any, reads: list[Read], mass: list[Any]) -> None:
    """Step 6 after a run that ends with the chunk `last`: let the method see what was read, and what the keys received
    where it notes that, and bring the layer back to its budget."""
    state, config, to_numpy = last.state, model.config, model.backend.to_numpy
    cache = state.cache.layers[n]
    besides = cache, config.attention_scale, config.score_cap, last.decoding, model.backend
    seen = [
        Seen(q, first, k, positions, columns, *besides, received)
        for (_, first, q, columns, (k, _, positions)), received in zip(reads, mass, strict=True)
    ]
    for one in seen[:-1]:
        evict.observe(one)
    before = cache.positions
    if (evicted := evict.evict(seen[-1])) is not None:
        scores, kept = evicted
        state.counts.evicted(n, scores.shape[1] - kept.shape[1])
        if state.trace is not None:
            state.trace.evicted(n, last.first, to_numpy(before), to_numpy(scores), to_numpy(kept))

"""The machine's own limit: how fast all its cores multiply numbers that are in registers already.

Each way to multiply is a loop of nothing but products: sums that do not wait for one another stay in registers, and so
do both factors. On the matrix unit a float32 is three bfloat16 and its product six of theirs, so that the unit's limit
for float32 is a sixth of that for bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
from llvmlite import ir

from accel.cpu.runtime.arrays import address
from accel.cpu.runtime.kernels import kernel
from accel.cpu.runtime.team import THREADS
from accel.cpu.simd import LANES, MATRIX, PAIRS, ROWS, TILE, VECTORS, close_tiles, fetch_add, open_tiles
from accel.cpu.simd.emit import at, call_llvm, fused, machine_function, number, paired, repeat
from accel.cpu.simd.kinds import I8, VECTOR, VOID, WORD
from benchmarks.common import Race, Report

SUMS = ROWS * VECTORS  # registers of sums, as many as a register tile has: enough to hide the latency
TIMES = 8  # products per sum and step
STEPS = {"full": 32768, "short": 32768, "smallest": 4}  # of an item
ITEMS = 8  # per thread
FACTORS = 4 * TILE  # bytes: of two registers, or of four tiles
SIZE = 2 * FACTORS // 4  # float32 of a thread: factors, then sums
GOALS = {"float32": 85, "bfloat16": 60}  # per cent
FMA, PAIRED = "multiply-adds of float32 in registers", "products of pairs of bfloat16 in registers"
UNIT, SIX = "products of bfloat16 on the matrix unit", "six products of bfloat16 on the matrix unit"


def _in_registers(product: Callable) -> Callable:
    """sum += x · y, TIMES · steps times for each of SUMS sums: x and y stand at an address, the sums FACTORS after."""

    def build(b, memory, steps):
        x, y = (b.load(at(b, memory, VECTOR, 4 * LANES * n), align=4) for n in range(2))
        places = [at(b, memory, VECTOR, FACTORS + 4 * LANES * n) for n in range(SUMS)]

        def step(sums):
            for _ in range(TIMES):
                sums = [product(b, x, y, total) for total in sums]
            return sums

        for place, total in zip(places, repeat(b, steps, [b.load(p, align=4) for p in places], step), strict=True):
            b.store(total, place, align=4)

    return machine_function(VOID, WORD, WORD)(build)


_fma_loop = _in_registers(fused)
_pair_loop = _in_registers(paired) if PAIRS else _fma_loop


@machine_function(VOID, WORD, WORD)
def _tile_loop(b, memory, steps):
    """The same of four tiles of sums, each the product of one of two tiles and one of two others."""
    if not MATRIX:  # never called then, but compiled
        return
    tile, none, row = lambda n: ir.Constant(I8, n), ir.VoidType(), number(64)
    places = [at(b, memory, I8, FACTORS + TILE * n) for n in range(4)]
    for n in range(4):
        call_llvm(b, "llvm.x86.tileloadd64", none, tile(n), places[n], row)
        call_llvm(b, "llvm.x86.tileloadd64", none, tile(4 + n), at(b, memory, I8, TILE * n), row)

    def step(_):
        for _ in range(TIMES):
            for n in range(4):
                call_llvm(b, "llvm.x86.tdpbf16ps", none, tile(n), tile(4 + n // 2), tile(6 + n % 2))
        return []

    repeat(b, steps, [], step)
    for n in range(4):
        call_llvm(b, "llvm.x86.tilestored64", none, tile(n), places[n], row)


_FMA, _PAIRS, _TILES = range(3)


@kernel
def _multiply(task, worker, how, memory, size, steps, items):
    mine = memory + 4 * size * worker
    open_tiles()
    while True:
        if fetch_add(task, 1) >= items:
            close_tiles()
            return
        if how == _TILES:
            _tile_loop(mine, steps)
        elif how == _PAIRS:
            _pair_loop(mine, steps)
        else:
            _fma_loop(mine, steps)


_multiply.known.remove(_multiply)  # no model needs it: it is not compiled ahead with the package's own


class Loop:
    """One way to multiply, on all threads: `flops` are those of a call."""

    def __init__(self, how: int, size: str) -> None:
        self._how, self._steps = how, STEPS[size]
        rng = np.random.default_rng(0)
        self.memory = np.zeros((THREADS, SIZE), np.float32)
        numbers = rng.standard_normal((THREADS, SIZE // 2 if how == _FMA else SIZE), np.float32)
        narrow = numbers if how == _FMA else numbers.astype(ml_dtypes.bfloat16).view(np.float32)
        self.memory[:, : SIZE // 2] = narrow  # the unit takes longer for these than for zeros
        one = {_FMA: 2 * LANES * SUMS, _PAIRS: 4 * LANES * SUMS, _TILES: 4 * 2 * 16 * 16 * 32}[how]
        self.products = TIMES * self._steps * ITEMS * THREADS  # of every sum, over all threads
        self.flops = one * self.products

    def run(self) -> None:
        """One call."""
        _multiply(self._how, address(self.memory), SIZE, self._steps, ITEMS * THREADS)


def loops(dtype: str, size: str) -> dict[str, tuple[Loop, float]]:
    """What multiplies numbers of a dtype here, each with the products of bfloat16 that one of that dtype takes. Nothing
    for bfloat16 where it is multiplied as float32."""
    if dtype == "float32":
        return {FMA: (Loop(_FMA, size), 1)} | ({SIX: (Loop(_TILES, size), 6)} if MATRIX else {})
    if MATRIX:
        return {UNIT: (Loop(_TILES, size), 1)}
    return {PAIRED: (Loop(_PAIRS, size), 1)} if PAIRS else {}


def share(report: Report, measure: str, work: Callable[[], object], flops: int, dtype: str, rounds: int) -> None:
    """A row for each way to multiply: the share of its rate that `work` reaches, which comes to so many operations. The
    fastest way is the limit, and has the goal."""
    if not (found := loops(dtype, report.size)):
        return
    race = Race({"work": work, **{name: loop.run for name, (loop, _) in found.items()}}, rounds)
    operations = {name: loop.flops / pieces for name, (loop, pieces) in found.items()}
    rates = {name: operations[name] / race.median(name) for name in found}
    limit = max(rates, key=rates.__getitem__)
    for name in found:
        values = [100 * flops / operations[name] * x for x in race.ratio(name, "work")]
        reach = GOALS[dtype] if name == limit else None
        report.row(f"{measure}, {dtype}", values, against=f"the machine's limit: {name}", unit="%", reach=reach)
    report.settings.setdefault("limit_gflops", {})[dtype] = round(rates[limit] / 1e9, 1)

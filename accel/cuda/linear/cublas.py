"""Dense products by cuBLASLt, through nvmath-python's bindings, which take addresses and a stream.

    y (T, out) = x (T, in) · Wᵀ + b       W (out, in) in rows or in columns, y float32

cuBLASLt counts columns first: what it sees are yᵀ = W xᵀ, with the same memory. A plan holds the layouts and the
algorithm that its heuristic takes for one shape, type and alignment; it is made once and kept.
"""

from __future__ import annotations

import threading
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from accel.cuda.runtime.arrays import BF16, F16, F32, Array, empty
from accel.cuda.runtime.device import here, machine

REAL, HALF, BRAIN = 0, 2, 14  # cudaDataType of float32, float16, bfloat16
TYPES = {F32: REAL, F16: HALF, BF16: BRAIN}
COMPUTE_FLOAT32 = 68  # in float32 proper: no TF32
TRANSPOSED, BIAS = 1, 4  # cublasOperation_t and cublasLtEpilogue_t
WORKSPACE = 32 << 20  # bytes, as cuBLAS advises for Hopper
ONE, ZERO = np.ones(1, np.float32), np.zeros(1, np.float32)
_lock = threading.Lock()


class Plan(NamedTuple):
    """What `cublasLtMatmul` takes besides addresses."""

    product: int
    weight: int
    x: int
    out: int
    algorithm: np.ndarray


@cache
def available() -> bool:
    """Whether the library can be had here."""
    try:
        _handle()
    except Exception:  # not installed, or installed without its library: both are named by other classes
        return False
    return True


def product(x: Array, weight: Array, bias: Array | None, out: Array) -> None:
    """out (T, out) = x (T, in) Wᵀ + b; x and W of one type, rows of x without gaps, W in rows or columns without gaps;
    bias float32."""
    from nvmath.bindings import cublasLt

    rows = weight.strides[1] == weight.dtype.itemsize
    lead = weight.strides[0 if rows else 1] // weight.dtype.itemsize
    places = tuple(min(a.address & -a.address, 256) for a in (x, weight, out))
    x_lead = x.strides[0] // x.dtype.itemsize
    plan = _plan(x.shape[0], *weight.shape, x.dtype, rows, lead, x_lead, places, bias is not None)
    space = _workspace()
    with _lock:  # a plan is one for all threads, and holds the address of the bias
        if bias is not None:
            where = cublasLt.MatmulDescAttribute.BIAS_POINTER
            _set(cublasLt.matmul_desc_set_attribute, plan.product, where, np.uint64(bias.address))
        cublasLt.matmul(
            _handle(), plan.product, ONE.ctypes.data, weight.address, plan.weight, x.address, plan.x, ZERO.ctypes.data,
            out.address, plan.out, out.address, plan.out, plan.algorithm.ctypes.data, space.address, WORKSPACE,
            int(here.recording or machine().handle),
        )  # fmt: skip


@cache
def _handle() -> int:
    from nvmath.bindings import cublasLt

    machine()
    return cublasLt.create()


@cache
def _workspace() -> Array:
    return empty((WORKSPACE,), np.dtype(np.uint8))


@cache
def _plan(
    tokens: int,
    outs: int,
    ins: int,
    dtype: Any,
    rows: bool,
    lead: int,
    x_lead: int,
    places: tuple[int, ...],
    bias: bool,
) -> Plan:
    from nvmath.bindings import cublasLt

    kind = TYPES[dtype]
    described = cublasLt.matmul_desc_create(COMPUTE_FLOAT32, REAL)
    attributes = cublasLt.MatmulDescAttribute
    _set(cublasLt.matmul_desc_set_attribute, described, attributes.TRANSA, np.int32(TRANSPOSED if rows else 0))
    if bias:
        _set(cublasLt.matmul_desc_set_attribute, described, attributes.EPILOGUE, np.int32(BIAS))
    weight = cublasLt.matrix_layout_create(kind, *((ins, outs) if rows else (outs, ins)), lead)
    x = cublasLt.matrix_layout_create(kind, ins, tokens, x_lead)
    out = cublasLt.matrix_layout_create(REAL, outs, tokens, outs)
    wish, wishes = cublasLt.matmul_preference_create(), cublasLt.MatmulPreferenceAttribute
    _set(cublasLt.matmul_preference_set_attribute, wish, wishes.MAX_WORKSPACE_BYTES, np.uint64(WORKSPACE))
    for name, place in zip("BAC", places, strict=True):
        _set(cublasLt.matmul_preference_set_attribute, wish, wishes[f"MIN_ALIGNMENT_{name}_BYTES"], np.uint32(place))
    _set(cublasLt.matmul_preference_set_attribute, wish, wishes.MIN_ALIGNMENT_D_BYTES, np.uint32(places[2]))
    found, count = cublasLt.MatmulHeuristicResult(1), np.zeros(1, np.int32)
    cublasLt.matmul_algo_get_heuristic(_handle(), described, weight, x, out, out, wish, 1, found.ptr, count.ctypes.data)
    if not count[0]:
        raise RuntimeError(f"linear: cuBLASLt has no algorithm for ({tokens}, {ins}) by ({outs}, {ins}) of {dtype}")
    cublasLt.matmul_preference_destroy(wish)
    return Plan(described, weight, x, out, np.array(found["algo"]))


def _set(setter: Any, what: int, attribute: int, value: Any) -> None:
    held = np.atleast_1d(value)
    setter(what, attribute, held.ctypes.data, held.nbytes)

"""Arrays on the device: where they lie, their shape and strides. No arithmetic: that is the kernels' business.

What the forward pass asks of an array is all there is: shape, dtype, `len`, and slices of leading axes, which are
views. float64 is stored as float32 and every integer as int64; float16 and bfloat16 stay as they are, and kernels see
their bits as int16 and uint16 (ptx/numbers.py widens them).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import Any

import ml_dtypes
import numpy as np

from accel.cuda.ptx.simulator import SIMULATED
from accel.cuda.runtime.device import here, machine
from accel.cuda.runtime.pool import pool

BF16 = np.dtype(ml_dtypes.bfloat16)
F16, F32, F64, I32, I64 = (np.dtype(t) for t in (np.float16, np.float32, np.float64, np.int32, np.int64))
BITS = {F16: np.dtype(np.int16), BF16: np.dtype(np.uint16)}  # what a kernel sees of them
ALIGNED = 256  # bytes


class Array:
    """Numbers on the device: `memory` keeps them alive, `address` is where the first lies, strides are in bytes.

    An `activation` of 16 bits stands for float32: it is stored as what it feeds is, and on the host it is float32.
    `below` is set where whole numbers are known to rise strictly along the last axis, from 0 at least to below - 1 at
    most, so that no one need look (errors.py).
    """

    __slots__ = ("_words", "activation", "address", "below", "dtype", "memory", "shape", "strides")

    def __init__(
        self,
        memory: Any,
        address: int,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
        dtype: np.dtype,
        activation: bool = False,
    ) -> None:
        self.memory, self.address, self.shape, self.strides, self.dtype = memory, address, shape, strides, dtype
        self.activation = activation
        self.below: int | None = None
        self._words: tuple[int, ...] | None = None

    @property
    def size(self) -> int:
        """How many numbers."""
        return prod(self.shape)

    @property
    def ndim(self) -> int:
        """How many axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Their bytes."""
        return prod(self.shape) * self.dtype.itemsize

    @property
    def contiguous(self) -> bool:
        """Whether they lie without gaps in the order of their axes."""
        return self.strides == _packed(self.shape, self.dtype.itemsize) or not self.size

    @property
    def words(self) -> tuple[int, ...]:
        """What a compiled kernel takes for an array argument."""
        if self._words is None:
            count = prod(self.shape)
            self._words = (0, 0, count, self.dtype.itemsize, self.address, *self.shape, *self.strides)
        return self._words

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """How CuPy, PyTorch and Numba read the array without a copy, after the stream's work so far."""
        return {
            "shape": self.shape, "strides": self.strides, "data": (self.address, False), "version": 3,
            "typestr": BITS.get(self.dtype, self.dtype).str if self.dtype == BF16 else self.dtype.str,
            "stream": int(machine().stream.handle),
        }  # fmt: skip

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        """The numbers on the host, for whoever puts away what a backend left: a state's logits."""
        if not self.contiguous:
            raise ValueError(f"array: got shape {self.shape} with gaps, wanted it without, as `to_numpy` makes it")
        return to_host(self).astype(dtype or self.dtype, copy=False)

    def __dlpack_device__(self) -> tuple[int, int]:
        """CUDA, and which device."""
        return 2, machine().device.device_id

    def __dlpack__(self, *, stream: int | None = None, **wishes: Any) -> Any:
        """The numbers for another library, without a copy, in a capsule. What is launched on its `stream` from now on
        comes after all that was asked of this backend; it keeps the memory as long as it holds the capsule's array."""
        from cuda.core import Buffer, Stream
        from cuda.core.utils import StridedMemoryView

        if stream != -1:
            Stream.from_handle(stream or 1).wait(machine().stream)  # 1 is the driver's default stream
        last = sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True)) if self.size else 0
        whole = Buffer.from_handle(self.address, last + self.dtype.itemsize, owner=self.memory)
        steps = tuple(stride // self.dtype.itemsize for stride in self.strides)
        seen = BITS[BF16] if self.dtype == BF16 else self.dtype
        view = StridedMemoryView.from_buffer(whole, self.shape, steps, dtype=seen)
        capsule = view.__dlpack__(stream=-1, **wishes)
        if self.dtype == BF16:
            _name_bfloat16(capsule)
        return capsule

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Array:
        """A view: slices of leading axes without a step, or whole numbers, which drop their axis."""
        parts = index if isinstance(index, tuple) else (index,)
        address, shape, strides, n = self.address, list(self.shape), list(self.strides), 0
        for part in parts:
            if isinstance(part, slice):
                start, stop, step = part.indices(shape[n])
                if step != 1:
                    raise IndexError(f"index: got step {step}, wanted slices without a step")
                address += start * strides[n]
                shape[n] = stop - start if stop > start else 0
                n += 1
            else:
                address += range(shape.pop(n))[part] * strides.pop(n)
        view = self.seen(address, tuple(shape), tuple(strides))
        if len(parts) < self.ndim or isinstance(parts[-1], slice):
            view.below = self.below
        return view

    def __iter__(self) -> Any:
        return (self[n] for n in range(self.shape[0]))

    def __repr__(self) -> str:
        return f"Array({self.shape}, {self.dtype})"

    def seen(self, address: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> Array:
        """A view of the same memory."""
        return Array(self.memory, address, shape, strides, self.dtype, self.activation)

    def columns(self, start: int, stop: int) -> Array:
        """x[:, start:stop] of 0 ≤ start ≤ stop ≤ S, without the questions that an index asks: a cache makes many."""
        shape, strides = self.shape, self.strides
        return self.seen(self.address + start * strides[1], (shape[0], stop - start, *shape[2:]), strides)

    def axes(self, *order: int) -> Array:
        """A view with the axes in another order."""
        return self.seen(self.address, tuple([self.shape[n] for n in order]), tuple([self.strides[n] for n in order]))

    def split(self, axis: int, parts: int) -> Array:
        """A view in which one axis has become two, the first of `parts`."""
        size, stride = self.shape[axis] // parts, self.strides[axis]
        shape = (*self.shape[:axis], parts, size, *self.shape[axis + 1 :])
        strides = (*self.strides[:axis], size * stride, stride, *self.strides[axis + 1 :])
        return self.seen(self.address, shape, strides)

    def join(self, axis: int) -> Array | None:
        """A view in which an axis and the one after it are one, or None where they do not lie so."""
        first, second = self.shape[axis : axis + 2]
        if first > 1 and self.strides[axis] != second * self.strides[axis + 1]:
            return None
        shape = (*self.shape[:axis], first * second, *self.shape[axis + 2 :])
        return self.seen(self.address, shape, (*self.strides[:axis], *self.strides[axis + 1 :]))

    def on_host(self) -> np.ndarray:
        """The simulator's view of the memory."""
        dtype = BITS.get(self.dtype, self.dtype)
        base = self.memory.__array_interface__["data"][0]
        return np.ndarray(self.shape, dtype, self.memory, self.address - base, self.strides)


def under_each_other(parts: Sequence[Array]) -> Array | None:
    """A view of all rows, where the parts lie under each other in one memory without gaps: (T_1, …), (T_2, …), … ->
    (ΣT, …)."""
    first, end, rows = parts[0], parts[0].address, 0
    if not first.contiguous:
        return None
    step = first.strides[0]
    for part in parts:
        alike = part.memory is first.memory and part.strides == first.strides and part.shape[1:] == first.shape[1:]
        if not alike or part.address != end or part.dtype != first.dtype:
            return None
        end += part.shape[0] * step
        rows += part.shape[0]
    return first.seen(first.address, (rows, *first.shape[1:]), first.strides)


def in_words(x: Array) -> Array:
    """The bits of x (…, D), whose rows have no gaps, as the widest whole numbers that rows are made of: (…, W)."""
    row = x.shape[-1] * x.dtype.itemsize
    places = x.address, row, *x.strides[:-1]
    kind = next(kind for kind in (I64, I32, F16) if not any(place % kind.itemsize for place in places))
    return Array(x.memory, x.address, (*x.shape[:-1], row // kind.itemsize), (*x.strides[:-1], kind.itemsize), kind)


@lru_cache(4096)  # every layer of every pass asks for the same
def _packed(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    strides, step = [], itemsize
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def empty(shape: tuple[int, ...], dtype: np.dtype = F32, *, activation: bool = False) -> Array:
    """A new array with whatever the memory holds."""
    strides = _packed(shape, dtype.itemsize)
    nbytes = max(prod(shape) * dtype.itemsize, 1)
    if SIMULATED:
        memory: Any = np.zeros(nbytes + ALIGNED, np.uint8)
        start = memory.__array_interface__["data"][0]
        return Array(memory, start + -start % ALIGNED, shape, strides, dtype, activation)
    block = pool.take(nbytes)
    return Array(block, block.address, shape, strides, dtype, activation)


def stored(dtype: np.dtype) -> np.dtype:
    """How numbers of this type are kept here."""
    if dtype.kind in "iu":
        return I64
    return F32 if dtype == F64 else dtype


def to_backend(x: Any) -> Any:
    """A host array on the device. What lies there already stays, also another library's (DLPack or
    `__cuda_array_interface__`)."""
    if isinstance(x, Array):
        return x
    if not isinstance(x, np.ndarray):
        return _adopt(x) if hasattr(x, "__dlpack__") or hasattr(x, "__cuda_array_interface__") else x
    host = np.ascontiguousarray(x, stored(x.dtype)).reshape(x.shape)
    out = empty(host.shape, host.dtype)
    if host.size:
        write(out, host)
    return out


def write(out: Array, host: np.ndarray) -> None:
    """Copy a contiguous host array of the same shape and type to a contiguous array."""
    if SIMULATED:
        out.on_host()[...] = host.view(BITS.get(host.dtype, host.dtype))
        return
    _not_recorded("a copy to the device")
    from cuda.bindings import driver

    # Memory that is not pinned is copied aside before the call returns: it may go away then, and no one waits.
    _check(driver.cuMemcpyHtoDAsync(out.address, host.__array_interface__["data"][0], host.nbytes, machine().handle))


def to_host(x: Any) -> np.ndarray:
    """An array without gaps on the host, once the device has come so far. What lies on the host already stays."""
    if not isinstance(x, Array):
        return np.asarray(x)
    host: np.ndarray = np.empty(x.shape, x.dtype)
    if SIMULATED:
        host[...] = x.on_host().view(x.dtype)
    elif host.size:
        _not_recorded("a copy to the host")
        from cuda.bindings import driver

        _check(driver.cuMemcpyDtoHAsync(host.__array_interface__["data"][0], x.address, host.nbytes, machine().handle))
        machine().stream.sync()
    return host.astype(np.float32) if x.activation else host


def _adopt(x: Any) -> Array:
    """Another library's device array, without a copy, behind what its own stream still has to do."""
    from cuda.core.utils import StridedMemoryView

    there = machine()
    view = StridedMemoryView.from_any_interface(x, stream_ptr=int(there.stream.handle))
    if not view.is_device_accessible:
        return to_backend(np.from_dlpack(x))
    dtype, shape = np.dtype(view.dtype), tuple(view.shape)
    if stored(dtype) != dtype:
        raise ValueError(f"array: got dtype {dtype} on the device, wanted int64, float32, float16 or bfloat16")
    if view.device_id != there.device.device_id:
        raise ValueError(f"array: got one on GPU {view.device_id}, wanted it on GPU {there.device.device_id}")
    size = dtype.itemsize
    strides = _packed(shape, size) if view.strides is None else tuple(size * n for n in view.strides)
    return Array((x, view), view.ptr, shape, strides, dtype)


def _name_bfloat16(capsule: Any) -> None:
    """Let a DLPack capsule of whole numbers of 16 bits say bfloat16, which cuda.core has no name for: in DLTensor the
    type's code stands behind an address and three int32, and a versioned capsule has 32 bytes before it."""
    versioned = "versioned" in repr(capsule)
    address = ctypes.pythonapi.PyCapsule_GetPointer
    address.restype, address.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    place = address(capsule, b"dltensor_versioned" if versioned else b"dltensor")
    ctypes.c_uint8.from_address(place + (32 if versioned else 0) + 8 + 3 * 4).value = 4  # kDLBfloat


def _not_recorded(what: str) -> None:
    """A recorded pass would go on with the numbers of the time when it was recorded."""
    if here.recording is not None:
        raise RuntimeError(f"cuda: {what} within a pass that is recorded")


def _check(result: Any) -> None:
    if int(result[0]) != 0:
        raise RuntimeError(f"cuda: {result[0].name}: a kernel before this copy failed, or the device was lost")

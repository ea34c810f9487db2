"""Kernels: how a Python function becomes machine code for the device, how it is kept on disk, how it is launched.

    @kernel
    def double(x, out, count): …                 arrays, whole numbers (int64) and real numbers (float64)
    double[blocks, threads](x, out, count)       compiled for the types of its arguments, once

numba.cuda makes PTX (`Kernel.text`) and ptxas makes machine code of it (`assemble`), without a device if need be: so
the tests do for every architecture. In the simulator the same function runs in the interpreter, block by block.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import re
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from struct import Struct
from typing import Any, ClassVar

import numpy as np
from numba import cuda, types

from accel.cuda.ptx.simulator import SIMULATED
from accel.cuda.runtime.arrays import BF16, F16, F32, F64, I32, I64, Array
from accel.cuda.runtime.device import here, machine

CODES = {F32: types.float32, F64: types.float64, I64: types.int64, I32: types.int32}
CODES |= {F16: types.int16, BF16: types.uint16}  # as bits: see ptx/numbers.py
Grid = tuple[int, ...]


class Kernel:
    """A function that runs in every thread of a grid. `name` tells apart kernels that one function makes; `threads` is
    the block it is meant for, and what its registers are limited by; `shared` the bytes of dynamic shared memory;
    `feature` "a" where it uses one chip's own instructions."""

    known: ClassVar[list[Kernel]] = []

    def __init__(self, function: Callable, name: str, threads: int | None, shared: int, feature: str) -> None:
        self.function, self.threads, self.shared, self.feature = function, threads, shared, feature
        self.name = f"{function.__module__.removeprefix('accel.cuda.')}.{name or function.__name__.lstrip('_')}"
        self.entry = re.sub(r"\W", "_", f"thresher_{self.name}")  # as profilers show it
        self._loaded: dict[tuple, Any] = {}
        self._simulated = cuda.jit(function) if SIMULATED else None
        self._lock = threading.Lock()
        self.known.append(self)

    def __getitem__(self, shape: tuple[int | Grid, int]) -> Callable[..., None]:
        """The kernel over a grid of blocks of so many threads, to be called."""
        grid, block = shape
        return lambda *arguments: self.launch(grid, block, arguments)

    def launch(self, grid: int | Grid, block: int, arguments: tuple[Any, ...]) -> None:
        """Run over a grid of blocks; returns at once."""
        key = tuple([(a.dtype, len(a.shape)) if isinstance(a, Array) else type(a) for a in arguments])
        loaded = self._loaded.get(key)
        if self._simulated is not None:
            self._loaded[key] = self._simulated
            self._simulate(grid, block, arguments)
            return
        if loaded is None:
            loaded = self._load(key)
        words: list[int | float] = []
        for a in arguments:
            if isinstance(a, Array):
                words += a.words
            else:
                words.append(a)
        loaded.launch(grid if isinstance(grid, tuple) else (grid,), block, self.shared, words)

    @property
    def keys(self) -> list[tuple]:
        """The types of arguments that it was called with in this process."""
        return list(self._loaded)

    def _simulate(self, grid: int | Grid, block: int, arguments: tuple[Any, ...]) -> None:
        from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray

        given = [FakeCUDAArray(a.on_host()) if isinstance(a, Array) else a for a in arguments]
        with _simulator, np.errstate(all="ignore"):
            self._simulated[grid, block](*given)  # type: ignore[index]

    def _load(self, key: tuple) -> Any:
        """The kernel for such arguments, from memory, disk or the compiler."""
        with self._lock:
            if key not in self._loaded:
                there = machine()
                code = _kept(self, key, "{}{}".format(*there.capability) + self.feature)
                loaded = code.get_kernel(self.entry)
                if self.shared > 48 * 1024:
                    _allow_shared(loaded, self.shared, there.device.device_id)
                self._loaded[key] = Loaded(code, loaded, key)
        return self._loaded[key]

    def text(self, key: tuple, arch: str) -> str:
        """PTX for `arch` ("90a"); needs no device. `key` gives (dtype, number of axes), int or float for each
        argument."""
        number = re.fullmatch(r"(\d+)(\d)([a-z]?)", arch)
        if number is None:
            raise ValueError(f"arch: got {arch!r}, wanted a compute capability such as '90a'")
        cc = (int(number[1]), int(number[2]), *number[3])
        given = [types.Array(CODES[k[0]], k[1], "A") if isinstance(k, tuple) else SCALARS[k] for k in key]
        bounds = {"launch_bounds": (self.threads, 1)} if self.threads else {}
        text, _ = cuda.compile(self.function, types.void(*given), cc=cc, device=False, abi="numba", **bounds)
        mangled = re.search(r"\.entry\s+([^\s(]+)", text)
        return text.replace(mangled[1], self.entry)  # type: ignore[index]


class Loaded:
    """Machine code that is ready to run.

    Every word of the arguments has eight bytes, so that they are one block of memory without gaps, which the driver
    copies during the call. Each thread of the host has a block of its own.
    """

    def __init__(self, code: Any, loaded: Any, key: tuple) -> None:
        from cuda.bindings import driver

        self._code = code  # keeps the function loaded
        _, self._function = driver.cuKernelGetFunction(driver.CUkernel(int(loaded.handle)))
        self._call, self._good = driver.cuLaunchKernel, driver.CUresult.CUDA_SUCCESS
        letters = ("q" * (5 + 2 * k[1]) if isinstance(k, tuple) else "d" if k is float else "q" for k in key)
        self._form = Struct("".join(letters))
        self._thread = threading.local()

    def launch(self, grid: Grid, block: int, shared: int, words: list[int | float]) -> None:
        """Run over a grid of blocks; returns at once."""
        mine = self._thread.__dict__
        if not mine:
            held = bytearray(self._form.size)
            place = ctypes.addressof(ctypes.c_char.from_buffer(held))
            size = ctypes.c_size_t(len(held))
            extra = (ctypes.c_void_p * 5)(1, place, 2, ctypes.addressof(size), 0)  # CU_LAUNCH_PARAM_… and their values
            mine.update(held=held, size=size, extra=extra, address=ctypes.addressof(extra), stream=machine().handle)
        self._form.pack_into(mine["held"], 0, *words)
        x, y, z = (*grid, 1, 1)[:3]
        stream = here.recording or mine["stream"]
        (status,) = self._call(self._function, x, y, z, block, 1, 1, shared, stream, 0, mine["address"])
        if status != self._good:
            raise RuntimeError(f"cuda: {status.name} at a launch of {grid} blocks of {block} threads")


def assemble(text: str, arch: str) -> tuple[bytes, str]:
    """Machine code for `arch` from PTX, and ptxas' report: registers, memory spilled to, warnings. OSError where there
    is no ptxas. (nvJitLink makes code that might yet be linked, and ignores setmaxnreg for its sake.)"""
    from cuda.pathfinder import find_nvidia_binary_utility

    program = find_nvidia_binary_utility("ptxas")
    if program is None:
        raise FileNotFoundError("ptxas: found none; the extra thresher[cuda] installs it")
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "kernel.ptx", Path(folder) / "kernel.cubin"
        source.write_text(text)
        call = [program, "-v", f"-arch=sm_{arch}", source, "-o", target]
        made = subprocess.run(call, capture_output=True, text=True, check=False)
        if made.returncode != 0:
            raise RuntimeError(f"ptxas: {made.stderr.strip()}")
        return target.read_bytes(), made.stderr


_tell: Callable[[str], None] | None = None


def tell_compiling(tell: Callable[[str], None] | None) -> None:
    """Call `tell` with the name of each kernel that is compiled from now on, and with "" when it is done."""
    global _tell
    _tell = tell


@contextlib.contextmanager
def _told(name: str) -> Iterator[None]:
    if _tell is None:
        yield
        return
    _tell(name)
    try:
        yield
    finally:
        _tell("")


SCALARS = {int: types.int64, float: types.float64}
_simulator = threading.Lock()  # it runs one kernel at a time


def kernel(
    function: Callable | None = None,
    *,
    name: str = "",
    threads: int | None = None,
    shared: int = 0,
    feature: str = "",
) -> Any:
    """Decorator: a kernel of this package."""
    make = lambda f: Kernel(f, name, threads, shared, feature)  # noqa: E731
    return make if function is None else make(function)


def device(function: Callable) -> Any:
    """Decorator: a function that kernels call. It becomes part of their code: as a function of its own, numba.cuda
    would compile it for the device at hand, and there may be none."""
    return cuda.jit(device=True, inline="always")(function)


def blocks(count: int, each: int) -> int:
    """Blocks for `count` items at `each` a block, at least one."""
    return max(-(-count // each), 1)


def _allow_shared(loaded: Any, nbytes: int, device_id: int) -> None:
    from cuda.bindings import driver

    what = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    (status,) = driver.cuKernelSetAttribute(
        what, nbytes, driver.CUkernel(int(loaded.handle)), driver.CUdevice(device_id)
    )
    if int(status) != 0:
        raise RuntimeError(f"cuda: {status.name}: this device gives a block less than {nbytes} bytes of shared memory")


@cache
def _stamp() -> str:
    """Changes with any source file of this package, and with what compiles it."""
    digest = hashlib.sha256()
    for name in ("numba-cuda", "nvidia-nvjitlink", "nvidia-nvvm"):
        try:
            digest.update(version(name).encode())
        except PackageNotFoundError:
            digest.update(b"-")
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "thresher" / "cuda"


def _kept(asked: Kernel, key: tuple, arch: str) -> Any:
    """The code object, from the disk, or compiled and written there. A disk that cannot be written is no error."""
    from cuda.core import ObjectCode

    named = f"{_stamp()} {asked.name} {key} {arch}"
    path = _folder() / f"{hashlib.sha256(named.encode()).hexdigest()}.cubin"
    with contextlib.suppress(OSError):
        return ObjectCode.from_cubin(path.read_bytes())
    with _told(asked.name):
        text = asked.text(key, arch)
        try:
            code, _ = assemble(text, arch)
        except FileNotFoundError:
            return ObjectCode.from_ptx(text.encode())  # the driver can assemble too, if it is as new as the compiler
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        half = path.with_suffix(f".{os.getpid()}.{threading.get_ident()}")
        half.write_bytes(code)
        half.replace(path)
    return ObjectCode.from_cubin(code)

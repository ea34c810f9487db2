"""Barriers and fences between the threads of a block.

An mbarrier is 8 bytes of shared memory that count arrivals. When as many have come as it was made for, its phase ends
and the count starts again; `barrier_wait(barrier, parity)` returns when the phase of that parity (0, 1, 0, …) is over.
A ring of buffers needs two: `full`, at which the writers arrive, and `empty`, at which the readers do.
"""

from __future__ import annotations

from numba import types

from accel.cuda.ptx.emit import effect

U32 = types.uint32
barrier_init = effect("mbarrier.init.shared::cta.b64 [$0], $1;", U32, U32)
barrier_arrive = effect("{ .reg .b64 t; mbarrier.arrive.shared::cta.b64 t, [$0]; }", U32)
barrier_wait = effect(
    "{ .reg .pred p; WAIT: mbarrier.try_wait.parity.shared::cta.b64 p, [$0], $1; @p bra DONE; bra WAIT; DONE: }",
    U32,
    U32,
)
fence_barriers = effect("fence.mbarrier_init.release.cluster;")  # new mbarriers become known to the copy engine too
fence_shared = effect("fence.proxy.async.shared::cta;")  # shared memory written so far becomes known to wgmma
meet = effect("bar.sync $0, $1;", U32, U32)  # all of $1 threads at the named barrier $0 (1 to 15)
announce = effect("bar.arrive $0, $1;", U32, U32)  # counts as having come there, and goes on

# A kernel of three warpgroups starts with 168 registers a thread; the third gives up what the other two take.
more_registers = effect("setmaxnreg.inc.sync.aligned.u32 216;")
fewer_registers = effect("setmaxnreg.dec.sync.aligned.u32 72;")

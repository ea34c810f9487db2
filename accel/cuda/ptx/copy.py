"""cp.async (compute capability 8.0): 16 bytes from global to shared memory, while the thread goes on.

A thread closes a group of copies with `copies_commit`, and `copies_wait(n)` makes an instruction that waits until all
but its newest n groups are done. Or what it has asked for so far is tied to an mbarrier by `copies_arrive`: the
barrier then counts that thread's arrival when its copies are done, without a wait (`noinc`: the arrival is one of
those that the barrier expects).
"""

from __future__ import annotations

from functools import cache
from typing import Any

from numba import types
from numba.cuda.extending import intrinsic

from accel.cuda.ptx.emit import VOID, assembly, effect


def _copy(hint: str) -> Any:
    @intrinsic
    def copy(typing: Any, shared: Any, source: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            text = f"cp.async.cg.shared.global{hint} [$0], [$1], 16;"
            assembly(builder, VOID, arguments, text, "r,l,~{memory}")
            return context.get_dummy_value()

        return types.void(types.uint32, types.int64), generate

    return copy


# 16 bytes from a global address to a shared one, both at 16-byte boundaries, past the first-level cache; and the same
# where what follows in memory will be read soon: the second-level cache asks for 256 bytes
copy_four, copy_four_of_more = _copy(""), _copy(".L2::256B")


@intrinsic
def copies_arrive(typing: Any, barrier: Any) -> Any:
    """Arrive at an mbarrier once this thread's copies so far are done."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        text = "cp.async.mbarrier.arrive.noinc.shared::cta.b64 [$0];"
        assembly(builder, VOID, arguments, text, "r,~{memory}")
        return context.get_dummy_value()

    return types.void(types.uint32), generate


copies_commit = effect("cp.async.commit_group;")


@cache
def copies_wait(groups: int) -> Any:
    """The intrinsic that waits until all but the newest `groups` groups of this thread's copies are done."""
    return effect(f"cp.async.wait_group {groups};")

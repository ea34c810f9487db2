"""Which kernels a model needs: compiled before its first answer, and not in the middle of it."""

from __future__ import annotations

from accel.cpu.runtime.ahead import Progress, compile_all
from accel.cpu.runtime.kernels import Kernel
from accel.cpu.runtime.team import TEAM
from reference.policy import Policy

# Modules whose kernels only a part of a policy calls.
_PARTS = {
    "select": ("methods.topk", "methods.quoka"),
    "evict": ("methods.topk", "methods.keydiff", "methods.caote", "methods.scores", "attention.received"),
    "ffn": ("methods.topk", "ffn.predictor"),
}


def warmup(progress: Progress | None = None, policy: Policy | None = None) -> int:
    """Compile every kernel, or what any model needs under a policy, and the team's functions, or load them from disk;
    returns how many.

    `progress` gets (name, number from 0, of how many) before each that is compiled, and ("", n, n) at the end.
    """
    return compile_all([*(Kernel.known if policy is None else needed(policy)), *TEAM], progress)


def needed(policy: Policy) -> list[Kernel]:
    """The kernels that a model calls under a policy."""
    of_each = [policy, *policy.overrides.values()]
    wanted = {name for part, names in _PARTS.items() if any(getattr(one, part) for one in of_each) for name in names}
    others = {name for names in _PARTS.values() for name in names} - wanted
    return [kernel for kernel in Kernel.known if kernel.name.rpartition(".")[0] not in others]

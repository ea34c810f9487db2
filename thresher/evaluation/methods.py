"""The methods of a comparison: `dense; quoka:budget=1024; quoka:budget=1024 + keydiff:budget=0.5`.

Each is a list of specs as `reference.specs` reads them, joined by " + "; which part of the policy a spec belongs to
follows from its name.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from reference.checks import require
from reference.policy import Policy
from reference.specs import METHODS

DENSE = "dense"
EXAMPLE = "'dense; quoka:budget=1024; keydiff:budget=0.5'"


def named(methods: str | Iterable[str]) -> dict[str, Policy]:
    """Policies by name, spelled as `Policy.specs` does, in their order and without doubles. ValueError for none."""
    texts = methods.split(";") if isinstance(methods, str) else methods
    policies = [policy(text.strip()) for text in texts if text.strip()]
    require(bool(policies), f"methods: got none, wanted some, such as {EXAMPLE}")
    return {name(found): found for found in policies}


def policy(text: str) -> Policy:
    """The policy of one method; `dense` is the one without parts."""
    if text == DENSE:
        return Policy()
    parts: dict[str, Any] = {}
    for spec in text.split(" + "):
        known = [part for part, names in METHODS.items() if spec.partition(":")[0] in names]
        names = ", ".join([DENSE, *(name for part in METHODS.values() for name in part)])
        require(bool(known), f"methods: got {spec.partition(':')[0]!r}, wanted one of {names}")
        part = known[0]
        require(part not in parts, f"methods: got two methods of one kind ({part}) in {text!r}, wanted one")
        parts[part] = spec
    return Policy(**parts)


def name(policy: Policy) -> str:
    """How a policy is spelled."""
    return " + ".join(policy.specs.values()) or DENSE


def effective(policy: Policy, length: int, total: int) -> Policy:
    """The policy without the parts that change nothing in a sequence of `total` tokens whose prompt has `length`.

    An eviction with room for all of them forgets none, and a selection with a budget for all of them reads all.
    """
    if policy.overrides:
        return policy
    resolved = policy.resolve(length)
    idle: dict[str, Any] = {
        part: None
        for part in ("select", "evict")
        if (method := getattr(resolved, part)) is not None and _reach(method.budget, total) >= total
    }
    return replace(policy, **idle)


def _reach(budget: int | float, total: int) -> float:
    """Tokens that a budget covers; a fraction that is still one is of a past that grows."""
    return budget * total if isinstance(budget, float) else budget

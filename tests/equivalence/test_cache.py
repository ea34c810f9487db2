"""A cache's life, whatever happens in it: the same as the reference's, column for column and bit for bit.

`thresher.verify.life` holds both caches and takes every step on both; here hypothesis decides what happens next.
"""

from __future__ import annotations

from types import ModuleType

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from thresher.verify.life import STEPS, Life


def test_a_life_in_any_order(backend: ModuleType) -> None:
    class Living(RuleBasedStateMachine):
        @initialize(
            dtype=st.sampled_from(["float32", "float16", "bfloat16"]),
            group=st.sampled_from([1, 2, 4]),
            kv_heads=st.integers(1, 3),
            dim=st.sampled_from([6, 16, 34, 64]),
        )
        def begin(self, dtype: str, group: int, kv_heads: int, dim: int) -> None:
            self.life = Life(backend, dtype, group, kv_heads, dim)

        @rule(step=st.sampled_from(STEPS), number=st.integers(0, 2**31))
        def happen(self, step: str, number: int) -> None:
            getattr(self.life, step)(number)

        @invariant()
        def both_hold_the_same(self) -> None:
            if hasattr(self, "life"):
                self.life.same()

    run_state_machine_as_test(Living, settings=settings(max_examples=60, stateful_step_count=40, deadline=None))  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("step", STEPS)
def test_each_step_on_an_empty_cache_and_on_one_that_grew_and_shrank(backend: ModuleType, step: str) -> None:
    for number in range(4):
        for before in ([], [("append", n) for n in range(9)], [("append", 3), ("keep", 1), ("copy", 1), ("append", 7)]):
            Life(backend, "float32", 2, 2, 16).live(
                [*before, (step, number), ("append", 5), (step, number), ("score", 1)]
            )

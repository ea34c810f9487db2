"""The toy model: the shape that is asked for, weights of the size that is promised, the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest

import reference
from reference import toy_model


def run(model: reference.Model) -> np.ndarray:
    return reference.prefill(model, reference.new_state(model), [3, 1, 4, 1, 5], every=True)


def test_the_same_seed_gives_the_same_model() -> None:
    assert toy_model().backend is reference
    assert np.array_equal(run(toy_model(seed=1)), run(toy_model(seed=1)))
    assert not np.allclose(run(toy_model(seed=1)), run(toy_model(seed=2)))


def test_fields_change_the_shape_and_what_cannot_be_is_refused() -> None:
    assert run(toy_model(layers=3, heads=6, kv_heads=3, vocab_size=17, biases=True, dtype="float32")).shape == (5, 17)
    with pytest.raises(ValueError, match="heads: got 5"):
        toy_model(heads=5)


def test_a_linear_map_keeps_the_size_of_its_input() -> None:
    model = toy_model(width=256, heads=32)
    x = np.random.default_rng(1).standard_normal((100, 256))  # not the seed of the weights, or they would be alike
    for w in (model.weights.layers[0].w_q, model.weights.layers[1].w_gate):
        assert 0.8 < (x @ w.T).std() < 1.2

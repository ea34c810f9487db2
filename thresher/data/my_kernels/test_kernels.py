"""The kernels of this folder mean what the reference means: run it with `python -m pytest`."""

import kernels
import numpy as np

import reference
from thresher.verify import check_function

OWN = ("rms_norm",)  # add a kernel's name here when you write it


def test_each_kernel_of_our_own():
    """On fifty drawn cases each, as `thresher verify` draws them."""
    for name in OWN:
        result = check_function(kernels, name)
        assert not result.failure, result.failure


def test_a_whole_model():
    """One forward pass over these kernels and one over the reference."""
    ids = list(range(40))
    answers = []
    for backend in (kernels, reference):
        model = reference.toy_model(dtype="float32", backend=backend)
        answers.append(reference.prefill(model, reference.new_state(model), ids, every=True))
    np.testing.assert_allclose(*answers, rtol=1e-4, atol=1e-5)

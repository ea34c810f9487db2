"""The checker against modules that are wrong on purpose: what it finds, and how it tells."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import reference
from thresher.verify import Result, check_function, replay, table, verify
from thresher.verify.checker import Checker
from thresher.verify.drawing import Case
from thresher.verify.files import find_module, load_case, save_case
from thresher.verify.layouts import LAYOUTS, laid_out, layout_of, place


def narrow(*arguments: Any, **options: Any) -> np.ndarray:
    return reference.linear(*arguments, **options).astype(np.float16)


def wrong_window(*arguments: Any, window: int | None = None, **options: Any) -> np.ndarray:
    """Off by one: a key exactly `window` back is seen."""
    return reference.attention(*arguments, window=window and window + 1, **options)


def unscaled_key(q: Any, k: Any, n_queries: int) -> np.ndarray:
    return reference.key_scores(q, k, n_queries, similarity="dot")


def higher_index_wins(scores: np.ndarray, budget: int, **kept: Any) -> np.ndarray:
    if kept:
        return reference.keep_top(scores, budget, **kept)
    return np.sort(scores.shape[1] - 1 - reference.keep_top(scores[:, ::-1].copy(), budget), axis=1)


def most_similar_first(q: np.ndarray, n_queries: int) -> np.ndarray:
    return reference.select_queries(q, n_queries, queries="most_similar")


def other_keys(q: Any, k: Any, budget: int, n_queries: int, **kept: Any) -> np.ndarray:
    return reference.keep_top(-reference.key_scores(q, k, n_queries), budget, **kept)


def one_small_row(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """Right but for a row that is too small for a norm over the whole answer to see."""
    y = reference.linear(x, weight, bias)
    sizes = np.linalg.norm(y, axis=1)
    y[sizes < 1e-3 * np.linalg.norm(sizes)] *= 1.001
    return y


def smallest_weight(*arguments: Any, **options: Any) -> np.ndarray:
    """The smallest weight, which decides what is evicted, is wrong by a half."""
    mass = reference.attention_mass(*arguments, **options)
    mass.flat[np.where(mass > 0, mass, np.inf).argmin()] *= 1.5
    return mass


def spreading_nan(x: np.ndarray, weight: np.ndarray, *, eps: float) -> np.ndarray:
    return reference.rms_norm(x, weight, eps=eps) + 0 * x.sum(axis=-2, keepdims=True)


def tidy(x: np.ndarray, weight: np.ndarray, *, eps: float) -> np.ndarray:
    """Leaves its argument normalised."""
    y = reference.rms_norm(x, weight, eps=eps)
    if x.flags.writeable:
        x[...] = y
    return y


def careless_of_gaps(x: np.ndarray, weight: np.ndarray, *, eps: float) -> np.ndarray:
    """Writes beside its argument's rows, where they lie apart in memory."""
    if x.base is not None and x.flags.writeable and not x.flags.c_contiguous and x.strides[-1] == x.itemsize:
        np.ndarray((1,), x.dtype, x.base, x.strides[-2] // 2 + 64)[...] = 1
    return reference.rms_norm(x, weight, eps=eps)


def undecided() -> Callable[..., np.ndarray]:
    """The same call gives another last bit every time."""
    turn = itertools.count()

    def rms_norm(x: np.ndarray, weight: np.ndarray, *, eps: float) -> np.ndarray:
        y = reference.rms_norm(x, weight, eps=eps).astype(np.float32)
        return y if next(turn) % 2 else np.nextafter(y, np.float32(9))

    return rms_norm


def moody() -> Callable[..., np.ndarray]:
    """Wrong for two calls in a row, now and then."""
    turn = itertools.count()
    return lambda *arguments, eps: reference.rms_norm(*arguments, eps=eps) * (2 if next(turn) // 2 % 5 == 4 else 1)


def raising(*arguments: Any, **options: Any) -> np.ndarray:
    raise RuntimeError("no such device")


@pytest.mark.parametrize(
    ("name", "wrong", "reason"),
    [
        ("attention", wrong_window, "relative error|wanted nothing but zeros"),
        ("key_scores", unscaled_key, "relative error|NaN or infinity"),
        ("keep_top", higher_index_wins, "not equal at"),
        ("select_queries", most_similar_first, "more similar than a later one"),
        ("caote_scores", lambda *a, **o: reference.caote_scores(*a, **o) ** 2, "of one element"),
        ("linear", lambda *a: reference.linear(*a) * 1.01, "relative error"),
        ("select_keys", other_keys, "not keep_top of the module's own scores"),
        ("linear", one_small_row, r"^row \(\d+,\): relative error"),
        ("attention_mass", smallest_weight, "of one element"),
        ("rms_norm", spreading_nan, "got NaN or infinity at"),
        ("rms_norm", tidy, "wrote into its argument x"),
        ("rms_norm", careless_of_gaps, "wrote into its argument x"),
        ("rms_norm", undecided(), "two calls on the same case differ at"),
        ("rms_norm", moody(), "two calls on the same case differ: the second time all was well"),
        ("rms_norm", raising, r"raised RuntimeError: no such device \(test_checker.py, line \d+\)"),
        ("rms_norm", lambda *a, eps: None, "returned None, wanted an array"),
        ("rms_norm", lambda *a, eps: reference.rms_norm(*a, eps=eps).tolist(), "returned a list, wanted an array"),
        ("rms_norm", lambda *a, eps: reference.rms_norm(*a, eps=eps)[None], "got shape .*, wanted"),
        ("rms_norm", lambda *a, eps: reference.rms_norm(*a, eps=eps).astype(np.float16), "got dtype float16, wanted"),
        ("keep_top", lambda *a, **o: reference.keep_top(*a, **o).astype(np.int32), "got dtype int32, wanted int64"),
        ("linear_each", lambda x, maps: reference.linear_each(x, maps)[:-1], r"returned 0 arrays, wanted 1"),
        ("linear_each", lambda x, maps: [None for _ in maps], "returned None, wanted a list of arrays"),
    ],
)
def test_a_wrong_function_is_one_failure_with_its_case(name: str, wrong: Callable[..., Any], reason: str) -> None:
    result = check_function(SimpleNamespace(**{"key_scores": reference.key_scores, name: wrong}), name, examples=2000)
    assert re.search(reason, result.failure), result.failure  # found as a rule among the first hundred
    _, second = result.failure.split("\n")
    assert second.startswith("  case: dtype=")
    assert "seed=" in second
    assert result.case is not None


def test_a_cache_that_forgets_to_forget_is_found() -> None:
    class Layer(reference.LayerCache):
        def keep(self, columns: np.ndarray) -> None:
            received, self.received = self.received, None
            super().keep(columns)
            self.received = received

    def restore_cache(layers: list[dict[str, np.ndarray]]) -> reference.KVCache:
        return reference.KVCache([Layer(**arrays) for arrays in layers])

    def new_cache(*arguments: Any) -> reference.KVCache:
        return restore_cache([layer.arrays() for layer in reference.new_cache(*arguments).layers])

    module = SimpleNamespace(**{**vars(reference), "new_cache": new_cache, "restore_cache": restore_cache})
    result = check_function(module, "new_cache", examples=500)
    assert re.search(r"after step \d+, (keep|keep_newest|take_back)\(\d+\), of \d+ columns: ", result.failure), (
        result.failure
    )
    assert "('receive', " in result.failure


def test_only_what_the_reference_computes_from_nan_is_let_off() -> None:
    x = np.ones((3, 8), np.float32)
    x[1] = np.nan
    checker, case = Checker(reference), Case({}, (x, np.ones(8, np.float32)), {"eps": 1e-6})
    checker.check("rms_norm", case)
    checker = Checker(SimpleNamespace(rms_norm=lambda x, w, *, eps: np.full(x.shape, np.nan, np.float32)))
    with pytest.raises(AssertionError, match=r"got NaN or infinity at \(0, 0\)"):
        checker.check("rms_norm", case)


def test_verify_checks_what_a_module_offers_and_counts() -> None:
    told: list[Result] = []
    results = verify(SimpleNamespace(keep_top=reference.keep_top), examples=5, progress=told.append)
    assert [r.name for r in results] == ["keep_top"]
    assert results == told
    assert table(results) == [("keep_top", str(results[0].examples), "exact", "ok")]
    rounds = verify(SimpleNamespace(rotate=reference.rotate, embed=reference.embed), examples=5, seconds=1e-9)
    assert [r.examples for r in rounds] == [5, 0]
    (broken,) = verify(SimpleNamespace(embed=raising), examples=5, seconds=600)
    assert broken.failure  # there is nothing left to check, and no need to wait for the end


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.uint8])
@pytest.mark.parametrize("shape", [(3, 4, 5), (4, 5), (5,), (2, 0, 5)])
def test_layouts_keep_their_values_and_can_be_made_again(layout: str, dtype: type, shape: tuple[int, ...]) -> None:
    values = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    laid = laid_out(values.copy(), layout)
    if layout == "one row" and len(shape) > 1:
        values = np.broadcast_to(values[..., :1, :], shape)
    if layout == "one head" and len(shape) > 2:
        values = np.broadcast_to(values[:1], shape)
    np.testing.assert_array_equal(laid, values)
    again, _ = place(laid, layout_of(laid))
    assert layout_of(again) == layout_of(laid)
    np.testing.assert_array_equal(again, values)


def test_layouts_are_what_they_are_called() -> None:
    laid = {name: laid_out(np.arange(60, dtype=np.float32).reshape(3, 4, 5), name) for name in LAYOUTS}
    assert laid["contiguous"].flags.c_contiguous
    assert laid["contiguous"].flags.aligned
    assert not laid["unaligned"].flags.aligned
    assert not laid["read-only"].flags.writeable
    strides = {name: x.strides for name, x in laid.items()}
    assert strides["every other row"] == (160, 40, 4)
    assert strides["transposed"] == (20, 60, 4)
    assert strides["strided"] == (240, 60, 12)
    assert strides["reversed"] == (80, -20, 4)
    assert strides["one row"] == (80, 0, 4)
    assert strides["one head"] == (0, 20, 4)


@pytest.mark.parametrize(
    "name", ["attention", "predictor_scores", "sparse_ffn", "linear_each", "new_cache", "last_queries"]
)
def test_a_saved_case_is_the_same_case_and_fails_again(tmp_path: Path, name: str) -> None:
    module = SimpleNamespace(**{**vars(reference), name: raising})
    result = check_function(module, name, examples=20, seed=3)
    assert result.case is not None
    path = tmp_path / "made" / f"{name}.npz"
    save_case(path, name, result.case)
    function, case = load_case(path)
    assert function == name
    assert repr(case.arguments) == repr(result.case.arguments)
    (again,) = replay(module, path)
    assert again.failure.split("\n")[0] == result.failure.split("\n")[0]
    assert f"drawn from {result.case!r}" in again.failure
    (well,) = replay(reference, path)
    assert not well.failure
    with pytest.raises(ValueError, match=f"wanted one with {name}"):
        replay(SimpleNamespace(), path)


def test_a_saved_case_keeps_values_strides_and_alignment(tmp_path: Path) -> None:
    weight = laid_out(np.arange(6).reshape(2, 3).astype(ml_dtypes.bfloat16), "unaligned")
    x = laid_out(np.ones((4, 3), np.float32), "one row")
    path = tmp_path / "case.npz"
    save_case(path, "linear", Case({"seed": 1}, (x, weight, None)))
    _, case = load_case(path)
    assert case.arguments[2] is None
    for got, wanted in zip(case.arguments, (x, weight), strict=False):
        assert got.dtype == wanted.dtype
        assert layout_of(got) == layout_of(wanted)
        np.testing.assert_array_equal(got, wanted)
    with np.load(path) as file:  # as anyone can look at it
        assert set(file) == {"x", "weight", "case.json"}


@pytest.mark.parametrize("content", [b"", b"not a case", "other arrays"])
def test_a_file_that_holds_no_case_is_named(tmp_path: Path, content: bytes | str) -> None:
    path = tmp_path / "case.npz"
    if isinstance(content, str):
        np.savez(path, x=np.ones(3))
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"case\.npz: wanted a case that `thresher verify --save` wrote: "):
        load_case(path)
    with pytest.raises(ValueError, match=r"missing\.npz: wanted a case"):
        load_case(tmp_path / "missing.npz")


def test_modules_are_found_by_name_and_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_module("reference") is reference
    assert find_module("tests.equivalence.test_checker").__name__ == "tests.equivalence.test_checker"
    (tmp_path / "beside.py").write_text("SCALE = 3\n")
    (tmp_path / "kernels.py").write_text("from beside import SCALE\n")
    monkeypatch.setattr("sys.path", ["."])
    assert find_module(str(tmp_path / "kernels.py")).SCALE == 3
    (tmp_path / "broken.py").write_text("import no_such_module\n")
    for wrong, told in (
        ("no_such_kernels", "No module named 'no_such_kernels'"),
        ("no/such/file.py", "no such file"),
        (str(tmp_path / "broken.py"), "No module named 'no_such_module'"),
    ):
        with pytest.raises(ValueError, match=f"backend: got .*, wanted one of reference, cpu, .*{told}"):
            find_module(wrong)
    with pytest.raises(ValueError, match="backend: got math, wanted one with some of: attention, "):
        verify(find_module("math"))

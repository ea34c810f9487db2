"""The arrays that the forward pass reads, looked up under the names of a checkpoint's family.

Every tensor is checked for its shape and for NaN and infinity, and cast to the dtype asked for; one that is stored so
already stays a view of its file. Norms and biases are small and enter sums directly, and a router decides by small
differences, so they are never narrower than float32. A tensor that nobody reads is refused: it is part of another model
than the config tells of.

Where the config says that output and embedding are one, the file still decides, as in transformers: it may hold the
two under one name or the other, or an output of its own that differs.
"""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np

from loaders.eight_bits import quantized
from loaders.family import EMBEDDING, FINAL_NORM, Family
from loaders.finite import check_finite
from loaders.settings import Settings, shown
from loaders.source import Source
from reference import Int8, LayerWeights, ModelConfig, Weights
from reference.checks import is_float, require
from reference.experts import Expert, StoredExperts
from reference.int8 import GROUP, Matrix
from reference.weights import EXPERTS, FFN, layer_shapes, model_shapes

WIDE = ("router",)  # matrices that are never narrower than float32
CACHE_OF_INT8 = np.dtype(ml_dtypes.bfloat16)  # (chosen) as exact as such weights need, and of float32's range


class WeightReader:
    """Reads one checkpoint. `names` maps each weight, "embedding" or "3.w_q", to its tensor as the file calls it."""

    def __init__(self, source: Source, family: Family, settings: Settings, config: ModelConfig) -> None:
        self._source, self._family, self._config = source, family, config
        self._stored = frozenset(source.names())
        body, output = family.body(self._stored, str(source.path))
        names = {"embedding": body + EMBEDDING, "output": output, "final_norm": body + FINAL_NORM}
        self._shapes = model_shapes(config)
        self._enough_tensors()
        for n in range(config.layers):
            self._shapes |= {f"{n}.{weight}": shape for weight, shape in layer_shapes(config, n).items()}
            own = family.tensors_of(settings, config, n)
            names |= {f"{n}.{weight}": f"{body}layers.{n}.{tensor}" for weight, tensor in own.items()}
        self._made = family.made(settings)
        self.names = {weight: self._spelling(tensor) for weight, tensor in names.items()}
        optional = [weight for weight in self.names if _kind(weight) in family.may_lack]
        for weight in optional:
            if self.names[weight] not in self._stored:
                del self.names[weight]
        if config.tied:
            for one, other in (("embedding", "output"), ("output", "embedding")):
                if self.names[one] not in self._stored:
                    self.names[one] = self.names[other]
        self._refuse_others()

    def _enough_tensors(self) -> None:
        """A config may tell of so many experts that even their names would not fit into memory."""
        mixture = self._config.mixture
        wanted = 0 if mixture is None else 3 * mixture.experts * sum(mixture.layers)
        require(
            wanted <= len(self._stored),
            f"{self._source.path}: got {len(self._stored)} tensors, wanted at least {wanted} for the experts that the "
            "config tells of",
        )

    def read_all(self, dtype: np.dtype, *, stored_experts: bool = False) -> Weights:
        """All weights, matrices as `dtype`, int8 meaning `Int8`; a tied output is the embedding itself. Raises
        ValueError naming the file and the tensor that is missing, of another shape, not a float, or not finite.

        stored_experts: a mixture's are `StoredExperts`, whose numbers are checked when they are read.
        """
        shared = self._config.tied and self._equal(self.names["embedding"], self.names["output"])
        left_out = {"output"} if shared else set()
        stored: list[StoredExperts | None] = [None] * self._config.layers
        if stored_experts:
            left_out.update(filter(_is_expert, self.names))
            mixed = [self._config.is_mixture(n) for n in range(self._config.layers)]
            stored = [self._stored_experts(n, dtype) if mixture else None for n, mixture in enumerate(mixed)]
        arrays: dict[str, Matrix] = {}
        for weights in self._by_tensor(left_out):
            arrays |= zip(weights, self._read(weights, dtype), strict=True)
        layers: list[dict[str, Matrix]] = [{} for _ in range(self._config.layers)]
        for weight, array in arrays.items():
            layer, _, name = weight.partition(".")
            if name:
                layers[int(layer)][name] = array
        return Weights(
            embedding=arrays["embedding"],
            layers=tuple(map(LayerWeights.of, layers, stored)),
            final_norm=arrays["final_norm"],
            output=arrays.get("output", arrays["embedding"]),
            cache_dtype=CACHE_OF_INT8 if dtype == np.int8 else None,
        )

    def _spelling(self, name: str) -> str:
        """The name that the file has this tensor under: transformers passes over a "model." too many or too few."""
        others = (name.removeprefix("model."), "model." + name)
        return next((spelling for spelling in (name, *others) if spelling in self._stored), name)

    def _equal(self, one: str, other: str) -> bool:
        """Whether two tensors of the file are the same."""
        return one == other or np.array_equal(self._source.tensor(one), self._source.tensor(other))

    def _refuse_others(self) -> None:
        """A tensor that is not read means that the config tells of another model. One of a single number or of none is
        a counter or a flag."""
        for name in sorted(self._stored - set(self.names.values())):
            require(
                self._family.has_no_use_for(name) or math.prod(self._source.shape(name)) <= 1,
                f"{self._source.file_of(name)}: tensor {shown(name)}: got a weight that {self._family.model_type} with "
                f"{self._config.layers} layers and this config does not have, wanted it absent",
            )

    def _stored_experts(self, layer: int, dtype: np.dtype) -> StoredExperts:
        """The experts of a layer, each read when it is asked for. ValueError for a tensor that is missing or of another
        shape."""
        mixture = self._config.mixture
        assert mixture is not None
        shapes = {matrix: self._shapes[f"{layer}.{EXPERTS}0.{matrix}"] for matrix in FFN}
        for n in range(mixture.experts):
            for matrix, shape in shapes.items():
                self._check_shape(f"{layer}.{EXPERTS}{n}.{matrix}", shape)

        def read(n: int) -> Expert:
            self._source.let_go()  # of those that were read before
            return Expert(**{m: self._tensor(f"{layer}.{EXPERTS}{n}.{m}", shapes[m], dtype) for m in FFN})

        alike = Expert(**{matrix: _of_shape(shape, dtype) for matrix, shape in shapes.items()})
        return StoredExperts(mixture.experts, alike, read)

    def _by_tensor(self, left_out: set[str]) -> list[list[str]]:
        """The weights that are read together: those of one tensor, in the order in which they are its rows."""
        found: dict[str, list[str]] = {}
        for weight, name in self.names.items():
            if weight not in left_out:
                found.setdefault(weight if _kind(weight) in self._made else name, []).append(weight)
        return list(found.values())

    def _read(self, weights: list[str], dtype: np.dtype) -> list[Matrix]:
        """The weights of one tensor: its rows, as many for each as the config says."""
        shapes = [self._shapes[weight] for weight in weights]
        whole = self._tensor(weights[0], (sum(shape[0] for shape in shapes), *shapes[0][1:]), dtype)
        if len(shapes) == 1:
            return [whole]
        ends = np.cumsum([shape[0] for shape in shapes])
        spans = [slice(end - shape[0], end) for end, shape in zip(ends, shapes, strict=True)]
        return [whole.rows(span) if isinstance(whole, Int8) else whole[span] for span in spans]

    def _tensor(self, weight: str, shape: tuple[int, ...], dtype: np.dtype) -> Matrix:
        """The tensor that this weight is of: checked, offset if it is a norm, and cast or quantised."""
        name, kind = self.names[weight], _kind(weight)
        narrow = kind not in WIDE and len(shape) > 1
        where, made = self._where(name), self._made.get(kind)
        as_it_stands = self._source.eight_bits(name) if dtype == np.int8 and narrow and made is None else None
        stored = self._source.tensor(name) if as_it_stands is None else as_it_stands
        _require_shape(where, stored.shape, shape if made is None else made.shape)
        if made is not None:
            stored = made.take(self._source.tensor(name))
        require(is_float(stored.dtype), f"{where}: got dtype {stored.dtype}, wanted a floating-point type")
        if isinstance(stored, Int8):
            return stored
        if dtype == np.int8 and narrow:
            small = quantized(where, stored)
            self._source.let_go()  # of a file that is larger than what was made of it
            return small
        with np.errstate(over="ignore"):  # an overflow is reported below
            cast = stored.astype(dtype if narrow else np.promote_types(dtype, np.float32), copy=False)
        if kind.endswith("norm"):
            cast = cast + cast.dtype.type(self._family.norm_offset) if self._family.norm_offset else cast
        check_finite(where, stored, cast)
        return cast

    def _check_shape(self, weight: str, wanted: tuple[int, ...]) -> None:
        """What `_tensor` finds without reading."""
        name = self.names[weight]
        got = self._source.shape(name) if name in self._stored else self._source.tensor(name).shape  # which says no
        _require_shape(self._where(name), got, wanted)

    def _where(self, name: str) -> str:
        return f"{self._source.file_of(name)}: tensor {shown(name)}"


def _require_shape(where: str, got: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    require(got == wanted, f"{where}: got shape {got}, wanted {wanted} as the config says")


def _of_shape(shape: tuple[int, ...], dtype: np.dtype) -> Matrix:
    """A matrix of zeros that takes no memory."""
    zeros = np.broadcast_to(np.zeros((), dtype), shape)
    groups = shape[0], -(-shape[1] // GROUP)
    return Int8(zeros, np.broadcast_to(np.float16(0), groups)) if dtype == np.int8 else zeros


def _is_expert(weight: str) -> bool:
    return weight.partition(".")[2].startswith(EXPERTS)


def _kind(weight: str) -> str:
    """What a weight is, in whatever layer and expert."""
    return weight.rpartition(".")[2]

"""The arrays that the forward pass reads, looked up under the names of a checkpoint's family.

Every tensor is checked for its shape and for NaN and infinity, and cast to the dtype asked for; one that is stored so
already stays a view of its file. Norms and biases are small and enter sums directly, so they are never narrower than
float32.
"""

from __future__ import annotations

import numpy as np

from loaders.family import Family
from loaders.finite import check_finite
from loaders.settings import Settings
from loaders.source import Source
from reference import LayerWeights, ModelConfig, Weights
from reference.checks import is_float, require
from reference.weights import layer_shapes, model_shapes


class WeightReader:
    """Reads one checkpoint. `names` maps each weight, "embedding" or "3.w_q", to its tensor."""

    def __init__(self, source: Source, family: Family, settings: Settings, config: ModelConfig) -> None:
        self._source, self._family, self._config = source, family, config
        body, output = family.body(frozenset(source.names()), str(source.path))
        self.names = {"embedding": body + "embed_tokens.weight", "final_norm": body + "norm.weight"}
        if not config.tied:
            self.names["output"] = output
        for weight, tensor in family.layer_names(settings).items():
            self.names |= {f"{n}.{weight}": f"{body}layers.{n}.{tensor}" for n in range(config.layers)}
        self._refuse_others(body + "layers.")

    def read_all(self, dtype: np.dtype) -> Weights:
        """All weights, matrices as `dtype`; a tied output is the embedding itself. Raises ValueError naming the file
        and the tensor that is missing, of another shape, not a float, or not finite."""
        arrays = {weight: self._read(weight, dtype) for weight in self.names}
        layers: list[dict[str, np.ndarray]] = [{} for _ in range(self._config.layers)]
        for weight, array in arrays.items():
            layer, _, name = weight.rpartition(".")
            if layer:
                layers[int(layer)][name] = array
        return Weights(
            embedding=arrays["embedding"],
            layers=tuple(LayerWeights(**layer) for layer in layers),
            final_norm=arrays["final_norm"],
            output=arrays.get("output", arrays["embedding"]),
        )

    def _refuse_others(self, layers: str) -> None:
        """A tensor in a layer that the family does not use means that the config tells of another model."""
        known = set(self.names.values())
        for name in self._source.names():
            require(
                not name.startswith(layers) or name in known or name.endswith("rotary_emb.inv_freq"),
                f"{self._source.file_of(name)}: tensor {name!r}: got a weight that {self._family.model_type} with "
                f"{self._config.layers} layers and this config does not have, wanted it absent",
            )

    def _read(self, weight: str, dtype: np.dtype) -> np.ndarray:
        """The weight of that name: checked, offset if it is a norm, and cast."""
        name, kind = self.names[weight], weight.rpartition(".")[2]
        shape = (layer_shapes(self._config) | model_shapes(self._config))[kind]
        stored = self._source.tensor(name)
        where = f"{self._source.file_of(name)}: tensor {name!r}"
        require(stored.shape == shape, f"{where}: got shape {stored.shape}, wanted {shape} as the config says")
        require(is_float(stored.dtype), f"{where}: got dtype {stored.dtype}, wanted a floating-point type")
        with np.errstate(over="ignore"):  # an overflow is reported below
            cast = stored.astype(np.promote_types(dtype, np.float32) if len(shape) == 1 else dtype, copy=False)
        if kind.endswith("norm"):
            cast = cast + cast.dtype.type(self._family.norm_offset) if self._family.norm_offset else cast
        check_finite(where, stored, cast)
        return cast

"""A checkpoint whose matrices are 8-bit floating-point numbers with scales, as one more `Source`.

DeepSeek-V3's files have a matrix as float8 of the kind E4M3, and beside it a scale for each block of rows and columns:

    W[i, j] = weight[i, j] · weight_scale_inv[⌊i / 128⌋, ⌊j / 128⌋]

config.json tells of it, and how large a block is: {"quantization_config": {"quant_method": "fp8", "weight_block_size":
[128, 128], …}}. Where that is null, a matrix has one scale. Matrices are multiplied out, in float32, when they are
asked for. Programs that compute in 8 bits round activations too; that is theirs to do and no part of the model.

Sources: DeepSeek-V3 (arXiv 2412.19437), section 3.3, and the code that was released with it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from loaders.settings import Settings, shown
from loaders.source import Files
from reference import Int8
from reference.checks import require

KEY, SCALES = "quantization_config", "_scale_inv"
E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)


def multiplied_out(base: Files) -> Files:
    """The checkpoint with plain matrices: itself, unless its config says that they have scales."""
    told = base.config.get(KEY)
    return Scaled(base) if isinstance(told, dict) and told.get("quant_method") == "fp8" else base


class Scaled:
    """A checkpoint some of whose matrices are another's times their scales. ValueError for blocks that cannot be, and
    for scales that are missing or do not fit their matrix."""

    def __init__(self, base: Files) -> None:
        self.path = base.path
        self.config: dict[str, Any] = {key: value for key, value in base.config.items() if key != KEY}
        settings = Settings(base.config, str(base.path / "config.json")).part(KEY)
        block = settings.values.get("weight_block_size", [128, 128])
        good = isinstance(block, list) and len(block) == 2 and all(type(n) is int and n >= 1 for n in block)
        settings.require("weight_block_size", good or block is None, "two whole numbers of at least 1, or null")
        self._base, self._block = base, block
        self._scales = {name for name in base.names() if name.endswith(SCALES)}

    def names(self) -> list[str]:
        """The base's, less the scales."""
        return [name for name in self._base.names() if name not in self._scales]

    def shape(self, name: str) -> tuple[int, ...]:
        """The base's."""
        return self._base.shape(name)

    def tensor(self, name: str, part: int | None = None) -> np.ndarray:
        """The base's tensor, or float32 where that has scales."""
        x = self._base.tensor(name, part)
        if x.dtype != E4M3:
            return x
        where = f"{self.file_of(name)}: tensor {shown(name)}"
        require(name + SCALES in self._scales, f"{where}: got no scales, wanted them as {shown(name + SCALES)}")
        require(x.ndim == 2, f"{where}: got shape {x.shape}, wanted a matrix")
        scales = self._base.tensor(name + SCALES, part).astype(np.float32)
        rows, columns = self._block or x.shape
        wanted = -(-len(x) // rows), -(-x.shape[1] // columns)
        fits = scales.shape == wanted or (scales.size == 1 and wanted == (1, 1))
        require(fits, f"{where}: got scales of shape {scales.shape}, wanted {wanted} for {x.shape}")
        y = np.empty(x.shape, np.float32)
        for n, of_columns in enumerate(scales.reshape(wanted)):
            some = slice(n * rows, (n + 1) * rows)
            np.multiply(x[some], np.repeat(of_columns, columns)[: x.shape[1]], out=y[some])
        return y

    def eight_bits(self, name: str, part: int | None = None) -> Int8 | None:
        """None: these are other 8 bits."""
        return None

    def let_go(self) -> None:
        """The base's."""
        self._base.let_go()

    def file_of(self, name: str) -> Path:
        """The base's."""
        return self._base.file_of(name)

    def text(self, name: str) -> str | None:
        """The base's."""
        return self._base.text(name)

    def texts_in(self, folder: str, suffix: str) -> list[str]:
        """The base's."""
        return self._base.texts_in(folder, suffix)

"""A GGUF file written out once as a Hugging Face directory, which any other tool reads too.

The directory holds config.json, model.safetensors, tokenizer.json, tokenizer_config.json (with the chat template) and
generation_config.json. It is written beside its place under another name and moved there when it is whole.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from loaders.experts import apart
from loaders.gguf.source import GGUF
from loaders.source import Source
from reference.checks import require

DTYPES = {
    "float32": ("F32", np.dtype(np.float32)),
    "float16": ("F16", np.dtype(np.float16)),
    "bfloat16": ("BF16", np.dtype(ml_dtypes.bfloat16)),
}
TEXTS = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")


def convert(
    gguf: str | os.PathLike[str],
    directory: str | os.PathLike[str],
    dtype: str = "float32",
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the model in a GGUF file as a Hugging Face directory with weights as `dtype`, and return its path.

    progress: called with the bytes written and the bytes in all after each tensor.
    Raises ValueError for another dtype or a file that is not a GGUF that `GGUF` reads, FileExistsError where there is
    something at `directory` already. Nothing is left behind by a conversion that fails.
    """
    require(dtype in DTYPES, f"dtype: got {dtype!r}, wanted one of {', '.join(DTYPES)}")
    target, source = Path(directory), apart(GGUF(Path(gguf)))
    if target.exists():
        raise FileExistsError(f"{target}: got something there already, wanted a new directory")
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        _write_tensors(staging / "model.safetensors", source, dtype, progress)
        texts: dict[str, str | None] = {name: source.text(name) for name in TEXTS}
        texts["config.json"] = json.dumps(source.config | {"dtype": dtype}, indent=2)
        for name, text in texts.items():
            if text is not None:
                (staging / name).write_text(text, encoding="utf-8")
        staging.chmod(0o755)  # mkdtemp's are private
        staging.rename(target)
    except BaseException:
        shutil.rmtree(staging)
        raise
    return target


def _write_tensors(path: Path, source: Source, dtype: str, progress: Callable[[int, int], None] | None) -> None:
    """A safetensors file, one tensor in memory at a time."""
    code, stored = DTYPES[dtype]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in source.names():
        start, end = end, end + int(np.prod(source.shape(name))) * stored.itemsize
        header[name] = {"dtype": code, "shape": source.shape(name), "data_offsets": [start, end]}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for name in source.names():
            file.write(np.ascontiguousarray(source.tensor(name).astype(stored)).tobytes())
            if progress is not None:
                progress(header[name]["data_offsets"][1], end)

"""Traces with files: what `llm.prefill(prompt, policy, trace=True).trace` holds, put away for a plot."""

from __future__ import annotations

import os
from pathlib import Path

from loaders.tensors import TensorFile
from reference import Trace
from thresher.state import write_atomically

FORMAT = "thresher-trace-1"


def save_trace(trace: Trace, path: str | os.PathLike[str]) -> None:
    """Write a trace as safetensors. Whatever stood at `path` stays until the new file is complete."""
    from safetensors.numpy import save_file

    write_atomically(path, lambda temporary: save_file(trace.to_arrays(), temporary, {"format": FORMAT}))


def load_trace(path: str | os.PathLike[str]) -> Trace:
    """Read what `save_trace` wrote. ValueError names the file where it is not a trace or is damaged."""
    arrays = TensorFile(Path(path)).arrays(FORMAT)
    try:
        return Trace.from_arrays(arrays)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None

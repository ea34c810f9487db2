"""GGUF files: read as a checkpoint like any other, or converted once to a Hugging Face directory."""

from loaders.gguf.convert import convert
from loaders.gguf.source import GGUF

__all__ = ["GGUF", "convert"]

"""From files on disk to arrays in memory: checkpoints, configs, tokenizers, GGUF."""

from loaders.checkpoint import Checkpoint, load_checkpoint

__all__ = ["Checkpoint", "load_checkpoint"]

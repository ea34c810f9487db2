"""From files on disk to arrays in memory: checkpoints, configs, tokenizers, GGUF."""

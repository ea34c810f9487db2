"""qwen3: Qwen2 without its biases, with an RMSNorm on every head's queries and keys before they are rotated."""

from loaders.families.qwen2 import DEFAULTS, differences
from loaders.family import LLAMA_NAMES, QK_NORMS, Family

FAMILIES = (Family("qwen3", DEFAULTS | {"head_dim": 128}, differences, {**LLAMA_NAMES, **QK_NORMS}),)

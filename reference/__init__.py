"""What everything in thresher means, in plain NumPy.

Read in this order it is a textbook: `config`, `layers`, `attention`, `cache`, `topk`, then the methods, one file each,
and `transformer`, the one forward pass that all backends share. The names below are the kernel contract: `accel.cpu`
and `accel.cuda` offer the same functions under the same names.
"""

from reference.attention import attention, attention_mass
from reference.cache import KVCache, LayerCache, new_cache, restore_cache
from reference.config import ModelConfig, Rope
from reference.eviction import Evictor, group_mean, protected_columns, scatter
from reference.layers import (
    add,
    concatenate,
    embed,
    gated_ffn,
    linear,
    merge_heads,
    prepare_weights,
    rms_norm,
    rotate,
    split_heads,
    to_backend,
    to_numpy,
)
from reference.policy import Policy
from reference.sampling import Sampling
from reference.state import Chunk, State
from reference.topk import keep_top
from reference.trace import Counts, Trace
from reference.transformer import CHUNK, Model, decode, forward, logits, new_state, prefill
from reference.weights import LayerWeights, Weights

__all__ = [
    "CHUNK",
    "Chunk",
    "Counts",
    "Evictor",
    "KVCache",
    "LayerCache",
    "LayerWeights",
    "Model",
    "ModelConfig",
    "Policy",
    "Rope",
    "Sampling",
    "State",
    "Trace",
    "Weights",
    "add",
    "attention",
    "attention_mass",
    "concatenate",
    "decode",
    "embed",
    "forward",
    "gated_ffn",
    "group_mean",
    "keep_top",
    "linear",
    "logits",
    "merge_heads",
    "new_cache",
    "new_state",
    "prefill",
    "prepare_weights",
    "protected_columns",
    "restore_cache",
    "rms_norm",
    "rotate",
    "scatter",
    "split_heads",
    "to_backend",
    "to_numpy",
]

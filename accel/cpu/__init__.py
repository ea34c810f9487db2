"""The kernel contract on the processor: Numba kernels over explicit vectors, float32 arithmetic, all cores.

Same names, arguments, errors and meaning as `reference`, equal to it within rounding (`thresher verify --backend cpu`).
Kernels are compiled on first use and kept on disk; `warmup` compiles them all.
"""

from accel.cpu.attention import attention
from accel.cpu.cache import KVCache, LayerCache, new_cache, restore_cache
from accel.cpu.caote import caote_scores
from accel.cpu.compiled import THREADS, thread_count, warmup
from accel.cpu.fastforward import gated_ffn, select_neurons, sparse_ffn
from accel.cpu.keydiff import keydiff_scores
from accel.cpu.layers import add, concatenate, embed, prepare_weights, rms_norm, rotate, to_numpy
from accel.cpu.mass import attention_mass
from accel.cpu.predictor import predictor_scores
from accel.cpu.products import linear, linear_each
from accel.cpu.quoka import key_scores, quoka_attention, select_keys, select_queries, with_chunk
from accel.cpu.scores import snapkv_scores, tova_scores
from accel.cpu.topk import keep_top
from reference.eviction import group_mean, protected_columns, scatter
from reference.fastforward import layer_densities
from reference.layers import merge_heads, split_heads, to_backend
from reference.scores import last_queries

__all__ = [
    "THREADS",
    "KVCache",
    "LayerCache",
    "add",
    "attention",
    "attention_mass",
    "caote_scores",
    "concatenate",
    "embed",
    "gated_ffn",
    "group_mean",
    "keep_top",
    "key_scores",
    "keydiff_scores",
    "last_queries",
    "layer_densities",
    "linear",
    "linear_each",
    "merge_heads",
    "new_cache",
    "predictor_scores",
    "prepare_weights",
    "protected_columns",
    "quoka_attention",
    "restore_cache",
    "rms_norm",
    "rotate",
    "scatter",
    "select_keys",
    "select_neurons",
    "select_queries",
    "snapkv_scores",
    "sparse_ffn",
    "split_heads",
    "thread_count",
    "to_backend",
    "to_numpy",
    "tova_scores",
    "warmup",
    "with_chunk",
]

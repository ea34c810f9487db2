"""The kernel contract on the processor: Numba kernels over explicit vectors, float32 arithmetic, all cores.

Same names, arguments, errors and meaning as `reference`, equal to it within rounding (`thresher verify --backend cpu`).
Kernels are compiled on first use and kept on disk; `warmup` compiles them ahead.
"""

from accel.cpu.attention.call import attention, attention_each
from accel.cpu.attention.received import attention_and_mass_each, attention_mass
from accel.cpu.cache import KVCache, LayerCache, new_cache, restore_cache
from accel.cpu.ffn.call import gated_ffn, sparse_ffn
from accel.cpu.ffn.mixture import mixture_ffn
from accel.cpu.ffn.predictor import predictor_scores
from accel.cpu.ffn.statistics import griffin_statistic, neuron_magnitudes
from accel.cpu.layers import (
    add,
    concatenate,
    embed,
    prepare_fastforward,
    prepare_weights,
    rms_norm,
    rotate,
    to_numpy,
)
from accel.cpu.linear.few_tokens import FEW
from accel.cpu.linear.maps import linear, linear_each
from accel.cpu.methods.caote import caote_scores
from accel.cpu.methods.fastforward import fastforward_blocks
from accel.cpu.methods.keydiff import keydiff_scores
from accel.cpu.methods.quoka import (
    key_scores,
    quoka_attention,
    select_keys,
    select_keys_each,
    select_queries,
)
from accel.cpu.methods.scores import snapkv_scores, tova_scores
from accel.cpu.methods.topk import keep_top, select_neurons
from accel.cpu.recorded.passes import run_pass
from accel.cpu.runtime.needed import warmup
from accel.cpu.runtime.team import THREADS, TOGETHER, thread_count
from reference.attention import merge_heads, split_heads
from reference.backend import FUNCTIONS, NAMES
from reference.door import takes_any_array
from reference.eviction import group_mean
from reference.fastforward import layer_densities
from reference.layers import draw, join_dims, rotation_tables, soft_cap, to_backend
from reference.mixture import route
from reference.scores import last_queries

__all__ = [*NAMES, "FEW", "KVCache", "LayerCache", "THREADS", "TOGETHER", "run_pass", "thread_count", "warmup"]

globals().update({name: takes_any_array(globals()[name]) for name in FUNCTIONS})

"""The kernel contract on NVIDIA GPUs: every kernel written in Python, compiled by numba.cuda.

Same names, arguments, errors and meaning as `reference`, equal to it within rounding (`thresher verify --backend
cuda`). Calls return before the device is done; `to_numpy` waits. Kernels are compiled on first use and kept on disk.
Where NUMBA_ENABLE_CUDASIM=1 is set, the portable kernels run in numba.cuda's simulator, without a device.
"""

from accel.cuda.attention.call import attention, attention_each
from accel.cuda.attention.received import attention_and_mass_each, attention_mass
from accel.cuda.cache import KVCache, LayerCache, new_cache, restore_cache
from accel.cuda.ffn.call import gated_ffn, griffin_statistic, neuron_magnitudes, sparse_ffn
from accel.cuda.ffn.mixture import mixture_ffn, route
from accel.cuda.ffn.predictor import layer_densities, predictor_scores
from accel.cuda.layers import (
    concatenate,
    draw,
    embed,
    join_dims,
    merge_heads,
    prepare_fastforward,
    prepare_weights,
    rms_norm,
    soft_cap,
    split_heads,
)
from accel.cuda.linear.maps import linear, linear_each
from accel.cuda.linear.sums import add
from accel.cuda.methods.caote import caote_scores
from accel.cuda.methods.fastforward import fastforward_blocks
from accel.cuda.methods.keydiff import keydiff_scores
from accel.cuda.methods.quoka import (
    key_scores,
    quoka_attention,
    select_keys,
    select_keys_each,
    select_queries,
)
from accel.cuda.methods.scores import group_mean, last_queries, snapkv_scores, tova_scores
from accel.cuda.methods.topk import keep_top, select_neurons
from accel.cuda.recorded import TOGETHER, run_pass
from accel.cuda.rotation import rotate, rotation_tables
from accel.cuda.runtime.arrays import to_backend
from accel.cuda.runtime.device import device_name, free_memory
from accel.cuda.runtime.kernels import tell_compiling
from accel.cuda.runtime.views import to_numpy

__all__ = [
    "TOGETHER",
    "KVCache",
    "LayerCache",
    "add",
    "attention",
    "attention_and_mass_each",
    "attention_each",
    "attention_mass",
    "caote_scores",
    "concatenate",
    "device_name",
    "draw",
    "embed",
    "fastforward_blocks",
    "free_memory",
    "gated_ffn",
    "griffin_statistic",
    "group_mean",
    "join_dims",
    "keep_top",
    "key_scores",
    "keydiff_scores",
    "last_queries",
    "layer_densities",
    "linear",
    "linear_each",
    "merge_heads",
    "mixture_ffn",
    "neuron_magnitudes",
    "new_cache",
    "predictor_scores",
    "prepare_fastforward",
    "prepare_weights",
    "quoka_attention",
    "restore_cache",
    "rms_norm",
    "rotate",
    "rotation_tables",
    "route",
    "run_pass",
    "select_keys",
    "select_keys_each",
    "select_neurons",
    "select_queries",
    "snapkv_scores",
    "soft_cap",
    "sparse_ffn",
    "split_heads",
    "tell_compiling",
    "to_backend",
    "to_numpy",
    "tova_scores",
]

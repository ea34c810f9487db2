"""What everything in thresher means, in plain NumPy.

Read the files in this order, easy ones first. Each fits one sitting.

    1  similarity, topk               what a cosine is here; how every method chooses
    2  layers, attention              what a transformer computes, each function its formula
    3  keydiff, then eviction         the shortest method, and what all evicting methods share
    4  quoka                          choosing which keys to read
    5  scores, then caote             attention as a score, and what it leaves out
    6  neurons, then fastforward      choosing which neurons to run
    7  parts, config, weights, cache, model  what the forward pass is given
    8  transformer, then attend       the one forward pass that all backends share
    9  policy, trace, state, toy      how methods are combined and watched; a model to try them on

The rest serves these: `contract` and `checks` look at arguments, `predictor` and `fitting` belong to FastForward's
training, `baselines` are methods to be beaten, and `specs`, `sampling` and `int8` are what their names say.

The chapters in docs/ teach the same with pictures. The names of `reference.backend` are the kernel contract:
`accel.cpu` and `accel.cuda` offer the same functions under the same names.
"""

from reference import backend
from reference.attention import (
    attention,
    attention_and_mass_each,
    attention_each,
    attention_mass,
    merge_heads,
    split_heads,
)
from reference.baselines import Random, Recent
from reference.cache import KVCache, LayerCache, new_cache, restore_cache
from reference.caote import Caote, caote_scores, joint_eviction_error
from reference.config import ModelConfig, Rope
from reference.door import takes_any_array
from reference.eviction import Evictor, group_mean
from reference.experts import Expert, StoredExperts
from reference.fastforward import (
    FastForward,
    fastforward_blocks,
    layer_densities,
    predictor_scores,
    select_neurons,
    sparse_ffn,
)
from reference.int8 import Int8, dequantize, quantize
from reference.keydiff import KeyDiff, keydiff_scores
from reference.layers import (
    add,
    concatenate,
    draw,
    embed,
    gated_ffn,
    join_dims,
    linear,
    linear_each,
    prepare_fastforward,
    prepare_weights,
    rms_norm,
    rotate,
    rotation_tables,
    soft_cap,
    to_backend,
    to_numpy,
)
from reference.mixture import mixture_ffn, route
from reference.model import Model
from reference.neurons import griffin_statistic, mixing, neuron_magnitudes, predictor_targets
from reference.parts import Latent, Mixture
from reference.policy import Policy
from reference.predictor import Compensator, FastForwardLayer, FastForwardWeights, Predictor
from reference.quoka import (
    Quoka,
    key_scores,
    quoka_attention,
    select_keys,
    select_keys_each,
    select_queries,
)
from reference.sampling import Sampling
from reference.scores import H2O, SnapKV, Tova, last_queries, pool, snapkv_scores, tova_scores
from reference.similarity import cosine_bound, unit
from reference.state import Chunk, State
from reference.topk import keep_top
from reference.toy import toy_model
from reference.trace import Counts, Trace
from reference.transformer import CHUNK, decode, forward, logits, new_state, prefill
from reference.voting import (
    estimate_reliability,
    mixed_pass_at_k,
    pass_at_k,
    reliable_sources,
    round_robin,
    sources_asked,
    weighted_vote,
)
from reference.weights import LayerWeights, Weights

__all__ = [  # the names of the contract first
    *backend.NAMES,
    "CHUNK",
    "H2O",
    "Caote",
    "Chunk",
    "Compensator",
    "Counts",
    "Evictor",
    "Expert",
    "FastForward",
    "FastForwardLayer",
    "FastForwardWeights",
    "Int8",
    "KVCache",
    "KeyDiff",
    "Latent",
    "LayerCache",
    "LayerWeights",
    "Mixture",
    "Model",
    "ModelConfig",
    "Policy",
    "Predictor",
    "Quoka",
    "Random",
    "Recent",
    "Rope",
    "Sampling",
    "SnapKV",
    "State",
    "StoredExperts",
    "Tova",
    "Trace",
    "Weights",
    "backend",
    "cosine_bound",
    "decode",
    "dequantize",
    "estimate_reliability",
    "forward",
    "joint_eviction_error",
    "logits",
    "mixed_pass_at_k",
    "mixing",
    "new_state",
    "pass_at_k",
    "pool",
    "predictor_targets",
    "prefill",
    "quantize",
    "reliable_sources",
    "round_robin",
    "sources_asked",
    "toy_model",
    "unit",
    "weighted_vote",
]

globals().update({name: takes_any_array(globals()[name]) for name in backend.FUNCTIONS})

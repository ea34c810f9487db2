"""What a backend offers: the names, once. `reference` defines them all; `verify`, exports and tests read these lists.

A backend is a module. Its arrays offer shape, dtype, `len` and slices of their leading axes; nothing else is asked of
them outside of it. Its calls may return before the work is done: `to_numpy` is the only place where the host waits.

Three more names it need not have. `TOGETHER`: how many chunks of a prompt should share a pass. `FEW`: how many
sequences can decode in one pass so that each gets the bits that it would get alone, 1 where it does not say.
`run_pass(layers, model, chunks)`: what `layers(model, chunks)` returns, by a way of its own, such as the kernel calls
of an earlier pass as a whole.
"""

FUNCTIONS = (  # the kernel contract
    *("attention", "attention_mass", "select_queries", "key_scores", "select_keys", "quoka_attention"),
    *("keydiff_scores", "tova_scores", "snapkv_scores", "caote_scores", "keep_top", "predictor_scores"),
    *("select_neurons", "sparse_ffn", "layer_densities", "rms_norm", "rotate", "linear", "gated_ffn", "embed"),
    *("route", "mixture_ffn"),
)
MOVES = (  # what else a forward pass does to an array
    *(
        "attention_each",
        "attention_and_mass_each",
        "select_keys_each",
        "linear_each",
        "add",
        "concatenate",
        "split_heads",
        "merge_heads",
        "join_dims",
    ),
    *("group_mean", "last_queries", "rotation_tables", "griffin_statistic", "neuron_magnitudes"),
    *("draw", "to_backend", "to_numpy", "prepare_weights", "prepare_fastforward", "new_cache", "restore_cache"),
    *("soft_cap", "fastforward_blocks"),
)
NAMES = FUNCTIONS + MOVES

"""The gated feed-forward network, dense or on chosen neurons, and the predictor that chooses them."""

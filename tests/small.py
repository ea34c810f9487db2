"""The tests' small models are the toy models of `reference`."""

from reference.toy import random_weights
from reference.toy import toy_config as small_config
from reference.toy import toy_model as small_model

__all__ = ["random_weights", "small_config", "small_model"]

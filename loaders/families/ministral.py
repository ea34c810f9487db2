"""ministral: Mistral in which `layer_types` says which layers have the window."""

from loaders.families.mistral import DEFAULTS, differences
from loaders.family import Family

FAMILIES = (Family("ministral", DEFAULTS, differences, biases={}),)

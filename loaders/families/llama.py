"""llama (Llama 2 and 3, SmolLM2): the case that every other family is measured against."""

from loaders.family import Family

FAMILIES = (Family("llama", defaults={"max_position_embeddings": 2048}),)

"""Grouped-query attention, and what every key received of it."""

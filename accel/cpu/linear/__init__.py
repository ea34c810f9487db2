"""Rows of stored numbers, and products with matrices."""

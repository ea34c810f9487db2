"""Scripts that measure: each prints a table and, last, one line of JSON. `python -m benchmarks.NAME --help`."""

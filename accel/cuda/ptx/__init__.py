"""PTX instructions that Python has no word for, a file a family: each wrapped once, with its formula and layout."""

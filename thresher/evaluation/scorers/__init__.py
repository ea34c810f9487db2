"""Scorers: small pure functions from an answer and what was wanted to a number from 0 to 1.

words       text in general: containment, token F1, yes or no
maths       formulas and numbers
summaries   ROUGE-L
longbench   what LongBench alone measures, and which of its tasks uses what
"""

"""Benchmarks: what a start, a rotation and a purge cost, beside what they cannot cost less than.

Owns the measuring and the tables; `python -m bench.startup`, `.rotate` and `.purge` print one each, and
README.md keeps a run of them beside the goals. Every figure is of one run, in which the contenders take
turns: compare the ratios, and never a time with one from another run. Nothing in the package imports this.
"""

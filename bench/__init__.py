"""Benchmarks: what the ops cost beside their peers and beside what the machine can do.

`sparsekern bench` runs them; `docs/measured.md` says how and why.
"""

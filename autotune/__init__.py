"""The autotuner: what of a kernel's choices is fastest here, measured so that a second run says the same.

`sparsekern tune` runs it; `docs/tuning.md` says how and why.
"""

"""A CPU model of a CUDA device: executes the PTX that nvcc made, and checks every access while it does.

README.md says how it is built, and first of all what it cannot show.
"""

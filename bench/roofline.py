"""What the machine can do at best, measured in the same rounds as the ops: probes are contenders too."""

from __future__ import annotations

import time
from functools import lru_cache

import torch

from sparsekern import _C
from sparsekern.config import config

from .timing import Contender, Timings

READ, PRODUCTS = "limit: one read", "limit: products"
_BYTES = 256 << 20  # far beyond any cache
_SECONDS = 0.02  # of one call of the products' probe


def probes() -> dict[str, Contender]:
    """One pass over memory; products of bf16 pairs in registers; with the threads and ISA in use."""
    buffer, (rounds, _) = _buffer(), _spin(_C.isa(), _C.threads())
    return {READ: lambda _: _C.probe_read(buffer), PRODUCTS: lambda _: _C.probe_dot(rounds)}


def bytes_per_second(t: Timings) -> list[float]:
    """What a plain read reached, round by round."""
    return [_BYTES / s for s in t.seconds[READ]]


def flops_per_second(t: Timings) -> list[float]:
    """What products in registers reached, round by round."""
    _, flops = _spin(_C.isa(), _C.threads())
    return [flops / s for s in t.seconds[PRODUCTS]]


@lru_cache(maxsize=1)
def _buffer() -> torch.Tensor:
    return torch.ones(_BYTES, dtype=torch.uint8)


@lru_cache
def _spin(isa: str, threads: int) -> tuple[int, float]:
    """Rounds of the products' probe that take about _SECONDS, and the operations in them on all threads."""
    rounds = 1000
    with config.using(threads=1):  # others may be using the machine: this is the least that they disturb
        while (fastest := min(_timed(rounds) for _ in range(5))) < 0.2 * _SECONDS:
            rounds *= 4
    wanted = max(1, round(rounds * _SECONDS / fastest))
    return wanted, _C.probe_dot(1) * wanted


def _timed(rounds: int) -> float:
    start = time.perf_counter()
    _C.probe_dot(rounds)
    return time.perf_counter() - start

"""What the machine can do at best, measured in the same rounds as the ops: probes run beside them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch

from sparsekern import _C
from sparsekern.config import config

from .timing import Contender, Timings

READ = "limit: one read"
PRODUCTS = "limit: products"  # of bf16 pairs: VDPBF16PS, or two FMAs
FMA = "limit: f32 products"
INT8 = "limit: int8 products"  # VPDPBUSD, or what the instruction set has instead
_BYTES = 256 << 20  # far beyond any cache
_SECONDS = 0.01  # of one call of a products' probe
_SPINS: dict[str, Callable[[int], float]] = {
    PRODUCTS: _C.probe_dot,
    FMA: _C.probe_fma,
    INT8: _C.probe_int8,
}


def probes() -> dict[str, Contender]:
    """One pass over memory, products in registers; with the threads and the instruction set in use."""
    buffer = _buffer()
    spins = {name: _spinning(name) for name in _SPINS}
    return {READ: lambda _: _C.probe_read(buffer), **spins}


def bytes_per_second(t: Timings) -> list[float]:
    """What a plain read reached, round by round."""
    return [_BYTES / s for s in t.seconds[READ]]


def flops_per_second(t: Timings, probe: str = PRODUCTS) -> list[float]:
    """What products in registers reached, round by round."""
    _, flops = _rounds(probe, _C.isa(), _C.threads())
    return [flops / s for s in t.seconds[probe]]


def summary(t: Timings) -> dict[str, float]:
    """The probes' medians, for a row."""
    if READ not in t.seconds:
        return {}
    names = {PRODUCTS: "products", FMA: "f32_products", INT8: "int8_products"}
    return {
        "read_gb_per_s": round(statistics.median(bytes_per_second(t)) / 1e9, 2),
        **{
            f"{key}_gflop_per_s": round(statistics.median(flops_per_second(t, name)) / 1e9, 1)
            for name, key in names.items()
        },
    }


def _spinning(name: str) -> Contender:
    rounds, _ = _rounds(name, _C.isa(), _C.threads())
    spin = _SPINS[name]
    return lambda _: spin(rounds)


@lru_cache(maxsize=1)
def _buffer() -> torch.Tensor:
    return torch.ones(_BYTES, dtype=torch.uint8)


@lru_cache
def _rounds(name: str, isa: str, threads: int) -> tuple[int, float]:
    """Rounds of a probe that take about _SECONDS, and the operations in them on all threads."""
    spin, rounds = _SPINS[name], 1000
    with config.using(threads=1):  # others may be using the machine: this is the least that they disturb
        while (fastest := min(_timed(spin, rounds) for _ in range(5))) < 0.2 * _SECONDS:
            rounds *= 4
    wanted = max(1, round(rounds * _SECONDS / fastest))
    return wanted, spin(1) * wanted


def _timed(spin: Callable[[int], Any], rounds: int) -> float:
    start = time.perf_counter()
    spin(rounds)
    return time.perf_counter() - start

"""What a tile of the CUDA GEMMs would cost on a GPU: waves, bytes, tensor cores, decoding.

Nothing here was measured. Numbers of a GPU are its maker's. Rates of `mma.sync` are those of the generation's
tensor cores, less what is published of sm_90, where that instruction reaches 0.63 of what `wgmma` does,
and sm_100 is taken to be alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from sparsekern.model import BYTES, Choice, Problem

# What csrc/gemm/tensor.cuh is compiled for: rows of a tile; the larger one is what many rows get unasked.
INSTANCES: tuple[dict[str, int], ...] = tuple(
    {"tile_m": rows, "tile_n": 128, "tile_k": 64, "group_m": 1, "warps": warps, "stages": 3}
    for rows, warps in ((16, 4), (64, 8))
)
OPS = ("gemm", "grouped_gemm", "grouped_gemm_masked")  # with CUDA kernels that these are the tiles of
LAUNCH, LATENCY = 3e-6, 7e-7  # seconds: of a kernel, and of a tile from memory that is busy


@dataclass(frozen=True)
class Gpu:
    """A GPU of an architecture, by its data sheet."""

    name: str
    sms: int
    clock: float  # cycles a second
    memory: float  # bytes a second
    flops: float  # bf16 with float32 sums, dense, through mma.sync: of all
    shared: int  # bytes of an SM
    threads: int  # of an SM, at most

    @property
    def l2(self) -> float:
        """Bytes a second from the second-level cache: half of what an SM can take from it."""
        return 32 * self.clock * self.sms

    @property
    def decode(self) -> float:
        """Weights a second that one SM makes bf16 of: two a lane in some eight instructions."""
        return self.clock * 128 / 4


GPUS: dict[str, Gpu] = {
    "sm_80": Gpu("A100 SXM 80 GB", 108, 1.41e9, 2.039e12, 312e12, 164 << 10, 2048),
    "sm_86": Gpu("A10", 72, 1.695e9, 0.600e12, 125e12, 100 << 10, 1536),
    "sm_89": Gpu("L40S", 142, 2.52e9, 0.864e12, 362e12, 100 << 10, 1536),
    "sm_90": Gpu("H100 SXM", 132, 1.83e9, 3.35e12, 0.63 * 989e12, 228 << 10, 2048),
    "sm_100": Gpu("B200", 148, 1.85e9, 8.0e12, 0.63 * 989e12 * 148 / 132, 228 << 10, 2048),
    "sm_120": Gpu("RTX 5090", 170, 2.41e9, 1.792e12, 209.5e12, 100 << 10, 1536),
}


def predict(p: Problem, tile: Mapping[str, int], gpu: Gpu) -> float:
    """Seconds of a call."""
    if min(p.n, p.k, p.rows, p.groups) <= 0:
        return LAUNCH
    rows = p.rows / p.touched  # of a group
    wide = (BYTES[p.a], BYTES[p.weights])
    blocks = p.touched * math.ceil(rows / tile["tile_m"]) * math.ceil(p.n / tile["tile_n"])
    stage = tile["tile_k"] * (tile["tile_m"] * wide[0] + tile["tile_n"] * wide[1])  # bytes

    together = max(1, min(gpu.shared // int(tile["stages"] * stage), gpu.threads // (32 * tile["warps"])))
    waves = math.ceil(blocks / (gpu.sms * together))
    busy = min(together, math.ceil(blocks / (gpu.sms * waves)))  # blocks that share an SM
    return LAUNCH + waves * math.ceil(p.k / tile["tile_k"]) * _step(p, tile, gpu, busy, stage)


def _step(p: Problem, tile: Mapping[str, int], gpu: Gpu, busy: int, stage: float) -> float:
    """Seconds of one piece of k, of as many blocks as share an SM."""
    rows = math.ceil(p.rows / p.touched / tile["tile_m"])  # blocks beside each other, with the same weights
    m, n, k = tile["tile_m"], tile["tile_n"], tile["tile_k"]
    multiply = busy * 2 * m * n * k * gpu.sms / gpu.flops
    # Every row of warps decodes the columns for itself: there are two of them in a block of eight warps.
    decoded = k * (n * (tile["warps"] // 4) * (p.weights not in ("f32", "bf16")) + 4 * m * (p.a == "e4m3"))
    running = busy * gpu.sms
    fresh = math.ceil(running / rows) * k * n * BYTES[p.weights]
    fetch = max(fresh / gpu.memory, running * stage / gpu.l2)
    return max(multiply, busy * decoded / gpu.decode, fetch, LATENCY / (tile["stages"] - 1))


def choose(p: Problem, gpu: Gpu) -> Choice:
    """The compiled tile that should be fastest; of equals the smaller one."""
    costs = [predict(p, tile, gpu) for tile in INSTANCES]
    return Choice(INSTANCES[costs.index(min(costs))], "modelled")

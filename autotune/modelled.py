"""Records of GPUs that nobody has measured: the compiled tile that the model of CUDA's GEMMs prefers.

They say `modelled`, for which GPU, and what was predicted of every tile: so they can be told from findings.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from sparsekern import cuda_model, model
from sparsekern.cuda_model import GPUS
from sparsekern.model import Problem
from sparsekern.records import Record
from sparsekern.schema import Dims
from sparsekern.weights import FORMATS

_SCALED = {"e4m3": 128, "fp4": 32}  # columns of k that share a scale


def made(device: str, calls: Iterable[tuple[str, Dims]]) -> list[Record]:
    """A record for every kind of call."""
    problems = dict.fromkeys(problem(op, dims) for op, dims in calls)
    return [_record(device, p) for p in problems]


def problem(op: str, dims: Dims) -> Problem:
    """A call as its speed sees it; of what only CPUs know, nothing is said."""
    weights, groups = FORMATS[dims["b"]], dims.get("E", 1)
    rows = dims.get("M", dims.get("P", dims.get("Mmax", 0) * groups))
    rows = rows if rows <= 8 else 1 << round(math.log2(rows))
    block = _SCALED.get(weights, 0)
    return Problem(
        op, FORMATS[dims["a"]], weights, False, block, dims["N"], dims["K"], groups, rows, 0, "cuda"
    )


def _record(device: str, p: Problem) -> Record:
    gpu = GPUS[device]
    costs = dict(enumerate(cuda_model.predict(p, tile, gpu) for tile in cuda_model.INSTANCES))
    least, wide = min(costs.values()), costs[len(costs) - 1]
    return Record(
        op=p.op,
        device=device,
        key=p.key,
        config=cuda_model.choose(p, gpu).config,
        source="modelled",
        version=model.VERSION,
        gain=round(wide / least, 3),  # over the tile for many rows
        tried=tuple(
            {"config": cuda_model.INSTANCES[i], "status": "predicted", "predicted_us": round(1e6 * cost, 2)}
            for i, cost in costs.items()
        ),
        env={"gpu": gpu.name, "model": "sparsekern/cuda_model.py"},
    )

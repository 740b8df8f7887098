"""The largest of every row, exactly."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsekern.backend import launch
from sparsekern.ops._indexer import best_columns, outside, random_ranges
from sparsekern.schema import Arg, Dims, Op, Out


def topk_per_row(
    scores: Tensor,
    *,
    k: int,
    starts: Tensor | None = None,
    ends: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Find the columns of the k largest scores of every row.

    out[m] = sorted(top_k(scores[m, starts[m]:ends[m]])) + starts[m], then -1

    Columns ascend and count from the row's beginning, not from `starts`. Of equal scores the first are
    taken, and -0 equals 0. -inf is never chosen, and NaN counts as -inf: where fewer than k are left, the
    row ends in -1. `starts` and `ends` are cut to the columns that there are; without them a row counts
    from its first, or to its last column.
    """
    result: Tensor = launch(OP, scores, starts, ends, k, out)
    return result


def reference(scores: Tensor, *, k: int, starts: Tensor | None = None, ends: Tensor | None = None) -> Tensor:
    """A stable sort."""
    rows, columns = scores.shape
    return best_columns(scores.float().masked_fill(outside(rows, columns, starts, ends), -torch.inf), k)


def inputs(dims: Dims, rng: torch.Generator) -> dict[str, Any]:
    """Normal scores; "grid" rounds them, so that many tie, "wild" puts NaN, infinities and zeros among them.

    "rising" sorts them, so that every one is the best so far.
    """
    m, n = dims["M"], dims["N"]
    scores = torch.randn(m, n, generator=rng)
    if dims.get("grid"):
        scores = (4 * scores).round() / 4
    if dims.get("wild"):
        lottery = torch.rand(m, n, generator=rng)
        for i, value in enumerate((torch.nan, torch.inf, -torch.inf, 3e38, -3e38, 0.0, -0.0, -torch.nan)):
            scores[(lottery > 0.1 * i) & (lottery < 0.1 * i + 0.1)] = value
    if dims.get("rising"):
        scores = scores.sort(-1).values
    x = {"scores": scores.to(torch.bfloat16 if dims.get("bf16") else torch.float32), "k": dims["k"]}
    if dims.get("ranges"):
        x |= random_ranges(m, n, rng)
    return x


OP = Op(
    fn=topk_per_row,
    family="indexer",
    args=(
        Arg("scores", "M N", "f32 bf16", "a row each"),
        Arg("starts", "M", "i32", "first column that counts"),
        Arg("ends", "M", "i32", "column after the last that counts"),
    ),
    outs=(Out("out", "M k", "i32", "columns, ascending, then -1"),),
    reference=reference,
    inputs=inputs,
    test_dims=(
        {"M": 5, "N": 3000, "k": 64},
        {"M": 3, "N": 20001, "k": 512, "rising": 1},
        {"M": 4, "N": 9001, "k": 700, "bf16": 1, "ranges": 1},
        {"M": 3, "N": 12345, "k": 2048, "grid": 1},
        {"M": 4, "N": 5000, "k": 300, "wild": 1, "ranges": 1},
        {"M": 2, "N": 5000, "k": 2900, "wild": 1},
        {"M": 1, "N": 200003, "k": 2048},
        {"M": 2, "N": 140001, "k": 33, "grid": 1, "bf16": 1},
        {"M": 6, "N": 500, "k": 500, "grid": 1},
        {"M": 3, "N": 20, "k": 32, "wild": 1},
        {"M": 7, "N": 1, "k": 1, "wild": 1},
        {"M": 3, "N": 0, "k": 4},
        {"M": 0, "N": 8, "k": 2},
    ),
    bench_dims=(
        {"M": 1, "N": 131072, "k": 2048},
        {"M": 64, "N": 32768, "k": 2048},
        {"M": 1, "N": 1048576, "k": 2048},
        {"M": 64, "N": 8192, "k": 512},
    ),
    spoil=lambda x: {**x, "scores": x["scores"].roll(1, -1)},
    source="DeepSeek-V3.2-Exp technical report, section 2.1; ties as in DESIGN law 3",
    rows=("scores", "starts", "ends"),
    bytes=lambda d: d["M"] * (d["N"] * (2.0 if d.get("bf16") else 4.0) + 4.0 * d["k"]),
)

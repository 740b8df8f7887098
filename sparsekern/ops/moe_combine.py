"""What the experts made of a token, added up."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsekern.backend import launch
from sparsekern.schema import Arg, Dims, Op, Out


def moe_combine(
    y: Tensor,
    slot_row: Tensor,
    weights: Tensor | None = None,
    *,
    out_dtype: torch.dtype | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Add the rows of each token's slots, weighted.

    out[t, :] = sum over j of weights[t, j] * y[slot_row[t, j], :]

    Summed in float32 with fused multiply-adds in slot order, starting from 0, and rounded once. Slots whose
    row is -1 are skipped, their weights too; a token without any other gets 0. Rows that no slot names are
    never read. `out_dtype`: float32 or bfloat16, y's dtype by default.
    """
    result: Tensor = launch(OP, y, slot_row, weights, out_dtype, out)
    return result


def reference(
    y: Tensor, slot_row: Tensor, weights: Tensor | None = None, *, out_dtype: torch.dtype | None = None
) -> Tensor:
    """Products and sums in float64, each sum rounded to float32: a fused multiply-add."""
    total = y.new_zeros(slot_row.shape[0], y.shape[1], dtype=torch.float32)
    for j in range(slot_row.shape[1]):
        here = slot_row[:, j] >= 0
        rows = y[slot_row[here, j].long()].double()
        w = 1.0 if weights is None else weights[here, j, None].double()
        total[here] = (w * rows + total[here].double()).float()
    return total.to(out_dtype or y.dtype)


def inputs(dims: Dims, rng: torch.Generator) -> dict[str, Any]:
    """Every slot has a row of its own, but a tenth that has none."""
    t, k, h = dims["T"], dims["k"], dims["H"]
    slot_row = torch.randperm(t * k, generator=rng).reshape(t, k)
    slot_row[torch.rand(t, k, generator=rng) < 0.1] = -1
    return {
        "y": torch.randn(t * k, h, generator=rng).to(torch.float32 if dims.get("f32") else torch.bfloat16),
        "slot_row": slot_row.to(torch.int64 if dims.get("i64") else torch.int32),
        "weights": None if dims.get("plain") else torch.rand(t, k, generator=rng),
        "out_dtype": torch.float32 if dims.get("f32_out") else None,
    }


OP = Op(
    fn=moe_combine,
    family="moe",
    args=(
        Arg("y", "P H", "f32 bf16", "the experts' rows"),
        Arg("slot_row", "T k", "i32", "the row of each slot, -1 where dropped"),
        Arg("weights", "T k", "f32", "weight of each slot; none: 1"),
    ),
    outs=(Out("out", "T H", "out_dtype y", "one row per token"),),
    reference=reference,
    inputs=inputs,
    test_dims=(
        {"T": 7, "k": 6, "H": 300},
        {"T": 5, "k": 8, "H": 2049, "f32": 1, "i64": 1},
        {"T": 3, "k": 2, "H": 130, "plain": 1},
        {"T": 9, "k": 1, "H": 33, "f32_out": 1},
        {"T": 2, "k": 40, "H": 1},
        {"T": 0, "k": 2, "H": 16},
    ),
    bench_dims=tuple({"T": t, "k": 8, "H": 7168} for t in (1, 64, 4096)),
    spoil=lambda x: {**x, "slot_row": x["slot_row"].index_fill(1, torch.tensor([0]), -1)},
    source="TileKernels reduce_fused",
    rows=("slot_row", "weights"),
    flops=lambda d: 2.0 * d["T"] * d["k"] * d["H"],
    bytes=lambda d: (4.0 if d.get("f32") else 2.0) * d["T"] * (d["k"] + 1) * d["H"],
)

"""The gated activation of the experts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsekern.backend import launch
from sparsekern.schema import Arg, Dims, Op, Out


def swiglu(
    gate_up: Tensor,
    *,
    limit: float | None = None,
    row_weight: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Gate the second half of each row by the SiLU of the first.

        out[r, i] = gate / (1 + exp(-gate)) * up * row_weight[r]
        gate = gate_up[r, i],  up = gate_up[r, C/2 + i]

    Computed in float32 and rounded once. A `limit` bounds the gate above and `up` on both sides before that;
    NaN passes. `row_weight` has one weight per row, in the shape of the leading dimensions.
    """
    result: Tensor = launch(OP, gate_up, row_weight, limit, out)
    return result


def exact(gate_up: Tensor, limit: float | None, row_weight: Tensor | None) -> Tensor:
    """The formula in float64."""
    gate, up = gate_up.double().chunk(2, -1)
    if limit is not None:
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    y = gate * torch.sigmoid(gate) * up
    return y if row_weight is None else y * row_weight.double().unsqueeze(-1)


def reference(gate_up: Tensor, *, limit: float | None = None, row_weight: Tensor | None = None) -> Tensor:
    """The formula in float64, rounded once."""
    return exact(gate_up, limit, row_weight).to(gate_up.dtype)


def inputs(dims: Dims, rng: torch.Generator) -> dict[str, Any]:
    """Normal gates and values, some beyond the limit, some gates far out."""
    dtype = torch.float32 if dims.get("f32") else torch.bfloat16
    x = torch.randn(dims["M"], dims["C"], generator=rng) * 4
    if dims["C"] > 8:
        x[:, :4] = torch.tensor([-200.0, -30.0, 90.0, -0.0])
    options: dict[str, Any] = {"limit": float(dims["limit"])} if dims.get("limit") else {}
    if dims.get("weights"):
        options["row_weight"] = torch.rand(dims["M"], generator=rng)
    return {"gate_up": x.to(dtype), **options}


OP = Op(
    fn=swiglu,
    family="quant",
    args=(
        Arg("gate_up", "... C", "f32 bf16", "gates, then as many values"),
        Arg("row_weight", "...", "f32", "one weight per row; none: 1", layout="dense"),
    ),
    outs=(Out("out", "... C/2", "gate_up", "gated values"),),
    reference=reference,
    inputs=inputs,
    test_dims=(
        {"M": 5, "C": 256},
        {"M": 3, "C": 70, "limit": 7, "weights": 1},
        {"M": 4, "C": 514, "f32": 1, "limit": 10},
        {"M": 2, "C": 62, "f32": 1, "weights": 1},
        {"M": 1, "C": 2},
        {"M": 0, "C": 64, "weights": 1},
        {"M": 3, "C": 0},
    ),
    bench_dims=(
        {"M": 1, "C": 4096},
        {"M": 4096, "C": 4096, "limit": 10, "weights": 1},
        {"M": 4096, "C": 6144},
    ),
    spoil=lambda x: {**x, "gate_up": x["gate_up"].flip(-1) + 1},
    source="TileKernels 36d9e45 swiglu_forward; arXiv 2002.05202",
    max_err=2**-8,
    rows=("gate_up", "row_weight"),
    flops=lambda d: 10.0 * d["M"] * d["C"],
    bytes=lambda d: (6.0 if d.get("f32") else 3.0) * d["M"] * d["C"],
)

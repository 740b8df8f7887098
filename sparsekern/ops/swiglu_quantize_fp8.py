"""The gated activation of the experts, quantised for the GEMM that follows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsekern.backend import launch
from sparsekern.ops import swiglu
from sparsekern.ops._small_floats import ScaleFormat, quantise_e4m3
from sparsekern.schema import Arg, Dims, Op, Out


def swiglu_quantize_fp8(
    gate_up: Tensor,
    *,
    limit: float | None = None,
    row_weight: Tensor | None = None,
    group_size: int = 128,
    scale_format: ScaleFormat = "fp32",
    amax_floor: float = 1e-4,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """`swiglu`, then `quantize_fp8`, in one pass.

        y = gate / (1 + exp(-gate)) * up * row_weight
        amax = max(max |y[r, group]|, amax_floor),  q = e4m3(y * (448 / amax)),  scale = amax / 448

    y stays in float32: it is rounded to FP8 only.
    """
    result: tuple[Tensor, Tensor] = launch(
        OP, gate_up, row_weight, limit, group_size, scale_format, amax_floor, out
    )
    return result


def reference(
    gate_up: Tensor,
    *,
    limit: float | None = None,
    row_weight: Tensor | None = None,
    group_size: int = 128,
    scale_format: ScaleFormat = "fp32",
    amax_floor: float = 1e-4,
) -> tuple[Tensor, Tensor]:
    """Both formulas, the first in float64."""
    y = swiglu.exact(gate_up, limit, row_weight).float().unsqueeze(-2)
    q, scale = quantise_e4m3(y, (1, group_size), scale_format, amax_floor)
    return q.squeeze(-2), scale.squeeze(-2)


def inputs(dims: Dims, rng: torch.Generator) -> dict[str, Any]:
    """What `swiglu` is tested on."""
    options: dict[str, Any] = {"scale_format": "ue8m0"} if dims.get("ue8m0") else {}
    return {**swiglu.inputs(dims, rng), "group_size": dims["group_size"], **options}


OP = Op(
    fn=swiglu_quantize_fp8,
    family="quant",
    args=(
        Arg("gate_up", "... C", "f32 bf16", "gates, then as many values"),
        Arg("row_weight", "...", "f32", "one weight per row; none: 1", layout="dense"),
    ),
    outs=(
        Out("q", "... C/2", "e4m3", "codes"),
        Out("scale", "... C/2/group_size", "scale_format", "what codes are multiplied by"),
    ),
    reference=reference,
    inputs=inputs,
    test_dims=(
        {"M": 5, "C": 512, "group_size": 128},
        {"M": 3, "C": 170, "group_size": 32, "limit": 7, "weights": 1, "ue8m0": 1},
        {"M": 4, "C": 514, "group_size": 128, "f32": 1, "limit": 10},
        {"M": 2, "C": 4400, "group_size": 2048, "weights": 1},
        {"M": 1, "C": 2, "group_size": 128},
        {"M": 2, "C": 34, "group_size": 5, "f32": 1},
        {"M": 0, "C": 64, "group_size": 128, "weights": 1},
        {"M": 3, "C": 0, "group_size": 128},
    ),
    bench_dims=(
        {"M": 1, "C": 4096, "group_size": 128},
        {"M": 4096, "C": 4096, "group_size": 128, "limit": 10, "weights": 1},
        {"M": 4096, "C": 6144, "group_size": 32, "ue8m0": 1, "limit": 10},
    ),
    spoil=lambda x: {**x, "gate_up": x["gate_up"].flip(-1) + 1},
    source="TileKernels 36d9e45 swiglu_forward_and_per_token_cast",
    max_err=1 / 14,  # one step of FP8 next to 448: exp differs in the last place
    rows=("gate_up", "row_weight"),
    flops=lambda d: 12.0 * d["M"] * d["C"],
    bytes=lambda d: (4.5 if d.get("f32") else 2.5) * d["M"] * d["C"],
)

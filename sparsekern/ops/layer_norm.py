"""Layer normalisation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsekern.backend import launch
from sparsekern.schema import Arg, Dims, Op, Out


def layer_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float,
    out: Tensor | None = None,
) -> Tensor:
    """Shift each row to mean 0, divide it by its standard deviation, then scale and shift.

        out[r, :] = (x[r, :] - mean) / sqrt(mean((x[r, :] - mean)^2) + eps) * weight + bias

    Computed in float32, the mean first and then the deviations from it, and rounded once.
    """
    result: Tensor = launch(OP, x, weight, bias, eps, out)
    return result


def reference(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, eps: float) -> Tensor:
    """The formula in float64."""
    d = x.double() - x.double().mean(-1, keepdim=True)
    y = d * (d.square().mean(-1, keepdim=True) + eps).rsqrt()
    y = y if weight is None else y * weight.double()
    return (y if bias is None else y + bias.double()).to(x.dtype)


def inputs(dims: Dims, rng: torch.Generator) -> dict[str, Any]:
    """Rows with a mean, weights around one, small biases."""
    dtype = torch.float32 if dims.get("f32") else torch.bfloat16
    x = {
        "x": (torch.randn(dims["M"], dims["D"], generator=rng) + dims.get("mean", 2)).to(dtype),
        "weight": torch.rand(dims["D"], generator=rng) + 0.5,
        "bias": torch.randn(dims["D"], generator=rng).to(dtype),
        "eps": 1e-6,
    }
    return {k: v for k, v in x.items() if k in ("x", "eps") or not dims.get("plain")}


OP = Op(
    fn=layer_norm,
    family="quant",
    args=(
        Arg("x", "... D", "f32 bf16", "rows"),
        Arg("weight", "D", "f32 bf16", "scale of each channel; none: 1"),
        Arg("bias", "D", "f32 bf16", "shift of each channel; none: 0"),
    ),
    outs=(Out("out", "... D", "x", "the normalised rows"),),
    reference=reference,
    inputs=inputs,
    test_dims=(
        {"M": 5, "D": 7},
        {"M": 3, "D": 1000},
        {"M": 2, "D": 133, "f32": 1, "plain": 1},
        {"M": 2, "D": 128, "f32": 1, "mean": 100},
        {"M": 0, "D": 16},
        {"M": 2, "D": 1},
    ),
    bench_dims=({"M": 64, "D": 128}, {"M": 4096, "D": 128}, {"M": 512, "D": 7168}),
    spoil=lambda x: {**x, "eps": 2.0},
    source="arXiv 1607.06450",
    max_err=2**-8,
    rows=("x",),
    flops=lambda d: 7.0 * d["M"] * d["D"],
    bytes=lambda d: (8.0 if d.get("f32") else 4.0) * d["M"] * d["D"],
)

"""Root-mean-square normalisation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsekern.backend import launch
from sparsekern.schema import Arg, Dims, Op, Out


def rms_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float,
    out: Tensor | None = None,
) -> Tensor:
    """Divide each row by its root mean square, then scale and shift.

        out[r, :] = x[r, :] / sqrt(mean(x[r, :]^2) + eps) * weight + bias

    Computed in float32 and rounded once.
    """
    result: Tensor = launch(OP, x, weight, bias, eps, out)
    return result


def reference(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, eps: float) -> Tensor:
    """The formula in float64."""
    y = x.double() * (x.double().square().mean(-1, keepdim=True) + eps).rsqrt()
    y = y if weight is None else y * weight.double()
    return (y if bias is None else y + bias.double()).to(x.dtype)


def inputs(dims: Dims, rng: torch.Generator) -> dict[str, Any]:
    """Normal rows, weights around one."""
    dtype = torch.float32 if dims.get("f32") else torch.bfloat16
    x = {
        "x": torch.randn(dims["M"], dims["D"], generator=rng).to(dtype),
        "weight": (torch.rand(dims["D"], generator=rng) + 0.5).to(dtype),
        "eps": 1e-6,
    }
    return x | ({"bias": torch.randn(dims["D"], generator=rng)} if dims.get("bias") else {})


OP = Op(
    fn=rms_norm,
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
        {"M": 2, "D": 64, "f32": 1},
        {"M": 3, "D": 39, "bias": 1},
        {"M": 0, "D": 16},
        {"M": 2, "D": 1},
    ),
    bench_dims=({"M": 1, "D": 7168}, {"M": 512, "D": 7168}),
    spoil=lambda x: {**x, "eps": 0.5},
    source="arXiv 1910.07467",
    max_err=2**-8,
    rows=("x",),
    flops=lambda d: 4.0 * d["M"] * d["D"],
    bytes=lambda d: 4.0 * d["M"] * d["D"],
)

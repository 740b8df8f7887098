"""The Hadamard rotation that spreads outliers before quantisation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsekern.backend import launch
from sparsekern.schema import Arg, Dims, Op, Out


def hadamard(x: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Rotate each row by the normalised Hadamard matrix, in Sylvester's order.

        out[r, :] = x[r, :] @ H_D / sqrt(D),  H_1 = [1],  H_2n = [[H_n, H_n], [H_n, -H_n]]

    D is a power of two. The rotation is its own inverse. Sums are in float32, in an order that D alone
    decides; the result is rounded once.
    """
    result: Tensor = launch(OP, x, out)
    return result


def reference(x: Tensor) -> Tensor:
    """A matrix product in float64."""
    h = torch.ones(1, 1, dtype=torch.float64)
    while h.shape[0] < x.shape[-1]:
        h = torch.cat((torch.cat((h, h), 1), torch.cat((h, -h), 1)))
    return torch.matmul(x.double(), h).div(x.shape[-1] ** 0.5).to(x.dtype)


def inputs(dims: Dims, rng: torch.Generator) -> dict[str, Any]:
    """Normal rows."""
    dtype = torch.float32 if dims.get("f32") else torch.bfloat16
    return {"x": torch.randn(dims["M"], dims["D"], generator=rng).to(dtype)}


OP = Op(
    fn=hadamard,
    family="quant",
    args=(Arg("x", "... D", "f32 bf16", "rows; D is a power of two"),),
    outs=(Out("out", "... D", "x", "rotated rows"),),
    reference=reference,
    inputs=inputs,
    test_dims=(
        *({"M": 5, "D": 2**i} for i in range(12)),
        {"M": 3, "D": 8, "f32": 1},
        {"M": 3, "D": 64, "f32": 1},
        {"M": 3, "D": 512, "f32": 1},
        {"M": 0, "D": 128},
    ),
    bench_dims=({"M": 64, "D": 128}, {"M": 65536, "D": 128}, {"M": 4096, "D": 512}, {"M": 512, "D": 8192}),
    spoil=lambda x: {**x, "x": x["x"].flip(0) + 1},
    source="arXiv 2404.00456; DeepSeek-V3.2-Exp inference code",
    max_err=2**-8,
    rows=("x",),
    flops=lambda d: 1.0 * d["M"] * d["D"] * (d["D"].bit_length() - 1),
    bytes=lambda d: (8.0 if d.get("f32") else 4.0) * d["M"] * d["D"],
)

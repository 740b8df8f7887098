"""Doubly stochastic matrices."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsekern.backend import launch
from sparsekern.schema import Arg, Dims, Op, Out


def sinkhorn(logits: Tensor, *, iters: int, eps: float, out: Tensor | None = None) -> Tensor:
    """Make every row and every column of a matrix sum to one (Sinkhorn and Knopp's iteration).

        m = softmax(each row of logits) + eps;  m /= column sums + eps
        iters - 1 times:  m /= row sums + eps;  m /= column sums + eps

    In float32, sums ascend. At most 16 x 16, 1 to 1000 iterations. NaN stays in its own matrix.
    """
    result: Tensor = launch(OP, logits, iters, eps, out)
    return result


def reference(logits: Tensor, *, iters: int, eps: float) -> Tensor:
    """The formula in float64."""
    m = logits.double().softmax(-1) + eps
    for i in range(iters):
        if i:
            m = m / (m.sum(-1, keepdim=True) + eps)
        m = m / (m.sum(-2, keepdim=True) + eps)
    return m.float()


def inputs(dims: Dims, rng: torch.Generator) -> dict[str, Any]:
    """Normal logits; the first matrix has a tie of all, and an entry that a softmax makes 0."""
    logits = torch.randn(dims["M"], dims["n"], dims["n"], generator=rng)
    if dims["M"] > 1:
        logits[0] = 1.0
        logits[0, 0, -1] -= 200 * (dims["n"] > 1)
    return {"logits": logits, "iters": dims.get("iters", 20), "eps": 1e-6}


OP = Op(
    fn=sinkhorn,
    family="mhc",
    args=(Arg("logits", "... n n", "f32", "one matrix per token"),),
    outs=(Out("out", "... n n", "f32", "its rows and columns sum to one"),),
    reference=reference,
    inputs=inputs,
    test_dims=(
        {"M": 37, "n": 4},
        {"M": 16, "n": 4, "iters": 1},
        {"M": 3, "n": 4, "iters": 2},
        {"M": 5, "n": 1},
        {"M": 18, "n": 3},
        {"M": 2, "n": 7},
        {"M": 17, "n": 16, "iters": 5},
        {"M": 0, "n": 4},
    ),
    bench_dims=({"M": 1, "n": 4}, {"M": 4096, "n": 4}),
    spoil=lambda x: {**x, "iters": 1},
    source="TileKernels sinkhorn_normalize_ref",
    max_err=2**-18,
    rows=("logits",),
    flops=lambda d: 4.0 * d["M"] * d.get("iters", 20) * d["n"] ** 2,
    bytes=lambda d: 8.0 * d["M"] * d["n"] ** 2,
)

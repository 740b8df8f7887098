"""From residual streams to the model's head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsekern.backend import launch
from sparsekern.ops.mhc_pre import BENCH_DIMS, TEST_DIMS, collapsed, mixes, random_mixer
from sparsekern.schema import Arg, Dims, Op, Out


def mhc_head(
    x: Tensor,
    fn: Tensor,
    scale: Tensor,
    base: Tensor,
    *,
    rms_eps: float,
    eps: float,
    out: Tensor | None = None,
) -> Tensor:
    """Collapse the streams of a token for the last time.

        mix = x fn^T / sqrt(mean(x^2) + rms_eps), x being all n streams as one row of n D
        out = sum over i of (sigmoid(mix[i] scale + base[i]) + eps) x[i]

    Products and sums in float32, rounded once. At most 16 streams.
    """
    result: Tensor = launch(OP, x, fn, scale, base, rms_eps, eps, out)
    return result


def reference(x: Tensor, fn: Tensor, scale: Tensor, base: Tensor, *, rms_eps: float, eps: float) -> Tensor:
    """The formulas in float64."""
    return collapsed(x, (mixes(x, fn, rms_eps) * scale.double() + base.double()).sigmoid() + eps)


def inputs(dims: Dims, rng: torch.Generator) -> dict[str, Any]:
    """Normal streams."""
    return random_mixer(dims["n"], 1, dims, rng)


OP = Op(
    fn=mhc_head,
    family="mhc",
    args=(
        Arg("x", "T n D", "f32 bf16", "the streams of each token"),
        Arg("fn", "n n*D", "f32", "weights of the mixes"),
        Arg("scale", "1", "f32", "of the mixes"),
        Arg("base", "n", "f32", "added to the scaled mixes"),
    ),
    outs=(Out("out", "T D", "x", "what the head reads"),),
    reference=reference,
    inputs=inputs,
    test_dims=TEST_DIMS,
    bench_dims=BENCH_DIMS,
    spoil=lambda x: {**x, "base": x["base"] + 0.1},
    source="transformers DeepseekV4HyperHead",
    max_err=2**-8,
    rows=("x",),
    flops=lambda d: 2.0 * d["T"] * d["n"] * d["D"] * (d["n"] + 2),
    bytes=lambda d: d["T"] * d["D"] * 2.0 * (d["n"] + 1) + 4.0 * d["n"] ** 2 * d["D"],
)

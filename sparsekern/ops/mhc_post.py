"""From a layer's result back to residual streams."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsekern.backend import launch
from sparsekern.ops.mhc_pre import BENCH_DIMS, TEST_DIMS
from sparsekern.schema import Arg, Dims, Op, Out


def mhc_post(y: Tensor, x: Tensor, post: Tensor, comb: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Mix the streams of a token and add a layer's result to each of them.

        out[t, j, :] = post[t, j] y[t, :] + sum over i of comb[t, i, j] x[t, i, :]

    In float32, i ascending, rounded once to the dtype of the streams. At most 16 of them.
    """
    result: Tensor = launch(OP, y, x, post, comb, out)
    return result


def reference(y: Tensor, x: Tensor, post: Tensor, comb: Tensor) -> Tensor:
    """The formula in float64."""
    mixed = torch.einsum("tij,tid->tjd", comb.double(), x.double())
    return (post.double()[..., None] * y.double()[:, None] + mixed).to(x.dtype)


def inputs(dims: Dims, rng: torch.Generator) -> dict[str, Any]:
    """Normal streams and weights as `mhc_pre` makes them; `f32` is 1 for both, 2 for the streams alone."""
    t, n, kind = dims["T"], dims["n"], dims.get("f32", 0)
    return {
        "y": torch.randn(t, dims["D"], generator=rng).to(torch.float32 if kind == 1 else torch.bfloat16),
        "x": torch.randn(t, n, dims["D"], generator=rng).to(torch.float32 if kind else torch.bfloat16),
        "post": 2 * torch.rand(t, n, generator=rng),
        "comb": torch.rand(t, n, n, generator=rng) / max(n / 2, 1),
    }


ARGS = (
    Arg("y", "T D", "f32 bf16", "the layer's result"),
    Arg("x", "T n D", "f32 bf16", "the streams before the layer"),
    Arg("post", "T n", "f32", "how much of the layer's result each stream gets", "dense"),
    Arg("comb", "T n n", "f32", "how much of stream i stream j gets", "dense"),
)

OP = Op(
    fn=mhc_post,
    family="mhc",
    args=ARGS,
    outs=(Out("out", "T n D", "x", "the streams behind the layer"),),
    reference=reference,
    inputs=inputs,
    test_dims=(*TEST_DIMS, {"T": 3, "n": 4, "D": 50, "f32": 2}),
    bench_dims=BENCH_DIMS,
    spoil=lambda x: {**x, "post": x["post"] * 1.1},
    source="TileKernels mhc_post_ref, transformers DeepseekV4DecoderLayer",
    max_err=2**-8,
    rows=("y", "x", "post", "comb"),
    flops=lambda d: 2.0 * d["T"] * d["D"] * d["n"] * (d["n"] + 1),
    bytes=lambda d: d["T"] * d["D"] * 2.0 * (2 * d["n"] + 1),
)

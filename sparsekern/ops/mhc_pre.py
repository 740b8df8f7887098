"""From residual streams to the input of a layer."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparsekern.backend import launch
from sparsekern.ops.sinkhorn import reference as balanced
from sparsekern.schema import Arg, Dims, Op, Out


class MhcPre(NamedTuple):
    """A layer's input, and how its result goes back to the streams: for `mhc_post`."""

    layer_in: Tensor
    post: Tensor
    comb: Tensor


def mhc_pre(
    x: Tensor,
    fn: Tensor,
    scale: Tensor,
    base: Tensor,
    *,
    iters: int,
    post_mult: float,
    rms_eps: float,
    eps: float,
    out: tuple[Tensor, Tensor, Tensor] | None = None,
) -> MhcPre:
    """Collapse the streams of a token into the input of a layer, and find how they mix behind it.

        mix = x fn^T / sqrt(mean(x^2) + rms_eps), x being all n streams as one row of n D
        layer_in = sum over i of (sigmoid(mix[i] scale[0] + base[i]) + eps) x[i]
        post[i] = post_mult sigmoid(mix[n + i] scale[1] + base[n + i])
        comb = sinkhorn(mix[2 n :] scale[2] + base[2 n :] as n rows), of `iters` iterations with `eps`

    Products and sums in float32, `layer_in` rounded once. At most 16 streams. DeepSeek-V4 has 4 of them, 20
    iterations, a post_mult of 2 and 1e-6 for both eps.
    """
    result: MhcPre = launch(OP, x, fn, scale, base, iters, post_mult, rms_eps, eps, out)
    return result


def mixes(x: Tensor, fn: Tensor, rms_eps: float) -> Tensor:
    """In float64, [T, outputs]."""
    row = x.double().flatten(1)
    return row @ fn.double().T * (row.square().mean(-1, keepdim=True) + rms_eps).rsqrt()


def collapsed(x: Tensor, weight: Tensor) -> Tensor:
    """The weighted sum of the streams, in the dtype of x."""
    return (weight[..., None] * x.double()).sum(1).to(x.dtype)


def reference(
    x: Tensor,
    fn: Tensor,
    scale: Tensor,
    base: Tensor,
    *,
    iters: int,
    post_mult: float,
    rms_eps: float,
    eps: float,
) -> MhcPre:
    """The formulas in float64."""
    n = x.shape[1]
    each = torch.tensor([n, n, n * n])
    z = mixes(x, fn, rms_eps) * scale.double().repeat_interleave(each) + base.double()
    pre, post, comb = z.split(each.tolist(), 1)
    return MhcPre(
        collapsed(x, pre.sigmoid() + eps),
        (post_mult * post.sigmoid()).float(),
        balanced(comb.unflatten(1, (n, n)), iters=iters, eps=eps),
    )


def random_mixer(outputs: int, kinds: int, dims: Dims, rng: torch.Generator) -> dict[str, Any]:
    """Weights whose mixes are about normal, whatever the width."""
    n, width = dims["n"], dims["n"] * dims["D"]
    return {
        "x": torch.randn(dims["T"], n, dims["D"], generator=rng).to(
            torch.float32 if dims.get("f32") else torch.bfloat16
        ),
        "fn": torch.randn(outputs, width, generator=rng) / max(width, 1) ** 0.5,
        "scale": torch.rand(kinds, generator=rng) + 0.5,
        "base": torch.randn(outputs, generator=rng),
        "rms_eps": 1e-6,
        "eps": 1e-6,
    }


def inputs(dims: Dims, rng: torch.Generator) -> dict[str, Any]:
    """Normal streams, as DeepSeek-V4 mixes them."""
    n = dims["n"]
    return {**random_mixer(n * (2 + n), 3, dims, rng), "iters": 20, "post_mult": 2.0}


# Of an op that reads streams of T tokens once and projects them to `outputs` numbers.
TEST_DIMS = (
    {"T": 5, "n": 4, "D": 37},
    {"T": 19, "n": 4, "D": 600},
    {"T": 18, "n": 4, "D": 96, "f32": 1},
    {"T": 1, "n": 4, "D": 1024},
    {"T": 3, "n": 2, "D": 1},
    {"T": 2, "n": 1, "D": 40},
    {"T": 4, "n": 7, "D": 300, "f32": 1},
    {"T": 0, "n": 4, "D": 16},
)
BENCH_DIMS = tuple({"T": t, "n": 4, "D": d} for d in (4096, 7168) for t in (1, 512))

OP = Op(
    fn=mhc_pre,
    family="mhc",
    args=(
        Arg("x", "T n D", "f32 bf16", "the streams of each token"),
        Arg("fn", "n*(2+n) n*D", "f32", "weights of the mixes"),
        Arg("scale", "3", "f32", "of the mixes for layer_in, post and comb"),
        Arg("base", "n*(2+n)", "f32", "added to the scaled mixes"),
    ),
    outs=(
        Out("layer_in", "T D", "x", "what the layer reads"),
        Out("post", "T n", "f32", "how much of the layer's result each stream gets"),
        Out("comb", "T n n", "f32", "how much of stream i stream j gets"),
    ),
    reference=reference,
    inputs=inputs,
    test_dims=TEST_DIMS,
    bench_dims=BENCH_DIMS,
    spoil=lambda x: {**x, "iters": 1},
    source="TileKernels mhc_pre, transformers DeepseekV4HyperConnection",
    max_err=2**-8,
    rows=("x",),
    result=MhcPre,
    flops=lambda d: 2.0 * d["T"] * d["n"] * d["D"] * (d["n"] * (2 + d["n"]) + 2),
    bytes=lambda d: d["T"] * d["D"] * 2.0 * (d["n"] + 1) + 4.0 * d["n"] ** 2 * (2 + d["n"]) * d["D"],
)

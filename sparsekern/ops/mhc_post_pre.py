"""Between two layers: the result of one to the streams, the streams to the input of the next."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparsekern.backend import launch
from sparsekern.ops import mhc_post, mhc_pre
from sparsekern.schema import Dims, Op, Out


class MhcPostPre(NamedTuple):
    """The streams between two layers, and what `mhc_pre` makes of them."""

    x: Tensor
    layer_in: Tensor
    post: Tensor
    comb: Tensor


def mhc_post_pre(
    y: Tensor,
    x: Tensor,
    post: Tensor,
    comb: Tensor,
    fn: Tensor,
    scale: Tensor,
    base: Tensor,
    *,
    iters: int,
    post_mult: float,
    rms_eps: float,
    eps: float,
    out: tuple[Tensor, Tensor, Tensor, Tensor] | None = None,
) -> MhcPostPre:
    """`mhc_post` of one layer and `mhc_pre` of the next in one pass over the streams.

        x' = mhc_post(y, x, post, comb)
        layer_in, post', comb' = mhc_pre(x', fn, scale, base, iters, post_mult, rms_eps, eps)

    The same bits as the two calls.
    """
    result: MhcPostPre = launch(OP, y, x, post, comb, fn, scale, base, iters, post_mult, rms_eps, eps, out)
    return result


def reference(
    y: Tensor,
    x: Tensor,
    post: Tensor,
    comb: Tensor,
    fn: Tensor,
    scale: Tensor,
    base: Tensor,
    *,
    iters: int,
    post_mult: float,
    rms_eps: float,
    eps: float,
) -> MhcPostPre:
    """One after the other."""
    streams = mhc_post.reference(y, x, post, comb)
    options: dict[str, Any] = {"iters": iters, "post_mult": post_mult, "rms_eps": rms_eps, "eps": eps}
    return MhcPostPre(streams, *mhc_pre.reference(streams, fn, scale, base, **options))


def inputs(dims: Dims, rng: torch.Generator) -> dict[str, Any]:
    """Those of the two ops."""
    mixer = {name: v for name, v in mhc_pre.inputs(dims, rng).items() if name != "x"}
    return {**mhc_post.inputs(dims, rng), **mixer}


def _flops(d: Dims) -> float:
    return mhc_post.OP.flops(d) + mhc_pre.OP.flops(d)


OP = Op(
    fn=mhc_post_pre,
    family="mhc",
    args=(*mhc_post.ARGS, *mhc_pre.OP.args[1:]),
    outs=(Out("x_new", "T n D", "x", "the streams between the layers"), *mhc_pre.OP.outs),
    reference=reference,
    inputs=inputs,
    test_dims=mhc_post.OP.test_dims,
    bench_dims=mhc_pre.BENCH_DIMS,
    spoil=lambda x: {**x, "iters": 1},
    source="mhc_post and mhc_pre",
    max_err=2**-7,
    rows=("y", "x", "post", "comb"),
    result=MhcPostPre,
    flops=_flops,
    bytes=lambda d: mhc_post.OP.bytes(d) + d["T"] * d["D"] * 2.0,
)

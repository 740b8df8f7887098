"""Attention of many queries over selected latent keys, whose first channels are the values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsekern.backend import launch
from sparsekern.ops import sparse_attention as with_values
from sparsekern.ops.sparse_attention import Attention
from sparsekern.schema import Arg, Dims, Op, Out


def sparse_mla_prefill(
    q: Tensor,
    kv: Tensor,
    indices: Tensor,
    *,
    scale: float,
    d_v: int = 512,
    sink: Tensor | None = None,
    lengths: Tensor | None = None,
    out: tuple[Tensor, Tensor, Tensor] | None = None,
) -> Attention:
    """Attend to the latent keys that each query names; all heads share them.

        logit[j] = scale * (q . kv[j]),  max_logits = max over j of logit[j]
        lse = ln(sum over j of exp(logit[j]))
        out = sum over j of exp(logit[j]) * kv[j, :d_v] / (exp(lse) + exp(sink))

    `sparse_attention` with the first `d_v` channels of the keys as values; what that says of indices,
    `lengths`, `sink`, queries without keys, rows that nobody names and the order of sums holds here. A
    query's place does not matter: what it may not see, its indices must not name.
    """
    result: Attention = launch(OP, q, kv, indices, sink, lengths, scale, d_v, out)
    return result


def reference(
    q: Tensor,
    kv: Tensor,
    indices: Tensor,
    *,
    scale: float,
    d_v: int = 512,
    sink: Tensor | None = None,
    lengths: Tensor | None = None,
) -> Attention:
    """`sparse_attention` with one head of keys and values."""
    keys = kv[:, None]
    return with_values.reference(q, keys, keys[..., :d_v], indices, scale=scale, sink=sink, lengths=lengths)


def inputs(dims: Dims, rng: torch.Generator) -> dict[str, Any]:
    """Those of `sparse_attention`, keys around 1."""
    x = with_values.inputs({**dims, "Hkv": 1, "Dk": dims["D"], "Dv": dims["D"]}, rng)
    names = ("q", "indices", "scale", "sink", "lengths")
    return {"kv": x["v"][:, 0], "d_v": dims["d_v"], **{name: x[name] for name in names if name in x}}


OP = Op(
    fn=sparse_mla_prefill,
    family="attention",
    args=(
        Arg("q", "S Hq D", "f32 bf16", "queries"),
        Arg("kv", "Skv D", "f32 bf16", "keys, whose first channels are values"),
        Arg("indices", "S topk", "i32", "the keys that each query sees"),
        Arg("sink", "Hq", "f32", "a logit of each head without a value; none: -infinity"),
        Arg("lengths", "S", "i32", "how many of its indices a query sees; none: all"),
    ),
    outs=(
        Out("out", "S Hq d_v", "q", "the weighted mean of the values"),
        Out("max_logits", "S Hq", "f32", "the largest logit"),
        Out("lse", "S Hq", "f32", "natural logarithm of the sum of exp(logit)"),
    ),
    reference=reference,
    inputs=inputs,
    test_dims=(
        {"S": 5, "Hq": 6, "Skv": 70, "D": 72, "topk": 37, "d_v": 64, "sink": 1, "lengths": 1},
        {"S": 2, "Hq": 5, "Skv": 600, "D": 35, "topk": 700, "d_v": 35, "f32": 1, "sink": 1},
        {"S": 3, "Hq": 64, "Skv": 150, "D": 576, "topk": 128, "d_v": 512},
        {"S": 1, "Hq": 1, "Skv": 1, "D": 1, "topk": 1, "d_v": 1},
        {"S": 3, "Hq": 2, "Skv": 9, "D": 16, "topk": 0, "d_v": 8, "sink": 1},
        {"S": 0, "Hq": 2, "Skv": 9, "D": 16, "topk": 4, "d_v": 8},
    ),
    bench_dims=(
        {"S": 8, "Hq": 128, "Skv": 65536, "D": 576, "topk": 2048, "d_v": 512, "all_there": 1},
        {"S": 64, "Hq": 64, "Skv": 8192, "D": 512, "topk": 512, "d_v": 512, "all_there": 1},
    ),
    spoil=lambda x: {**x, "scale": 1.1 * x["scale"]},
    source="FlashMLA 9241ae3 flash_mla_sparse_fwd",
    max_err=2**-7,
    rows=("q", "indices", "lengths"),
    result=Attention,
    flops=lambda d: 2.0 * d["S"] * d["topk"] * d["Hq"] * (d["D"] + d["d_v"]),
    bytes=lambda d: (
        (4.0 if d.get("f32") else 2.0) * d["S"] * (d["Hq"] * (d["D"] + d["d_v"]) + d["topk"] * d["D"])
    ),
)

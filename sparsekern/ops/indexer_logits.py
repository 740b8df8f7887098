"""Scores of the lightning indexer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsekern.backend import launch
from sparsekern.ops._indexer import (
    KEY_BYTES,
    outside,
    random_keys,
    random_queries,
    random_ranges,
    scores,
)
from sparsekern.schema import Arg, Dims, Op, Out


def indexer_logits(
    q: Tensor,
    k: Tensor,
    k_scale: Tensor | None,
    weights: Tensor,
    *,
    starts: Tensor | None = None,
    ends: Tensor | None = None,
    q_scale: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Score keys for queries of several heads each.

    out[i, j] = k_scale[j] * sum_h weights[i, h] * relu(sum_d q[i, h, d] * k[j, d])

    Query i sees keys starts[i] <= j < ends[i], of those that there are; for others `out` is -inf, whatever
    they hold. Without `starts` or `ends` it sees keys from the first, or to the last.

    Keys and queries have one dtype. FP8 keys have a scale each; what scales an FP8 query belongs into its
    weights. FP4 has UE8M0 scales for every 32 values of both, inside the sum over d. Those that are not
    quantised have no scales.

    Sums are float32 in a fixed order: score (i, j) is the same bits whichever others are asked for.
    """
    result: Tensor = launch(OP, q, k, k_scale, weights, starts, ends, q_scale, out)
    return result


def reference(
    q: Tensor,
    k: Tensor,
    k_scale: Tensor | None,
    weights: Tensor,
    *,
    starts: Tensor | None = None,
    ends: Tensor | None = None,
    q_scale: Tensor | None = None,
) -> Tensor:
    """Dequantise, sum in float64, round once."""
    s = scores(q, k, k_scale, weights, q_scale).float()
    return s.masked_fill(outside(len(q), len(k), starts, ends), -torch.inf)


def inputs(dims: Dims, rng: torch.Generator) -> dict[str, Any]:
    """Normal queries and keys of one kind. "garbage": the last key is, and nobody sees it; "wild": all do."""
    m, n = dims["M"], dims["N"]
    x = random_queries(m, dims, rng)
    x |= random_keys(n, dims, rng)
    if dims.get("ranges"):
        x |= random_ranges(m, n, rng)
    if dims.get("garbage") or dims.get("wild"):
        x["k"].view(torch.uint8)[-1] = 0xFF
    if dims.get("garbage"):
        x["ends"] = x.get("ends", torch.full((m,), n)).clamp(max=n - 1).int()
    return x


ARGS = (
    Arg("q", "M H D", "f32 bf16 e4m3 fp4", "queries, H heads each"),
    Arg("k", "N D", "f32 bf16 e4m3 fp4", "keys, in the dtype of q"),
    Arg("k_scale", "N | N D/32", "f32 e8m0", "of FP8 keys [N], of FP4 keys [N, D/32]", layout="dense"),
    Arg("weights", "M H", "f32", "of the heads; with a query's scale, if it has one"),
    Arg("starts", "M", "i32", "first key that a query sees"),
    Arg("ends", "M", "i32", "key after the last that it sees"),
    Arg("q_scale", "M H D/32", "e8m0", "of FP4 queries"),
)

OP = Op(
    fn=indexer_logits,
    family="indexer",
    args=ARGS,
    outs=(Out("out", "M N", "f32", "scores"),),
    reference=reference,
    inputs=inputs,
    test_dims=(
        {"M": 5, "N": 150, "H": 64, "D": 128, "kind": 2, "ranges": 1, "garbage": 1},
        {"M": 9, "N": 70, "H": 8, "D": 64, "kind": 3, "ranges": 1},
        {"M": 3, "N": 2100, "H": 16, "D": 32, "kind": 2, "garbage": 1},
        {"M": 4, "N": 90, "H": 3, "D": 46, "kind": 0, "ranges": 1, "garbage": 1},
        {"M": 7, "N": 129, "H": 32, "D": 96, "kind": 1, "ranges": 1, "garbage": 1},
        {"M": 5, "N": 33, "H": 5, "D": 50, "kind": 3},
        {"M": 2, "N": 40, "H": 300, "D": 10, "kind": 2, "wild": 1},
        {"M": 6, "N": 65, "H": 7, "D": 24, "kind": 0, "wild": 1},
        {"M": 1, "N": 1, "H": 1, "D": 2, "kind": 2},
        {"M": 3, "N": 0, "H": 8, "D": 32, "kind": 2},
        {"M": 0, "N": 9, "H": 8, "D": 32, "kind": 1},
    ),
    bench_dims=(
        {"M": 1, "N": 131072, "H": 64, "D": 128, "kind": 2},
        {"M": 64, "N": 32768, "H": 64, "D": 128, "kind": 2},
        {"M": 64, "N": 32768, "H": 64, "D": 128, "kind": 3},
        {"M": 64, "N": 8192, "H": 16, "D": 64, "kind": 1},
    ),
    spoil=lambda x: {**x, "weights": x["weights"].roll(1, -1)},
    source="DeepSeek-V3.2-Exp technical report, section 2.1; DeepGEMM 54e2261 fp8_mqa_logits",
    max_err=2**-16,
    rows=("q", "weights", "starts", "ends", "q_scale"),
    flops=lambda d: 2.0 * d["M"] * d["N"] * d["H"] * (d["D"] + 1),
    bytes=lambda d: d["N"] * (d["D"] * KEY_BYTES[d["kind"]] + 4.0) + 4.0 * d["M"] * d["N"],
)

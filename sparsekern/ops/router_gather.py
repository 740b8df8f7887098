"""From hidden states to rows for the experts, in one call."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from sparsekern.backend import launch
from sparsekern.ops import moe_gather, moe_permutation, quantize_fp8, route_hash, route_topk
from sparsekern.ops._small_floats import ScaleFormat, sample
from sparsekern.ops.route_topk import Scoring
from sparsekern.schema import Arg, Dims, Op, Out


class RoutedTokens(NamedTuple):
    """Rows sorted by expert: expert e owns rows `expert_offsets[e]` to `expert_offsets[e + 1]` of `x`."""

    x: Tensor
    x_scale: Tensor | None
    weights: Tensor
    ids: Tensor
    expert_offsets: Tensor
    row_token: Tensor
    row_slot: Tensor
    slot_row: Tensor


def router_gather(
    x: Tensor,
    *,
    router: Tensor | None = None,
    logits: Tensor | None = None,
    bias: Tensor | None = None,
    token_ids: Tensor | None = None,
    table: Tensor | None = None,
    top_k: int,
    scoring: Scoring | None = None,
    n_group: int = 1,
    topk_group: int = 1,
    renormalize: bool = True,
    scale: float = 1.0,
    quantize: Literal["fp8", "none"] = "fp8",
    alignment: int = 1,
    group_size: int = 128,
    scale_format: ScaleFormat = "fp32",
    num_rows: int | None = None,
    out: tuple[Tensor | None, ...] | None = None,
) -> RoutedTokens:
    """Route tokens and lay their rows out for the experts, quantised on the way.

        weights, ids = route_topk(logits), or route_hash(logits, token_ids, table) where there is a table
        expert_offsets, row_token, row_slot, slot_row = moe_permutation(ids)
        x, x_scale = quantize_fp8(x);  each gathered by row_token

    The results are to the bit those of `route_topk`, `route_hash`, `moe_permutation`, `quantize_fp8` and
    `moe_gather`, whose options these are; `scoring` is by default that of the op that routes. A row is read
    and quantised once for all its experts. With `quantize` "none" rows are copied and x_scale is None.
    Padding rows have row_token -1, zeros, and scale 0.

    A `router` instead of logits makes these on the way, a few tokens at a time: router @ x in fp32, summed
    over sixteen lanes in one order (docs/numerics.md), so that a token's experts do not depend on its batch.
    """
    how = scoring, n_group, topk_group, renormalize, scale, quantize, alignment, group_size, scale_format
    result: RoutedTokens = launch(OP, x, router, logits, bias, token_ids, table, top_k, *how, num_rows, out)
    return result


def reference(
    x: Tensor,
    *,
    router: Tensor | None = None,
    logits: Tensor | None = None,
    bias: Tensor | None = None,
    token_ids: Tensor | None = None,
    table: Tensor | None = None,
    top_k: int,
    scoring: Scoring | None = None,
    n_group: int = 1,
    topk_group: int = 1,
    renormalize: bool = True,
    scale: float = 1.0,
    quantize: Literal["fp8", "none"] = "fp8",
    alignment: int = 1,
    group_size: int = 128,
    scale_format: ScaleFormat = "fp32",
    num_rows: int | None = None,
) -> RoutedTokens:
    """One op after the other; logits in float64."""
    if logits is None:
        assert router is not None
        logits = (x.double() @ router.double().T).float()
    if table is None:
        routing = route_topk.reference(
            logits,
            top_k=top_k,
            scoring=scoring or "sigmoid",
            bias=bias,
            n_group=n_group,
            topk_group=topk_group,
            renormalize=renormalize,
            scale=scale,
        )
    else:
        assert token_ids is not None
        scoring = scoring or "sqrtsoftplus"
        routing = route_hash.reference(
            logits, token_ids, table, scoring=scoring, renormalize=renormalize, scale=scale
        )
    experts = logits.shape[1]
    rows = moe_permutation.reference(routing.ids, num_experts=experts, alignment=alignment, num_rows=num_rows)
    codes, x_scale = x, None
    if quantize == "fp8":
        codes, x_scale = quantize_fp8.reference(x, group_size=group_size, scale_format=scale_format)
        x_scale = moe_gather.reference(x_scale, rows.row_token)
    return RoutedTokens(moe_gather.reference(codes, rows.row_token), x_scale, *routing, *rows)


def inputs(dims: Dims, rng: torch.Generator) -> dict[str, Any]:
    """Rows of very different size, or normal ones where a router multiplies them."""
    t, h, e, k = dims["T"], dims["H"], dims["E"], dims["k"]
    floats = torch.float32 if dims.get("f32") else torch.bfloat16
    source = route_hash if dims.get("hash") else route_topk
    given = source.inputs({"T": t, "E": e, "k": k, "V": 50, "wild": dims.get("wild", 0)}, rng)
    given = {name: given[name] for name in ("logits", "token_ids", "table") if name in given}
    given |= {"x": sample((t, h), rng, floats), "top_k": k, "scale": 1.5}
    if "router" in dims:
        given["x"], given["logits"] = torch.randn(t, h, generator=rng).to(floats), None
        weight = torch.randn(e, h, generator=rng) * max(h, 1) ** -0.5
        given["router"] = weight.to((torch.bfloat16, torch.float32)[dims["router"]])
    if not dims.get("hash"):
        given |= {"bias": 0.2 * torch.randn(e, generator=rng), "n_group": dims.get("groups", 1)}
        given |= {"topk_group": dims.get("kept", 1)}
    if "scoring" in dims:
        given["scoring"] = ("sigmoid", "softmax", "sqrtsoftplus")[dims["scoring"]]
    if dims.get("copy"):
        given["quantize"] = "none"
    if dims.get("ue8m0"):
        given["scale_format"] = "ue8m0"
    given |= {name: dims[name] for name in ("alignment", "group_size") if name in dims}
    if "spare" in dims:
        given["num_rows"] = t * k + e * (dims.get("alignment", 1) - 1) + dims["spare"]
    return given


def _row_bytes(d: Dims) -> float:
    width = 4.0 if d.get("f32") else 2.0
    return d["H"] * (width if d.get("copy") else 1 + 4 / 128)


OP = Op(
    fn=router_gather,
    family="moe",
    args=(
        Arg("x", "T H", "f32 bf16", "one row per token"),
        Arg("router", "E H", "f32 bf16", "one row per expert; instead of logits"),
        Arg("logits", "T E", "f32 bf16", "one row per token; instead of a router. E is at most 1024"),
        Arg("bias", "E", "f32", "added to the scores for selection only; none: 0"),
        Arg("token_ids", "T", "i32", "rows of the table"),
        Arg(
            "table",
            "V top_k",
            "i32",
            "the experts of every token of the vocabulary, which nothing then selects",
        ),
    ),
    outs=(
        Out("x", "P H", "quantize x", 'codes, or with "none" values, one row per row of the permutation'),
        Out("x_scale", "P H/group_size", "scale_format", "what codes are multiplied by", when="quantize"),
        Out("weights", "T top_k", "f32", "in the order of ids"),
        Out("ids", "T top_k", "i32", "experts, best first, or the table's rows"),
        Out("expert_offsets", "E+1", "i32", "where each expert's rows begin; last, where they end"),
        Out("row_token", "P", "i32", "the token of each row, -1 on padding"),
        Out("row_slot", "P", "i32", "the slot of each row, -1 on padding"),
        Out("slot_row", "T top_k", "i32", "the row of each slot"),
    ),
    reference=reference,
    inputs=inputs,
    test_dims=(
        {"T": 37, "H": 384, "E": 64, "k": 6, "groups": 8, "kept": 3},
        {"T": 70, "H": 301, "E": 40, "k": 5, "router": 0, "scoring": 2, "alignment": 4},
        {"T": 3, "H": 257, "E": 19, "k": 4, "router": 1, "groups": 19, "kept": 7, "copy": 1},
        {"T": 41, "H": 96, "E": 150, "k": 8, "router": 1, "f32": 1, "group_size": 32, "ue8m0": 1},
        {"T": 6, "H": 40, "E": 24, "k": 3, "router": 0, "f32": 1, "hash": 1, "scoring": 1, "spare": 5},
        {"T": 21, "H": 200, "E": 30, "k": 4, "hash": 1, "wild": 1, "group_size": 24},
        {"T": 21, "H": 77, "E": 100, "k": 9, "wild": 1, "f32": 1, "copy": 1, "alignment": 16, "spare": 3},
        {"T": 1, "H": 1, "E": 1, "k": 1, "ue8m0": 1},
        {"T": 0, "H": 64, "E": 8, "k": 2, "router": 0},
    ),
    bench_dims=(
        *({"T": t, "H": 7168, "E": 256, "k": 8, "groups": 8, "kept": 4} for t in (1, 64, 4096)),
        *({"T": t, "H": 7168, "E": 256, "k": 8, "groups": 8, "kept": 4, "router": 0} for t in (1, 64, 4096)),
    ),
    spoil=lambda x: {**x, "logits": x["logits"].flip(0), "scale": 1.25},
    source="TileKernels 36d9e45 top2_sum_gate, get_fused_mapping, expand_to_fused, per_token_cast",
    max_err=2**-18,
    result=RoutedTokens,
    flops=lambda d: 2.0 * d["T"] * d["E"] * d["H"] if "router" in d else 30.0 * d["T"] * d["E"],
    bytes=lambda d: d["T"] * (d["H"] * (4.0 if d.get("f32") else 2.0) + d["k"] * _row_bytes(d)),
    dynamic={"P": "num_rows"},
)

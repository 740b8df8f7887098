"""Hash routing: experts looked up by token id, weighed by the router."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsekern.backend import launch
from sparsekern.ops.route_topk import Routing, Scoring, scores, weigh
from sparsekern.schema import Arg, Dims, Op, Out


def route_hash(
    logits: Tensor,
    token_ids: Tensor,
    table: Tensor,
    *,
    scoring: Scoring = "sqrtsoftplus",
    renormalize: bool = True,
    scale: float = 1.0,
    out: tuple[Tensor, Tensor] | None = None,
) -> Routing:
    """Look each token's experts up and weigh them by their scores.

    ids[t, :] = table[token_ids[t], :];  s = score(logits)[ids];  weights = s / (1e-20 + sum s) * scale

    Scores and weights are those of `route_topk`. An expert named twice counts in each slot. NaN weighs 0,
    an infinite logit scores like the largest finite one. Token ids outside the table are errors, and so are
    rows in use that name an expert outside the logits. At most 32 experts a token.
    """
    result: Routing = launch(OP, logits, token_ids, table, scoring, renormalize, scale, out)
    return result


def reference(
    logits: Tensor,
    token_ids: Tensor,
    table: Tensor,
    *,
    scoring: Scoring = "sqrtsoftplus",
    renormalize: bool = True,
    scale: float = 1.0,
) -> Routing:
    """The formula."""
    ids = table[token_ids.long()].long()
    return Routing(weigh(scores(logits, scoring).gather(1, ids), renormalize, scale), ids.int())


def inputs(dims: Dims, rng: torch.Generator) -> dict[str, Any]:
    """A random table; "wild" puts NaN and infinities among the logits."""
    t, e, v, k = dims["T"], dims["E"], dims["V"], dims["k"]
    index = torch.int64 if dims.get("i64") else torch.int32
    logits = 2 * torch.randn(t, e, generator=rng)
    if dims.get("wild"):
        lottery = torch.rand(t, e, generator=rng)
        for i, value in enumerate((torch.nan, torch.inf, -torch.inf, 3e38)):
            logits[(lottery > 0.1 * i) & (lottery < 0.1 * i + 0.1)] = value
    return {
        "logits": logits.to(torch.bfloat16 if dims.get("bf16") else torch.float32),
        "token_ids": torch.randint(v, (t,), generator=rng).to(index),
        "table": torch.randint(e, (v, k), generator=rng).to(index),
        "scoring": ("sqrtsoftplus", "softmax", "sigmoid")[dims.get("scoring", 0)],
        "scale": 1.5,
    }


OP = Op(
    fn=route_hash,
    family="moe",
    args=(
        Arg("logits", "T E", "f32 bf16", "one row per token"),
        Arg("token_ids", "T", "i32", "rows of the table"),
        Arg("table", "V k", "i32", "the experts of every token of the vocabulary"),
    ),
    outs=(
        Out("weights", "T k", "f32", "in the order of ids"),
        Out("ids", "T k", "i32", "the table's rows"),
    ),
    reference=reference,
    inputs=inputs,
    test_dims=(
        {"T": 19, "E": 256, "V": 100, "k": 6},
        {"T": 5, "E": 70, "V": 11, "k": 19, "scoring": 1, "i64": 1},
        {"T": 5, "E": 17, "V": 3, "k": 3, "scoring": 2, "bf16": 1},
        {"T": 33, "E": 24, "V": 9, "k": 4, "wild": 1},
        {"T": 33, "E": 24, "V": 9, "k": 4, "wild": 1, "scoring": 1},
        {"T": 1, "E": 1, "V": 1, "k": 1},
        {"T": 0, "E": 8, "V": 4, "k": 2},
    ),
    bench_dims=tuple({"T": t, "E": 256, "V": 129280, "k": 6, "i64": 1} for t in (1, 64, 4096)),
    spoil=lambda x: {**x, "table": x["table"].flip(0), "scale": 1.25},
    source="transformers DeepseekV4HashRouter",
    max_err=2**-19,
    rows=("logits", "token_ids"),
    result=Routing,
    flops=lambda d: 60.0 * d["T"] * d["k"],
    bytes=lambda d: 16.0 * d["T"] * d["k"],
)

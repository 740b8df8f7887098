"""The lightning indexer over a paged cache: the keys that score best."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsekern.backend import launch
from sparsekern.ops._indexer import KEY_BYTES, best_keys
from sparsekern.ops._indexer_pages import ARGS, paged_inputs, paged_scores, seen
from sparsekern.schema import Dims, Op, Out


def indexer_topk_paged(
    q: Tensor,
    cache: Tensor,
    weights: Tensor,
    context_lens: Tensor,
    block_table: Tensor,
    *,
    k_top: int,
    q_scale: Tensor | None = None,
    max_workspace_bytes: int | None = None,
    candidates: tuple[int, int] | None = None,
    physical: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """Find the keys of paged sequences that score best for every query.

    out[b*n + t] = sorted(top_k_top(scores of query t of sequence b)), then -1

    Scores, contexts and pages are those of `indexer_logits_paged`; the choice, `max_workspace_bytes` and
    `candidates` are those of `indexer_topk`. Keys count from the beginning of their sequence; with
    `physical` they are given as page * page_size + place instead, in the same order.
    """
    result: Tensor = launch(
        OP,
        q,
        cache,
        weights,
        context_lens,
        block_table,
        q_scale,
        k_top,
        max_workspace_bytes,
        candidates,
        physical,
        out,
    )
    return result


def reference(
    q: Tensor,
    cache: Tensor,
    weights: Tensor,
    context_lens: Tensor,
    block_table: Tensor,
    *,
    k_top: int,
    q_scale: Tensor | None = None,
    max_workspace_bytes: int | None = None,
    candidates: tuple[int, int] | None = None,
    physical: bool = False,
) -> Tensor:
    """All scores in float64, and a stable sort."""
    size, lens = cache.shape[1], seen(context_lens, q.shape[1])
    longest = int(lens.amax()) if len(lens) else 0
    best = best_keys(paged_scores(q, cache, weights, lens, block_table, q_scale, longest), k_top, candidates)
    if not physical:
        return best
    pages = block_table.repeat_interleave(q.shape[1], 0).gather(1, best.clamp_min(0) // size)
    return torch.where(best < 0, -1, pages * size + best % size).int()


def inputs(dims: Dims, rng: torch.Generator) -> dict[str, Any]:
    """Those of `indexer_logits_paged`; small integers, so that scores are exact and many tie."""
    x = paged_inputs({**dims, "exact": 1}, rng) | {"k_top": dims["k"], "physical": bool(dims.get("physical"))}
    if "block" in dims:
        x["candidates"] = (dims["block"], dims["count"])
    return x


OP = Op(
    fn=indexer_topk_paged,
    family="indexer",
    args=ARGS,
    outs=(Out("out", "B*n k_top", "i32", "keys, then -1"),),
    reference=reference,
    inputs=inputs,
    test_dims=(
        {"B": 3, "n": 2, "N": 1500, "page": 64, "H": 64, "D": 128, "kind": 2, "k": 100},
        {"B": 4, "n": 1, "N": 600, "page": 32, "H": 8, "D": 64, "kind": 3, "k": 64, "physical": 1},
        {
            "B": 2,
            "n": 3,
            "N": 900,
            "page": 7,
            "H": 16,
            "D": 128,
            "kind": 3,
            "k": 33,
            "lens_1d": 1,
            "physical": 1,
        },
        {
            "B": 2,
            "n": 2,
            "N": 3000,
            "page": 50,
            "H": 32,
            "D": 46,
            "kind": 2,
            "k": 80,
            "block": 64,
            "count": 4,
        },
        {"B": 3, "n": 1, "N": 700, "page": 64, "H": 16, "D": 64, "kind": 1, "k": 300, "physical": 1},
        {"B": 2, "n": 2, "N": 40, "page": 16, "H": 5, "D": 24, "kind": 0, "k": 64},
        {"B": 2, "n": 2, "N": 0, "page": 64, "H": 8, "D": 32, "kind": 2, "k": 3, "physical": 1},
        {"B": 0, "n": 1, "N": 9, "page": 64, "H": 8, "D": 32, "kind": 2, "k": 3},
    ),
    bench_dims=(
        {"B": 1, "n": 1, "N": 131072, "page": 64, "H": 64, "D": 128, "kind": 2, "k": 2048},
        {"B": 8, "n": 2, "N": 16384, "page": 64, "H": 64, "D": 128, "kind": 3, "k": 2048},
    ),
    spoil=lambda x: {**x, "weights": x["weights"].roll(1, -1)},
    source="DeepSeek-V3.2-Exp technical report, section 2.1; arXiv 2607.11976",
    flops=lambda d: 2.0 * d["B"] * d["n"] * d["N"] * d["H"] * (d["D"] + 1),
    bytes=lambda d: d["B"] * (d["N"] * (d["D"] * KEY_BYTES[d["kind"]] + 4.0) + 4.0 * d["n"] * d["k"]),
)

"""The lightning indexer: the keys that score best, without ever holding all scores."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsekern.backend import launch
from sparsekern.ops._indexer import KEY_BYTES, best_keys, outside, scores
from sparsekern.ops.indexer_logits import ARGS
from sparsekern.ops.indexer_logits import inputs as scored
from sparsekern.schema import Dims, Op, Out


def indexer_topk(
    q: Tensor,
    k: Tensor,
    k_scale: Tensor | None,
    weights: Tensor,
    *,
    k_top: int,
    starts: Tensor | None = None,
    ends: Tensor | None = None,
    q_scale: Tensor | None = None,
    max_workspace_bytes: int | None = None,
    candidates: tuple[int, int] | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Find the keys that score best for every query.

    out[i] = sorted(top_k_top(scores of query i))

    Scores are those of `indexer_logits`, to the bit, and are chosen as `topk_per_row` does: keys ascend, of
    equal scores the first are taken, NaN counts as -inf, and what is missing is -1. No key that a query does
    not see is chosen.

    Scores are made and dropped tile by tile: the call takes `max_workspace_bytes` of scratch at most (None:
    32 MB), however many keys there are. It changes nothing of the result.

    `candidates=(block, count)` chooses in two steps: first the `count` best blocks of `block` keys (0 to
    block - 1, and so on) by the best key of each that the query sees, then the best keys of those.
    """
    result: Tensor = launch(
        OP, q, k, k_scale, weights, starts, ends, q_scale, k_top, max_workspace_bytes, candidates, out
    )
    return result


def reference(
    q: Tensor,
    k: Tensor,
    k_scale: Tensor | None,
    weights: Tensor,
    *,
    k_top: int,
    starts: Tensor | None = None,
    ends: Tensor | None = None,
    q_scale: Tensor | None = None,
    max_workspace_bytes: int | None = None,
    candidates: tuple[int, int] | None = None,
) -> Tensor:
    """All scores in float64, and a stable sort."""
    s = scores(q, k, k_scale, weights, q_scale)
    return best_keys(s.masked_fill(outside(len(q), len(k), starts, ends), -torch.inf), k_top, candidates)


def inputs(dims: Dims, rng: torch.Generator) -> dict[str, Any]:
    """Those of `indexer_logits`; small integers, so that scores are exact and many tie."""
    x = scored({**dims, "exact": 1}, rng) | {"k_top": dims["k"]}
    if "block" in dims:
        x["candidates"] = (dims["block"], dims["count"])
    if "kbytes" in dims:
        x["max_workspace_bytes"] = dims["kbytes"] << 10
    return x


OP = Op(
    fn=indexer_topk,
    family="indexer",
    args=ARGS,
    outs=(Out("out", "M k_top", "i32", "keys, ascending, then -1"),),
    reference=reference,
    inputs=inputs,
    test_dims=(
        {"M": 5, "N": 1500, "H": 64, "D": 128, "kind": 2, "k": 100, "ranges": 1, "garbage": 1},
        {"M": 9, "N": 700, "H": 8, "D": 64, "kind": 3, "k": 64, "ranges": 1},
        {"M": 2, "N": 9001, "H": 16, "D": 32, "kind": 2, "k": 2048, "garbage": 1},
        {"M": 4, "N": 190, "H": 3, "D": 46, "kind": 0, "k": 33, "ranges": 1, "garbage": 1},
        {"M": 7, "N": 3000, "H": 32, "D": 96, "kind": 1, "k": 5, "block": 64, "count": 3, "garbage": 1},
        {"M": 4, "N": 2500, "H": 16, "D": 64, "kind": 2, "k": 99, "block": 7, "count": 40, "ranges": 1},
        {"M": 3, "N": 2000, "H": 5, "D": 50, "kind": 3, "k": 700, "block": 300, "count": 2, "kbytes": 128},
        {"M": 6, "N": 5000, "H": 40, "D": 16, "kind": 2, "k": 600, "kbytes": 256, "wild": 1},
        {"M": 5, "N": 20, "H": 8, "D": 24, "kind": 0, "k": 40, "wild": 1},
        {"M": 1, "N": 1, "H": 1, "D": 2, "kind": 2, "k": 1},
        {"M": 3, "N": 0, "H": 8, "D": 32, "kind": 2, "k": 2},
        {"M": 2, "N": 0, "H": 8, "D": 32, "kind": 1, "k": 2, "block": 4, "count": 4},
        {"M": 0, "N": 9, "H": 8, "D": 32, "kind": 1, "k": 3},
    ),
    bench_dims=(
        {"M": 1, "N": 131072, "H": 64, "D": 128, "kind": 2, "k": 2048},
        {"M": 64, "N": 32768, "H": 64, "D": 128, "kind": 2, "k": 2048},
        {"M": 64, "N": 8192, "H": 16, "D": 64, "kind": 1, "k": 256},
    ),
    spoil=lambda x: {**x, "weights": x["weights"].roll(1, -1)},
    source="DeepSeek-V3.2-Exp technical report, section 2.1; arXiv 2607.11976",
    rows=("q", "weights", "starts", "ends", "q_scale"),
    flops=lambda d: 2.0 * d["M"] * d["N"] * d["H"] * (d["D"] + 1),
    bytes=lambda d: d["N"] * (d["D"] * KEY_BYTES[d["kind"]] + 4.0) + 4.0 * d["M"] * d["k"],
)

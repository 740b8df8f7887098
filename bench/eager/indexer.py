"""The lightning indexer as one would write it in PyTorch, on keys widened beforehand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

import sparsekern
from sparsekern.ops._indexer_pages import page_keys, reach, seen
from sparsekern.weights import dequantised

PIECE = 4096  # keys whose products stay in the caches


def topk_per_row(scores: Tensor, *, k: int) -> Tensor:
    """Torch's own, in any order; ties as they fall."""
    return scores.topk(k, -1, sorted=False).indices.int()


def widened(x: Mapping[str, Any], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries [M, H, D], keys, their scales and weights."""
    fp4 = x["q"].dtype == torch.uint8
    q, k = (
        dequantised(x["q"], x.get("q_scale"), (1, 32)),
        dequantised(x["k"], x["k_scale"] if fp4 else None, (1, 32)),
    )
    scale = torch.ones(len(k)) if fp4 or x["k_scale"] is None else x["k_scale"]
    return q.to(dtype), k.to(dtype), scale, x["weights"].to(dtype)


def logits(q: Tensor, k: Tensor, scale: Tensor, weights: Tensor) -> Tensor:
    """A product, relu and another product, piece by piece; every query sees all keys."""
    out = scale.new_empty(len(q), len(k))
    for first in range(0, len(k), PIECE):
        part = slice(first, first + PIECE)
        for i, w in enumerate(weights):
            out[i, part] = torch.mv((k[part] @ q[i].T).relu_(), w)
    return out.mul_(scale)


def indexer_logits(dtype: torch.dtype) -> Callable[[Mapping[str, Any]], Callable[[], Any]]:
    """Scores by products of that dtype."""

    def prepare(x: Mapping[str, Any]) -> Callable[[], Any]:
        arguments = widened(x, dtype)
        return lambda: logits(*arguments)

    return prepare


def indexer_topk(dtype: torch.dtype) -> Callable[[Mapping[str, Any]], Callable[[], Any]]:
    """All scores, then torch's top-k."""

    def prepare(x: Mapping[str, Any]) -> Callable[[], Any]:
        arguments, k = widened(x, dtype), x["k_top"]
        return lambda: topk_per_row(logits(*arguments), k=k)

    return prepare


def indexer_logits_paged(x: Mapping[str, Any]) -> Callable[[], Any]:
    """Sequence by sequence: its pages gathered, widened to float32, multiplied."""
    q, cache, table = x["q"], x["cache"], x["block_table"]
    batch, n, _, dim = q.shape
    lens = seen(x["context_lens"], n)
    columns = int(x.get("max_context_len") or reach(cache, table) or 0)
    fp4, weights = q.dtype == torch.uint8, x["weights"].unflatten(0, (batch, n))
    queries = dequantised(q, x.get("q_scale"), (1, 32)).float()

    def run() -> Tensor:
        out = torch.full((batch, n, columns), -torch.inf)
        for b, own in enumerate(lens.view(batch, n).tolist()):
            keys, scale = page_keys(cache, table[b], max(own), dim, q.dtype)
            wide = dequantised(keys, scale if fp4 else None, (1, 32)).float()
            factors = torch.ones(len(wide)) if fp4 or scale is None else scale
            scores = logits(queries[b], wide, factors, weights[b])
            for t, count in enumerate(own):
                out[b, t, :count] = scores[t, :count]
        return out.flatten(0, 1)

    return run


def indexer_topk_paged(x: Mapping[str, Any]) -> Callable[[], Any]:
    """All scores, then torch's top-k."""
    scores, k = indexer_logits_paged(x), x["k_top"]

    def run() -> Tensor:
        found = scores().topk(k, -1, sorted=False)
        best: Tensor = found.indices.masked_fill_(found.values == -torch.inf, -1).int()
        return best

    return run


def in_two_steps(x: Mapping[str, Any]) -> Callable[[], Any]:
    """Our scores, then our top-k, both into memory that is there."""
    k_top, keys = x["k_top"], {name: value for name, value in x.items() if name != "k_top"}
    scores = sparsekern.indexer_logits(**keys)
    best = sparsekern.topk_per_row(scores, k=k_top)
    return lambda: sparsekern.topk_per_row(sparsekern.indexer_logits(**keys, out=scores), k=k_top, out=best)

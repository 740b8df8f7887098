"""The lightning indexer as one would write it in PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def topk_per_row(scores: Tensor, *, k: int) -> Tensor:
    """Torch's own, in any order; ties as they fall."""
    return scores.topk(k, -1, sorted=False).indices.int()


def indexer_logits(q: Tensor, k: Tensor, k_scale: Tensor | None, weights: Tensor) -> Tensor:
    """Float32 products, which torch has fast everywhere, in pieces that stay in the caches; no ranges."""
    logits = weights.new_empty(len(q), len(k))
    queries = q.float()
    for first in range(0, len(k), 4096):
        keys = k[first : first + 4096].float()
        for i, w in enumerate(weights):
            torch.mv((keys @ queries[i].T).relu_(), w, out=logits[i, first : first + 4096])
    return logits if k_scale is None else logits.mul_(k_scale)

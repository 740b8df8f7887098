"""2:4 sparsity in PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def sparsify_2to4(w: Tensor, *, importance: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The two largest of each four by topk, gathered."""
    score = w.float().abs()
    if importance is not None:
        score *= importance
    kept = score.unflatten(-1, (-1, 4)).topk(2, -1).indices.sort(-1).values
    values = w.unflatten(-1, (-1, 4)).gather(-1, kept).flatten(-2)
    masks = (1 << kept).sum(-1).to(torch.uint8)
    return values, masks[..., 0::2] | masks[..., 1::2] << 4

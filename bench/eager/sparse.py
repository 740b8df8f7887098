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
    bits = w.view(torch.uint8) if w.element_size() == 1 else w  # FP8 is not gathered
    values = bits.unflatten(-1, (-1, 4)).gather(-1, kept).flatten(-2).view(w.dtype)
    masks = (1 << kept).sum(-1).to(torch.uint8)
    return values, masks[..., 0::2] | masks[..., 1::2] << 4

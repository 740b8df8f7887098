"""Attention as one would write it in PyTorch to be fast."""

from __future__ import annotations

import torch
from torch import Tensor


def merge_attn_states(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """The formula, empty sides as -infinity; what they hold is not looked for."""
    lse_a, lse_b = (torch.where(s == torch.inf, -torch.inf, s) for s in (lse_a, lse_b))
    lse = torch.logaddexp(lse_a, lse_b)
    out = (lse_a - lse).exp()[..., None] * out_a + (lse_b - lse).exp()[..., None] * out_b
    return out.to(out_a.dtype), lse

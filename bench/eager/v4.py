"""Positions and compressed keys as one would write them in PyTorch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sparsekern.ops.rope import frequencies


def rope(
    x: Tensor,
    positions: Tensor,
    *,
    theta: float,
    rotary_dim: int,
    layout: str,
    offset: int,
    yarn: Mapping[str, float] | None = None,
) -> Tensor:
    """As transformers has it for DeepSeek-V4; what follows the rotated channels is not looked for."""
    assert layout == "interleaved" and offset + rotary_dim == x.shape[-1]
    angle = positions.float()[:, None] * frequencies(theta, rotary_dim, yarn)
    angle = angle.repeat_interleave(2, -1).view(len(x), *(1,) * (x.dim() - 2), rotary_dim)
    kept, turned = x[..., :offset], x[..., offset:].float()
    other = torch.stack((-turned[..., 1::2], turned[..., 0::2]), -1).flatten(-2)
    return torch.cat([kept, (turned * angle.cos() + other * angle.sin()).to(x.dtype)], -1)

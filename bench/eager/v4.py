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


def compress_kv(
    kv: Tensor,
    gate: Tensor,
    ape: Tensor,
    *,
    ratio: int,
    overlap: bool,
    norm_weight: Tensor,
    eps: float,
    state: Tensor | None = None,
) -> Tensor:
    """Windows as a dimension, as transformers has it; a state only adds its rows."""
    if state is not None:
        old_kv, old_gate = state.to(kv.dtype).chunk(2, 1)
        kv, gate = torch.cat([old_kv, kv]), torch.cat([old_gate, gate])
    used = len(kv) // ratio * ratio
    values, scores = kv[:used].unflatten(0, (-1, ratio)), gate[:used].unflatten(0, (-1, ratio)) + ape
    if overlap:
        d = len(norm_weight)
        values, scores = (
            torch.cat(
                [torch.nn.functional.pad(t[:-1, :, :d], (0, 0, 0, 0, 1, 0), value=empty), t[..., d:]], 1
            )
            for t, empty in ((values, 0.0), (scores, -torch.inf))
        )
    mean = (values * scores.softmax(1, torch.float32).to(kv.dtype)).sum(1)
    return torch.nn.functional.rms_norm(mean, mean.shape[-1:], norm_weight, eps)

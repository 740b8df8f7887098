"""Hyper-connections as one would write them in PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def sinkhorn(logits: Tensor, *, iters: int, eps: float) -> Tensor:
    """As DeepSeek's reference has it."""
    m = logits.softmax(-1) + eps
    m = m / (m.sum(-2, keepdim=True) + eps)
    for _ in range(iters - 1):
        m = m / (m.sum(-1, keepdim=True) + eps)
        m = m / (m.sum(-2, keepdim=True) + eps)
    return m


def _mixes(x: Tensor, fn: Tensor, rms_eps: float) -> Tensor:
    row = x.flatten(1).float()
    return F.linear(row, fn) * torch.rsqrt(row.square().mean(-1, keepdim=True) + rms_eps)


def _collapsed(x: Tensor, weight: Tensor) -> Tensor:
    return (weight[..., None] * x).sum(1).to(x.dtype)


def mhc_pre(
    x: Tensor,
    fn: Tensor,
    scale: Tensor,
    base: Tensor,
    *,
    iters: int,
    post_mult: float,
    rms_eps: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """One projection, then three kinds of weights."""
    n = x.shape[1]
    mix = _mixes(x, fn, rms_eps)
    pre = torch.sigmoid(mix[:, :n] * scale[0] + base[:n]) + eps
    post = post_mult * torch.sigmoid(mix[:, n : 2 * n] * scale[1] + base[n : 2 * n])
    comb = (mix[:, 2 * n :] * scale[2] + base[2 * n :]).unflatten(1, (n, n))
    return _collapsed(x, pre), post, sinkhorn(comb, iters=iters, eps=eps)


def mhc_post(y: Tensor, x: Tensor, post: Tensor, comb: Tensor) -> Tensor:
    """A batch of small matrix products."""
    mixed = torch.matmul(comb.transpose(1, 2), x.float())
    return (post[..., None] * y[:, None] + mixed).to(x.dtype)


def mhc_post_pre(
    y: Tensor,
    x: Tensor,
    post: Tensor,
    comb: Tensor,
    fn: Tensor,
    scale: Tensor,
    base: Tensor,
    *,
    iters: int,
    post_mult: float,
    rms_eps: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One after the other."""
    streams = mhc_post(y, x, post, comb)
    return streams, *mhc_pre(
        streams, fn, scale, base, iters=iters, post_mult=post_mult, rms_eps=rms_eps, eps=eps
    )


def mhc_head(x: Tensor, fn: Tensor, scale: Tensor, base: Tensor, *, rms_eps: float, eps: float) -> Tensor:
    """A projection and a weighted sum."""
    return _collapsed(x, torch.sigmoid(_mixes(x, fn, rms_eps) * scale + base) + eps)

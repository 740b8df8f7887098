"""Engram as one would write it in PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def engram_hash(ngram_ids: Tensor, multipliers: Tensor, primes: Tensor, offsets: Tensor) -> Tensor:
    """As DeepSeek's reference has it."""
    products = ngram_ids.long() * multipliers[:, None]
    h, columns = products[..., 0], []
    for n in range(1, ngram_ids.shape[1]):
        h = h ^ products[..., n]
        columns.append(h[..., None] % primes[:, n - 1, None].long())
    return (torch.cat(columns, -1) + offsets[:, None]).int()


def engram_lookup(table: Tensor, rows: Tensor, *, scale: Tensor | None = None) -> Tensor:
    """Rows by index; -1 is not looked for."""
    at = rows.reshape(-1).clamp_min(0)
    if scale is None:
        return table.index_select(0, at).view(len(rows), -1)
    codes = table.view(torch.uint8).index_select(0, at).view(table.dtype).unflatten(1, (-1, 32))
    factors = scale.view(torch.uint8).index_select(0, at).view(scale.dtype).float()
    y: Tensor = (codes.float() * factors[..., None]).bfloat16().view(len(rows), -1)
    return y


def engram_gate(x: Tensor, k: Tensor, v: Tensor, w: Tensor, *, eps: float) -> Tensor:
    """As DeepSeek's reference has it."""
    a, b = x.float(), k.float()
    ra, rb = (torch.rsqrt(t.square().mean(-1) + eps) for t in (a, b))
    d = (a * w * b).sum(-1) * ra * rb * x.shape[-1] ** -0.5
    gate = torch.sigmoid(d.sign() * d.abs().clamp_min(1e-6).sqrt())
    y: Tensor = (a + gate[..., None] * v[:, None]).to(x.dtype)
    return y

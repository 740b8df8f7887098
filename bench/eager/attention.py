"""Attention as one would write it in PyTorch to be fast."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .kv import kv_read


def sparse_mla_prefill(q: Tensor, kv: Tensor, indices: Tensor, *, scale: float, d_v: int = 512) -> Tensor:
    """Gather, two matrix products and a softmax between them; indices that are none are not looked for."""
    keys = kv.index_select(0, indices.reshape(-1).clamp(0, len(kv) - 1)).unflatten(0, indices.shape)
    logits = (q @ keys.transpose(1, 2)).float() * scale
    y: Tensor = logits.softmax(-1).to(q.dtype) @ keys[..., :d_v]
    return y


def sparse_mla_decode(
    q: Tensor,
    pool: Tensor,
    indices: Tensor,
    *,
    format: str,
    page_size: int,
    scale: float,
    d_v: int = 512,
    extra_pool: Tensor | None = None,
    extra_indices: Tensor | None = None,
    extra_page_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Read the records as values; then two products and a softmax between them."""
    parts = [(pool, indices, page_size)]
    if extra_pool is not None and extra_indices is not None and extra_page_size is not None:
        parts.append((extra_pool, extra_indices, extra_page_size))
    keys = torch.cat(
        [kv_read(p, i.flatten(), format=format, page_size=s).unflatten(0, i.shape) for p, i, s in parts], 2
    )
    logits = (q @ keys.transpose(2, 3)).float() * scale
    y: Tensor = logits.softmax(-1).to(q.dtype) @ keys[..., :d_v]
    return y, logits.logsumexp(-1).transpose(1, 2)


def mla_decode(
    q: Tensor, cache: Tensor, block_table: Tensor, seq_lens: Tensor, *, scale: float, d_v: int = 512
) -> tuple[Tensor, Tensor]:
    """Sequence by sequence: its pages side by side, torch's attention, and the sums again for `lse`."""
    outs, sums = [], []
    n = q.shape[1]
    for one, table, length in zip(q, block_table, seq_lens.tolist(), strict=True):
        keys = cache[table[: -(-length // cache.shape[1])].long()].flatten(0, 1)[:length, 0]
        logits = (one @ keys.T).float() * scale
        later = torch.ones(n, length, dtype=torch.bool).triu(length - n + 1)
        logits.masked_fill_(later[:, None], -torch.inf)
        outs.append(logits.softmax(-1).to(q.dtype) @ keys[:, :d_v])
        sums.append(logits.logsumexp(-1).T)
    return torch.stack(outs), torch.stack(sums)


def sparse_attention(
    q: Tensor, k: Tensor, v: Tensor, indices: Tensor | None = None, *, scale: float, causal: bool = False
) -> Tensor:
    """Torch's own attention, over gathered keys where some are named; `causal` from the last query on."""
    if indices is None:
        mask = None
        if causal:
            mask = torch.ones(len(q), len(k), dtype=torch.bool).tril(len(k) - len(q))
        q, k, v = (t.transpose(0, 1)[None] for t in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, mask, scale=scale, enable_gqa=True)
        return y[0].transpose(0, 1)
    k, v = (
        t.index_select(0, indices.reshape(-1)).unflatten(0, indices.shape).transpose(1, 2) for t in (k, v)
    )
    return F.scaled_dot_product_attention(q[:, :, None], k, v, scale=scale, enable_gqa=True)[:, :, 0]


def merge_attn_states(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """The formula, empty sides as -infinity; what they hold is not looked for."""
    lse_a, lse_b = (torch.where(s == torch.inf, -torch.inf, s) for s in (lse_a, lse_b))
    lse = torch.logaddexp(lse_a, lse_b)
    out = (lse_a - lse).exp()[..., None] * out_a + (lse_b - lse).exp()[..., None] * out_b
    return out.to(out_a.dtype), lse

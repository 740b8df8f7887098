"""The paged KV cache in PyTorch: pools seen as records and footers, tiles as a dimension."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sparsekern.ops._kv import RECORDS, Record

from .v4 import rope


def _parts(pool: Tensor, r: Record, page_size: int) -> tuple[Tensor, Tensor]:
    """Every record's data, and every record's scales, [pages, page_size, bytes]."""
    data = pool[:, : page_size * r.data].view(-1, page_size, r.data)
    if not r.footer:
        return data, data[..., r.codes : r.codes + r.scales]
    footer = pool[:, page_size * r.data : page_size * (r.data + r.scales)]
    return data, footer.view(-1, page_size, r.scales)


def e2m1(y: Tensor) -> Tensor:
    """Codes of values, two in a byte; ties fall."""
    middles = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    codes = torch.bucketize(y.abs(), middles).to(torch.uint8) | (y < 0).to(torch.uint8) << 3
    return codes[..., 0::2] | codes[..., 1::2] << 4


def _encoded(r: Record, values: Tensor) -> tuple[Tensor, Tensor]:
    tiles = values[:, : r.coded].float().unflatten(-1, (-1, r.tile))
    amax = tiles.abs().amax(-1, keepdim=True).clamp_min(1e-4)
    scale = torch.exp2(torch.ceil(torch.log2(amax / (6 if r.fp4 else 448))))
    y = (tiles / scale).flatten(-2)
    codes = e2m1(y) if r.fp4 else y.to(torch.float8_e4m3fn).view(torch.uint8)
    if r.fp32_scales:
        return codes, scale.squeeze(-1).view(torch.uint8)
    return codes, (scale.squeeze(-1).view(torch.int32) >> 23).to(torch.uint8)


def kv_write(pool: Tensor, slots: Tensor, values: Tensor, *, format: str, page_size: int) -> None:
    """Quantise, then put by index; skipped slots are not looked for."""
    slots = slots.clamp_min(0)
    page, place = slots // page_size, slots % page_size
    if format == "bf16":
        pool[page, place] = values
        return
    r = RECORDS[format]
    data, footer = _parts(pool, r, page_size)
    codes, scales = _encoded(r, values)
    rest = values[:, r.coded :].contiguous().view(torch.uint8)
    if not r.footer:
        data.view(-1, r.data).index_copy_(0, slots, torch.cat([codes, scales, rest], 1))
        return
    data[page, place] = torch.cat([codes, rest], 1)
    footer[page, place, : scales.shape[1]] = scales


def norm_rope_kv_write(
    pool: Tensor,
    slots: Tensor,
    values: Tensor,
    positions: Tensor,
    norm_weight: Tensor,
    *,
    eps: float,
    theta: float,
    rotary_dim: int,
    layout: str,
    offset: int,
    yarn: Mapping[str, float],
    format: str,
    page_size: int,
) -> None:
    """One after the other."""
    latent, rest = values.split([len(norm_weight), values.shape[1] - len(norm_weight)], 1)
    x = latent.float()
    y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * norm_weight.float()
    rotated = rope(
        torch.cat([y.to(values.dtype), rest], 1),
        positions,
        theta=theta,
        rotary_dim=rotary_dim,
        layout=layout,
        offset=offset,
        yarn=yarn,
    )
    kv_write(pool, slots, rotated, format=format, page_size=page_size)


def kv_read(pool: Tensor, slots: Tensor, *, format: str, page_size: int) -> Tensor:
    """Take by index, then multiply; slots below 0 are not looked for."""
    slots = slots.clamp_min(0)
    page, place = slots // page_size, slots % page_size
    if format == "bf16":
        return pool[page, place]
    r = RECORDS[format]
    data, footer = _parts(pool, r, page_size)
    record, scales = data[page, place], footer[page, place, : r.coded // r.tile * (4 if r.fp32_scales else 1)]
    if r.fp4:
        table = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
        codes = record[:, : r.codes]
        values = table[torch.stack([codes & 15, codes >> 4], -1).flatten(-2).int()]
    else:
        values = record[:, : r.codes].contiguous().view(torch.float8_e4m3fn).float()
    scale = (scales.contiguous() if r.fp32_scales else scales.int() << 23).view(torch.float32)
    coded = (values.unflatten(-1, (-1, r.tile)) * scale[..., None]).flatten(-2).bfloat16()
    rest = record[:, r.data - 2 * (r.dim - r.coded) :].contiguous().view(torch.bfloat16)
    return torch.cat([coded, rest], -1)


def kv_gather(
    pool: Tensor, block_table: Tensor, seq_lens: Tensor, *, format: str, page_size: int
) -> Tensor | tuple[Tensor, Tensor]:
    """Sequences one by one, whole pages where records are plain or kept as they are."""
    slots = torch.cat(
        [
            (row[:, None] * page_size + torch.arange(page_size)).flatten()[:n]
            for row, n in zip(block_table, seq_lens.tolist(), strict=True)
        ]
    )
    if not format.startswith("index"):
        return kv_read(pool, slots, format=format, page_size=page_size)
    r = RECORDS[format]
    data, footer = _parts(pool, r, page_size)
    page, place = slots // page_size, slots % page_size
    if r.fp4:
        return data[page, place], footer[page, place]
    return data[page, place].view(torch.float8_e4m3fn), footer[page, place].view(torch.float32).squeeze(-1)


def kv_copy_pages(src_pool: Tensor, dst_pool: Tensor, pairs: Tensor) -> None:
    """By index."""
    dst_pool.index_copy_(0, pairs[:, 1], src_pool.index_select(0, pairs[:, 0]))

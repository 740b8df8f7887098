"""The ops as one would write them in PyTorch to be fast: what `sparsekern bench ops` compares with.

A function here has the name and the arguments of its op, but weights come as bf16: torch has no faster way to
multiply by FP8 or FP4 on a CPU than to have widened them before.
"""

from __future__ import annotations

import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention import merge_attn_states as merge_attn_states
from .attention import mla_decode as mla_decode
from .attention import sparse_attention as sparse_attention
from .attention import sparse_mla_decode as sparse_mla_decode
from .attention import sparse_mla_prefill as sparse_mla_prefill
from .engram import engram_gate as engram_gate
from .engram import engram_hash as engram_hash
from .engram import engram_lookup as engram_lookup
from .indexer import topk_per_row as topk_per_row
from .kv import e2m1
from .kv import kv_copy_pages as kv_copy_pages
from .kv import kv_gather as kv_gather
from .kv import kv_read as kv_read
from .kv import kv_write as kv_write
from .kv import norm_rope_kv_write as norm_rope_kv_write
from .mhc import mhc_head as mhc_head
from .mhc import mhc_post as mhc_post
from .mhc import mhc_post_pre as mhc_post_pre
from .mhc import mhc_pre as mhc_pre
from .mhc import sinkhorn as sinkhorn
from .sparse import sparsify_2to4 as sparsify_2to4
from .v4 import compress_kv as compress_kv
from .v4 import rope as rope

# What torch's way leaves out.
UNLIKE = {
    "grouped_gemm": "leaves rows past the last expert unset",
    "moe_gather": "looks for no -1",
    "moe_combine": "looks for no -1",
    "moe_permutation": "pads no segments",
    "router_gather": "pads no segments, looks for no -1",
    "topk_per_row": "in any order",
}


def rms_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, eps: float) -> Tensor:
    """Torch's own."""
    y = F.rms_norm(x, x.shape[-1:], weight, eps)
    return y if bias is None else y + bias


def layer_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, eps: float) -> Tensor:
    """Torch's own, which wants weight and bias in one dtype."""
    w, b = (None if t is None else t.to(x.dtype) for t in (weight, bias))
    return F.layer_norm(x, x.shape[-1:], w, b, eps)


def swiglu(gate_up: Tensor, *, limit: float | None = None, row_weight: Tensor | None = None) -> Tensor:
    """In float32, rounded once."""
    gate, up = gate_up.float().chunk(2, -1)
    if limit is not None:
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    y = F.silu(gate) * up
    return (y if row_weight is None else y * row_weight[..., None]).to(gate_up.dtype)


def _scale(amax: Tensor, scale_format: str) -> Tensor:
    scale = amax / 448
    return torch.exp2(torch.ceil(torch.log2(scale))) if scale_format == "ue8m0" else scale


def quantize_fp8(
    x: Tensor, *, group_size: int = 128, scale_format: str = "fp32", amax_floor: float = 1e-4
) -> tuple[Tensor, Tensor]:
    """Groups as a dimension of their own."""
    groups = x.float().unflatten(-1, (-1, group_size))
    scale = _scale(groups.abs().amax(-1, keepdim=True).clamp_min(amax_floor), scale_format)
    q = (groups / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
    stored = torch.float8_e8m0fnu if scale_format == "ue8m0" else torch.float32
    return q.flatten(-2), scale.squeeze(-1).to(stored)


def quantize_fp4(
    x: Tensor, *, group_size: int = 32, amax_floor: float = 6 * 2**-126
) -> tuple[Tensor, Tensor]:
    """Groups as a dimension of their own, codes by bisection."""
    groups = x.float().unflatten(-1, (-1, group_size))
    amax = groups.abs().amax(-1, keepdim=True).clamp_min(amax_floor)
    scale = torch.exp2(torch.ceil(torch.log2(amax / 6)))
    return e2m1((groups / scale).flatten(-2)), scale.squeeze(-1).to(torch.float8_e8m0fnu)


def quantize_fp8_blocks(
    w: Tensor, *, block: tuple[int, int] = (128, 128), scale_format: str = "fp32", amax_floor: float = 1e-4
) -> tuple[Tensor, Tensor]:
    """Blocks as two dimensions of their own."""
    blocks = w.float().unflatten(-1, (-1, block[1])).unflatten(-3, (-1, block[0]))
    scale = _scale(blocks.abs().amax((-3, -1), keepdim=True).clamp_min(amax_floor), scale_format)
    q = (blocks / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
    stored = torch.float8_e8m0fnu if scale_format == "ue8m0" else torch.float32
    return q.flatten(-2).flatten(-3, -2), scale.squeeze(-1).squeeze(-2).to(stored)


def swiglu_quantize_fp8(
    gate_up: Tensor,
    *,
    limit: float | None = None,
    row_weight: Tensor | None = None,
    group_size: int = 128,
    scale_format: str = "fp32",
) -> tuple[Tensor, Tensor]:
    """One after the other."""
    y = swiglu(gate_up.float(), limit=limit, row_weight=row_weight)
    return quantize_fp8(y, group_size=group_size, scale_format=scale_format)


def dequantize(
    q: Tensor, scale: Tensor, *, block: tuple[int, int] = (1, 128), dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    """Codes times scales, blocks as dimensions; FP4 by a table."""
    if q.dtype == torch.uint8:
        table = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
        values = table[torch.stack([q & 15, q >> 4], -1).flatten(-2).int()]
    else:
        values = q.float()
    blocks = values.unflatten(-1, (-1, block[1])).unflatten(-3, (-1, block[0]))
    y: Tensor = blocks * scale.float()[..., :, None, :, None]
    return y.to(dtype).flatten(-2).flatten(-3, -2)


@cache
def _sylvester(d: int) -> Tensor:
    h = torch.ones(1, 1)
    while len(h) < d:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])
    return h / math.sqrt(d)


def hadamard(x: Tensor) -> Tensor:
    """Matrix products in float32: a large one as two small ones, its Kronecker factors."""
    d = x.shape[-1]
    if d <= 256:
        return (x.float() @ _sylvester(d)).to(x.dtype)
    right = 1 << (d.bit_length() // 2)
    y = x.float().unflatten(-1, (d // right, right)) @ _sylvester(right)
    z: Tensor = _sylvester(d // right) @ y
    return z.flatten(-2).to(x.dtype)


def _scores(logits: Tensor, scoring: str) -> Tensor:
    if scoring == "softmax":
        return logits.float().softmax(-1)
    return logits.float().sigmoid() if scoring == "sigmoid" else F.softplus(logits.float()).sqrt()


def route_topk(
    logits: Tensor,
    *,
    top_k: int,
    scoring: str = "sigmoid",
    bias: Tensor | None = None,
    n_group: int = 1,
    topk_group: int = 1,
    renormalize: bool = True,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """The router of DeepSeek's own inference code."""
    s = _scores(logits, scoring)
    choice = s if bias is None else (logits.float() if scoring == "softmax" else s) + bias
    if n_group != topk_group:
        groups = choice.unflatten(-1, (n_group, -1))
        kept = groups.topk(2, -1).values.sum(-1).topk(topk_group, -1).indices
        outside = torch.ones_like(groups[..., 0], dtype=torch.bool).scatter_(-1, kept, False)
        choice = groups.masked_fill(outside[..., None], -torch.inf).flatten(-2)
    ids = choice.topk(top_k, -1).indices
    weights = s.gather(-1, ids)
    if renormalize:
        weights = weights / weights.sum(-1, keepdim=True)
    return weights * scale, ids.int()


def route_hash(
    logits: Tensor,
    token_ids: Tensor,
    table: Tensor,
    *,
    scoring: str = "sqrtsoftplus",
    renormalize: bool = True,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Look up, gather, normalise."""
    ids = table[token_ids]
    weights = _scores(logits, scoring).gather(-1, ids.long())
    if renormalize:
        weights = weights / weights.sum(-1, keepdim=True)
    return weights * scale, ids.int()


def moe_permutation(ids: Tensor, *, num_experts: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A stable sort; no padding."""
    flat = ids.reshape(-1)
    order = torch.argsort(flat, stable=True)
    counts = torch.bincount(flat, minlength=num_experts)
    offsets = F.pad(counts.cumsum(0), (1, 0)).int()
    slots = torch.empty_like(order)
    slots[order] = torch.arange(len(order))
    return offsets, (order // ids.shape[1]).int(), order.int(), slots.view(ids.shape).int()


def moe_gather(x: Tensor, row_token: Tensor) -> Tensor:
    """Rows by index; -1 is not looked for."""
    whole = x if x.element_size() > 1 else x.view(torch.uint8)
    return whole.index_select(0, row_token.clamp_min(0)).view(x.dtype)


def moe_combine(y: Tensor, slot_row: Tensor, weights: Tensor | None = None) -> Tensor:
    """Gather, weigh, add in float32; -1 is not looked for."""
    rows: Tensor = y.index_select(0, slot_row.reshape(-1).clamp_min(0)).unflatten(0, slot_row.shape).float()
    return (rows if weights is None else rows * weights[..., None]).sum(1).to(y.dtype)


def router_gather(
    x: Tensor,
    *,
    router: Tensor | None = None,
    logits: Tensor | None = None,
    bias: Tensor | None = None,
    top_k: int,
    scoring: str | None = None,
    n_group: int = 1,
    topk_group: int = 1,
    scale: float = 1.0,
) -> tuple[Tensor, ...]:
    """One after the other; logits in float32."""
    if logits is None:
        assert router is not None
        logits = F.linear(x.float(), router.float())
    weights, ids = route_topk(
        logits,
        top_k=top_k,
        scoring=scoring or "sigmoid",
        bias=bias,
        n_group=n_group,
        topk_group=topk_group,
        scale=scale,
    )
    offsets, row_token, *rest = moe_permutation(ids, num_experts=logits.shape[1])
    codes, x_scale = quantize_fp8(x)
    return moe_gather(codes, row_token), x_scale[row_token], weights, ids, offsets, row_token, *rest


def gemm(
    a: Tensor, b: Tensor, *, bias: Tensor | None = None, out_dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    """Torch's own."""
    return F.linear(a, b, bias).to(out_dtype)


def grouped_gemm(
    a: Tensor, b: Tensor, expert_offsets: Tensor, *, out_dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    """Torch's own."""
    return torch._grouped_mm(a, b.transpose(1, 2), offs=expert_offsets[1:]).to(out_dtype)


def grouped_gemm_masked(
    a: Tensor, b: Tensor, rows: Tensor, *, out_dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    """A batched product of all rows, asked for or not."""
    unused = torch.arange(a.shape[1]) >= rows[:, None]
    return torch.bmm(a, b.transpose(1, 2)).masked_fill_(unused[..., None], 0.0).to(out_dtype)


def fused_moe(
    x: Tensor, w13: Tensor, w2: Tensor, weights: Tensor, ids: Tensor, *, weight_on: str = "output"
) -> Tensor:
    """Two grouped matmuls on sorted rows: what transformers calls "grouped_mm"."""
    assert weight_on == "output"
    (tokens, top_k), experts, inner = ids.shape, len(w13), w2.shape[2]
    flat = ids.reshape(-1)
    order = torch.argsort(flat, stable=True)
    ends = torch.bincount(flat, minlength=experts).cumsum(0).to(torch.int32)
    gate_up = torch._grouped_mm(x.index_select(0, order // top_k), w13.transpose(1, 2), offs=ends)
    hidden = F.silu(gate_up[:, :inner]) * gate_up[:, inner:]
    rows = torch._grouped_mm(hidden, w2.transpose(1, 2), offs=ends)
    slots = torch.empty_like(rows)
    slots[order] = rows
    y: Tensor = (slots.view(tokens, top_k, -1).float() * weights[..., None]).sum(1)
    return y.to(x.dtype)

"""Attention of a few queries a sequence over the sequence's own keys, which lie in pages."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparsekern.backend import launch
from sparsekern.ops.sparse_attention import attend
from sparsekern.schema import Arg, Dims, Op, Out


class DecodedAttention(NamedTuple):
    """What attention made of each query, and how much weight its keys had."""

    out: Tensor
    lse: Tensor


def mla_decode(
    q: Tensor,
    cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    *,
    scale: float,
    d_v: int = 512,
    causal: bool = True,
    out: tuple[Tensor, Tensor] | None = None,
) -> DecodedAttention:
    """Attend to all keys of a paged sequence; their first `d_v` channels are the values.

        logit[j] = scale * (q . key[j]),  lse = ln(sum over j of exp(logit[j]))
        out = sum over j of exp(logit[j]) * key[j, :d_v] / exp(lse)

    Key j of sequence b lies at place j % page of page block_table[b, j / page], and there are seq_lens[b] of
    them. `causal`: the last of the n queries of a sequence sees all of its keys, the one before it one less,
    and so on. Heads come in groups: head h of q sees head h / (Hq / Hkv) of the cache.

    A query without keys gets `out` 0 and `lse` +infinity. What lies past a sequence's length is not read:
    neither entries of the table, nor places of a page. Sums are those of `sparse_attention`: the same bits
    for the same keys, whatever else is in the batch.
    """
    result: DecodedAttention = launch(OP, q, cache, block_table, seq_lens, scale, d_v, causal, out)
    return result


def stacked(rows: list[tuple[Tensor, Tensor]], q: Tensor, d_v: int) -> DecodedAttention:
    """Results of single queries, in order, as those of q [B, n, Hq, D]."""
    batch, n, heads, _ = q.shape
    if not rows:
        return DecodedAttention(q.new_empty(batch, n, heads, d_v), torch.empty(batch, heads, n))
    out, lse = (torch.stack(t).unflatten(0, (batch, n)) for t in zip(*rows, strict=True))
    return DecodedAttention(out, lse.transpose(1, 2).contiguous())


def reference(
    q: Tensor,
    cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    *,
    scale: float,
    d_v: int = 512,
    causal: bool = True,
) -> DecodedAttention:
    """One query after the other, in float64."""
    rows = []
    size, n = cache.shape[1], q.shape[1]
    for b, length in enumerate(seq_lens.tolist()):
        pages = block_table[b, : -(-length // size)].long()
        for t in range(n):
            keys = cache[pages].flatten(0, 1)[: max(0, length - (n - 1 - t) * causal)]
            one = attend(q[b, t], keys, keys[..., :d_v], scale)
            rows.append((one.out, one.lse))
    return stacked(rows, q, d_v)


def inputs(dims: Dims, rng: torch.Generator) -> dict[str, Any]:
    """Sequences of up to N keys in shuffled pages; NaN in places and garbage in the table past their ends."""
    batch, longest, size, heads = dims["B"], dims["N"], dims["page"], dims["Hkv"]
    lens = torch.randint(longest + 1, (batch,), generator=rng, dtype=torch.int32)
    lens[:1], lens[1:2] = longest, 0
    pages = -(-longest // size) + 1  # of a sequence, the last one unused
    table = torch.randperm(batch * pages + 1, generator=rng)[: batch * pages].view(batch, pages).int()
    cache = torch.full((batch * pages + 1, size, heads, dims["D"]), torch.nan)
    keys = torch.randn(batch, pages * size, heads, dims["D"], generator=rng) / 2 + 0.5
    keys[torch.arange(pages * size) >= lens[:, None]] = torch.nan
    cache[table.flatten().long()] = keys.view(-1, *cache.shape[1:])
    for b, length in enumerate(lens.tolist()):
        table[b, -(-length // size) :] = -(2**31) if b % 2 else 2**31 - 1
    dtype = torch.float32 if dims.get("f32") else torch.bfloat16
    q = torch.randn(batch, dims["n"], dims["Hq"], dims["D"], generator=rng)
    return {
        "q": q.to(dtype),
        "cache": cache.to(dtype),
        "block_table": table,
        "seq_lens": lens,
        "scale": max(dims["D"], 1) ** -0.5,
        "d_v": dims["d_v"],
        "causal": not dims.get("all"),
    }


OP = Op(
    fn=mla_decode,
    family="attention",
    args=(
        Arg("q", "B n Hq D", "f32 bf16", "n queries of every sequence"),
        Arg("cache", "pages page Hkv D", "f32 bf16", "keys; Hq is a multiple of Hkv"),
        Arg("block_table", "B max_pages", "i32", "pages of every sequence; read as far as it goes"),
        Arg("seq_lens", "B", "i32", "keys of every sequence"),
    ),
    outs=(
        Out("out", "B n Hq d_v", "q", "the weighted mean of the values"),
        Out("lse", "B Hq n", "f32", "natural logarithm of the sum of exp(logit)"),
    ),
    reference=reference,
    inputs=inputs,
    test_dims=(
        {"B": 3, "n": 1, "N": 70, "page": 16, "Hq": 6, "Hkv": 1, "D": 72, "d_v": 64},
        {"B": 4, "n": 4, "N": 140, "page": 64, "Hq": 9, "Hkv": 3, "D": 35, "d_v": 35, "f32": 1},
        {"B": 2, "n": 3, "N": 1100, "page": 7, "Hq": 8, "Hkv": 2, "D": 24, "d_v": 9},
        {"B": 3, "n": 2, "N": 20, "page": 1, "Hq": 64, "Hkv": 1, "D": 576, "d_v": 512, "all": 1},
        {"B": 2, "n": 5, "N": 40, "page": 8, "Hq": 130, "Hkv": 1, "D": 16, "d_v": 16},
        {"B": 1, "n": 1, "N": 1, "page": 1, "Hq": 1, "Hkv": 1, "D": 1, "d_v": 1},
        {"B": 2, "n": 2, "N": 0, "page": 8, "Hq": 2, "Hkv": 2, "D": 8, "d_v": 8},
        {"B": 0, "n": 1, "N": 9, "page": 8, "Hq": 2, "Hkv": 2, "D": 8, "d_v": 8},
    ),
    bench_dims=(
        {"B": 1, "n": 1, "N": 8192, "page": 64, "Hq": 128, "Hkv": 1, "D": 576, "d_v": 512},
        {"B": 4, "n": 2, "N": 4096, "page": 64, "Hq": 128, "Hkv": 1, "D": 576, "d_v": 512},
    ),
    spoil=lambda x: {**x, "scale": 1.1 * x["scale"]},
    source="FlashMLA 9241ae3 flash_mla_with_kvcache, without indices",
    max_err=2**-7,
    rows=("q", "block_table", "seq_lens"),
    result=DecodedAttention,
    flops=lambda d: 2.0 * d["B"] * d["n"] * d["N"] * d["Hq"] * (d["D"] + d["d_v"]),
    bytes=lambda d: (
        (4.0 if d.get("f32") else 2.0)
        * d["B"]
        * (d["N"] * d["Hkv"] * d["D"] + d["n"] * d["Hq"] * (d["D"] + d["d_v"]))
    ),
)

"""Attention over selected keys, or over ranges of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparsekern.backend import launch
from sparsekern.schema import Arg, Dims, Op, Out


class Attention(NamedTuple):
    """What attention made of each query, its largest logit, and how much weight its keys had."""

    out: Tensor
    max_logits: Tensor
    lse: Tensor


def sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    indices: Tensor | None = None,
    *,
    scale: float,
    causal: bool = False,
    sink: Tensor | None = None,
    lengths: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    out: tuple[Tensor, Tensor, Tensor] | None = None,
) -> Attention:
    """Attend to the keys that each query names; without `indices`, to all keys.

        logit[j] = scale * (q . k[j]),  max_logits = max over j of logit[j]
        lse = ln(sum over j of exp(logit[j]))
        out = sum over j of exp(logit[j]) * v[j] / (exp(lse) + exp(sink))

    Heads come in groups: head h of q sees head h / (Hq / Hkv) of k and v. An index outside k selects nothing,
    one that comes twice counts twice. Rows of k and v that a query does not see never reach its results,
    whatever they hold. A query without keys, or with none but of logit -infinity: `out` 0, `max_logits`
    -infinity, `lse` +infinity. The sink is in neither of these two; +infinity makes `out` 0, -infinity does
    nothing.

    `lengths`: how many of a query's indices count; without indices, how many keys. `cu_seqlens_q` and
    `cu_seqlens_k` cut q and k into as many sequences, from 0, each bound the end of one and the start of the
    next; a query sees keys of its own sequence, and behind the last one, none. `causal`: the last query of a
    sequence sees all of its keys, the one before it one less, and so on. All of these also hold for keys that
    are named.

    Products and sums are float32, in an order that depends on the query's own keys alone: in the order of
    its indices, in chunks of 512. With bfloat16 q, k and v the weights exp(logit - max) are rounded to
    bfloat16 before they meet v. Products flush subnormals.
    """
    result: Attention = launch(
        OP, q, k, v, indices, sink, lengths, cu_seqlens_q, cu_seqlens_k, scale, causal, out
    )
    return result


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, sink: Tensor | None = None) -> Attention:
    """The formula in float64, for one query [Hq, Dk] that sees all of k [n, Hkv, Dk] and v [n, Hkv, Dv]."""
    k, v = (t.double().repeat_interleave(len(q) // max(t.shape[1], 1), 1) for t in (k, v))
    logits = scale * torch.einsum("hd,nhd->hn", q.double(), k)
    top = torch.cat([logits, logits.new_full((len(q), 1), -torch.inf)], 1).amax(1)
    weights = (logits - top.masked_fill(top == -torch.inf, 0.0)[:, None]).exp()
    total = weights.sum(1)
    shares = weights / (total if sink is None else total + (sink.double() - top).exp())[:, None]
    none = total == 0
    return Attention(
        torch.einsum("hn,nhd->hd", shares, v).masked_fill(none[:, None], 0.0).to(q.dtype),
        top.where(~total.isnan(), torch.nan).float(),
        (top + total.log()).masked_fill(none, torch.inf).float(),
    )


def stack(rows: list[Attention], q: Tensor, dv: int) -> Attention:
    """Results of single queries as results of all of q."""
    if rows:
        return Attention(*map(torch.stack, zip(*rows, strict=True)))
    heads = q.shape[1]
    none = torch.empty(0, heads)
    return Attention(q.new_empty(0, heads, dv), none, none.clone())


def keys_seen(
    queries: int,
    keys: int,
    indices: Tensor | None,
    causal: bool = False,
    lengths: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
) -> list[Tensor]:
    """The keys that each query sees, in order."""
    starts = [0, queries] if cu_seqlens_q is None else cu_seqlens_q.tolist()
    ranges = [0, keys] if cu_seqlens_k is None else cu_seqlens_k.tolist()
    seen = []
    for i in range(queries):
        first = last = 0
        for s in range(len(starts) - 1):
            if starts[s] <= i < starts[s + 1]:
                first, last = ranges[s], ranges[s + 1]
                last -= (starts[s + 1] - 1 - i) * causal
        listed = torch.arange(first, keys) if indices is None else indices[i].long()
        listed = listed if lengths is None else listed[: int(lengths[i])]
        seen.append(listed[(listed >= first) & (listed < last)])
    return seen


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    indices: Tensor | None = None,
    *,
    scale: float,
    causal: bool = False,
    sink: Tensor | None = None,
    lengths: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
) -> Attention:
    """One query after the other, in float64."""
    seen = keys_seen(len(q), len(k), indices, causal, lengths, cu_seqlens_q, cu_seqlens_k)
    rows = [attend(one, k[keys], v[keys], scale, sink) for one, keys in zip(q, seen, strict=True)]
    return stack(rows, q, v.shape[2])


def selection(queries: int, topk: int, keys: int, rng: torch.Generator) -> Tensor:
    """Random keys, some twice, some that are none by any sign; the second query has none at all."""
    indices = torch.randint(-1, keys + 1, (queries, topk), generator=rng, dtype=torch.int32)
    lottery = torch.rand(queries, topk, generator=rng)
    indices[lottery < 0.02] = -(2**31)
    indices[lottery > 0.98] = 2**31 - 1
    indices[1:2] = -1
    return indices


def sinks(heads: int, rng: torch.Generator) -> Tensor:
    """Ordinary ones, then one that takes all and one that takes nothing."""
    sink = 2 * torch.randn(heads, generator=rng)
    sink[1:2], sink[2:3] = torch.inf, -torch.inf
    return sink


def bounds(length: int, sequences: int, rng: torch.Generator) -> Tensor:
    """Where so many sequences end, one of them empty."""
    cuts = torch.randint(length + 1, (sequences - 1,), generator=rng, dtype=torch.int32)
    cuts[1:2] = cuts[0]
    ends = torch.tensor([0, length], dtype=torch.int32)
    return torch.cat([ends[:1], cuts.sort().values, ends[1:]])


def inputs(dims: Dims, rng: torch.Generator) -> dict[str, Any]:
    """Normal queries and keys, values around 1; NaN in keys and values that nobody sees."""
    s, heads, n, groups = dims["S"], dims["Hq"], dims["Skv"], dims["Hkv"]
    topk = dims.get("topk")
    named: dict[str, Any] = {"causal": bool(dims.get("causal"))}
    named["indices"] = None if topk is None else selection(s, topk, n, rng)
    if dims.get("all_there"):
        named["indices"] = torch.randint(n, (s, dims["topk"]), generator=rng, dtype=torch.int32)
    if dims.get("lengths"):
        limit = (n if topk is None else topk) + 1
        named["lengths"] = torch.randint(limit, (s,), generator=rng, dtype=torch.int32)
    if dims.get("sequences"):
        named["cu_seqlens_q"] = bounds(s, dims["sequences"], rng)
        named["cu_seqlens_k"] = bounds(n, dims["sequences"], rng)
    k = torch.randn(n, groups, dims["Dk"], generator=rng)
    v = torch.randn(n, groups, dims["Dv"], generator=rng) / 2 + 1
    nobody = torch.ones(n, dtype=torch.bool)
    for keys in keys_seen(s, n, **named):
        nobody[keys] = False
    k[nobody], v[nobody] = torch.nan, torch.nan
    if dims.get("poison"):  # for those who see them only
        v[-1:], k[-2:-1], v[-5:-4] = torch.nan, torch.nan, torch.inf
    dtype = torch.float32 if dims.get("f32") else torch.bfloat16
    q = torch.randn(s, heads, dims["Dk"], generator=rng)
    return {
        "q": q.to(dtype),
        "k": k.to(dtype),
        "v": v.to(dtype),
        "sink": sinks(heads, rng) if dims.get("sink") else None,
        "scale": max(dims["Dk"], 1) ** -0.5,
        **named,
    }


def _pairs(d: Dims) -> float:
    """Of queries and keys."""
    return d["S"] * d.get("topk", d["Skv"] / (2 if d.get("causal") else 1))


OP = Op(
    fn=sparse_attention,
    family="attention",
    args=(
        Arg("q", "S Hq Dk", "f32 bf16", "queries"),
        Arg("k", "Skv Hkv Dk", "f32 bf16", "keys; Hq is a multiple of Hkv"),
        Arg("v", "Skv Hkv Dv", "f32 bf16", "values"),
        Arg("indices", "S topk", "i32", "the keys that each query sees; none: all"),
        Arg("sink", "Hq", "f32", "a logit of each head without a value; none: -infinity"),
        Arg("lengths", "S", "i32", "how many of its indices, or of its keys, a query sees; none: all"),
        Arg("cu_seqlens_q", "bounds", "i32", "where sequences of queries begin, and the end of the last"),
        Arg("cu_seqlens_k", "bounds", "i32", "where their keys begin, and the end of the last"),
    ),
    outs=(
        Out("out", "S Hq Dv", "q", "the weighted mean of the values"),
        Out("max_logits", "S Hq", "f32", "the largest logit"),
        Out("lse", "S Hq", "f32", "natural logarithm of the sum of exp(logit)"),
    ),
    reference=reference,
    inputs=inputs,
    test_dims=(
        {"S": 5, "Hq": 6, "Skv": 70, "Hkv": 2, "Dk": 24, "Dv": 40, "topk": 37, "sink": 1, "lengths": 1},
        {"S": 2, "Hq": 3, "Skv": 900, "Hkv": 1, "Dk": 17, "Dv": 9, "topk": 1101, "f32": 1},
        {"S": 3, "Hq": 130, "Skv": 50, "Hkv": 1, "Dk": 16, "Dv": 33, "topk": 20},
        {"S": 7, "Hq": 4, "Skv": 530, "Hkv": 4, "Dk": 8, "Dv": 24, "causal": 1, "f32": 1, "poison": 1},
        {"S": 67, "Hq": 4, "Skv": 67, "Hkv": 2, "Dk": 33, "Dv": 31, "causal": 1, "poison": 1, "sink": 1},
        {"S": 40, "Hq": 2, "Skv": 90, "Hkv": 1, "Dk": 12, "Dv": 64, "causal": 1, "sequences": 4},
        {"S": 6, "Hq": 2, "Skv": 60, "Hkv": 2, "Dk": 12, "Dv": 5, "sequences": 3, "lengths": 1, "poison": 1},
        {"S": 6, "Hq": 2, "Skv": 20, "Hkv": 2, "Dk": 12, "Dv": 5, "sequences": 2, "causal": 1, "topk": 16},
        {"S": 0, "Hq": 2, "Skv": 8, "Hkv": 2, "Dk": 4, "Dv": 4},
        {"S": 3, "Hq": 2, "Skv": 0, "Hkv": 2, "Dk": 4, "Dv": 4, "topk": 3},
    ),
    bench_dims=(
        {"S": 512, "Hq": 16, "Skv": 2048, "Hkv": 16, "Dk": 192, "Dv": 128, "causal": 1},
        {"S": 256, "Hq": 8, "Skv": 8192, "Hkv": 1, "Dk": 128, "Dv": 128, "topk": 384, "all_there": 1},
        {"S": 1, "Hq": 32, "Skv": 16384, "Hkv": 8, "Dk": 128, "Dv": 128},
    ),
    spoil=lambda x: {**x, "scale": 1.1 * x["scale"]},
    source="FlashMLA 9241ae3 sparse_fwd; arXiv 2205.14135",
    max_err=2**-7,
    result=Attention,
    flops=lambda d: 2.0 * _pairs(d) * d["Hq"] * (d["Dk"] + d["Dv"]),
    bytes=lambda d: (
        (4.0 if d.get("f32") else 2.0) * (d["S"] * d["Hq"] + d["Skv"] * d["Hkv"]) * (d["Dk"] + d["Dv"])
    ),
)

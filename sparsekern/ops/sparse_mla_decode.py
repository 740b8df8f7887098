"""Attention of a few queries a sequence over records of a paged cache that each of them names."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsekern.backend import launch
from sparsekern.ops import _kv, kv_read, kv_write
from sparsekern.ops._kv import KvFormat
from sparsekern.ops.mla_decode import DecodedAttention, stacked
from sparsekern.ops.sparse_attention import attend, sinks
from sparsekern.schema import Arg, Dims, Op, Out


def sparse_mla_decode(
    q: Tensor,
    pool: Tensor,
    indices: Tensor,
    *,
    format: KvFormat,
    page_size: int,
    scale: float,
    d_v: int = 512,
    sink: Tensor | None = None,
    lengths: Tensor | None = None,
    extra_pool: Tensor | None = None,
    extra_indices: Tensor | None = None,
    extra_page_size: int | None = None,
    extra_lengths: Tensor | None = None,
    out: tuple[Tensor, Tensor] | None = None,
) -> DecodedAttention:
    """Attend to the records of a paged cache that each query names; all heads share them.

        key[j] = record indices[j] % page_size of page indices[j] // page_size
        logit[j] = scale * (q . key[j]),  lse = ln(sum over j of exp(logit[j]))
        out = sum over j of exp(logit[j]) * key[j, :d_v] / (exp(lse) + exp(sink))

    Records are those of `kv_write`, decoded to the dtype of q, each once for all heads; those of format
    "bf16" are taken as they are. An index below 0 selects nothing, one that comes twice counts twice.
    `lengths` says how many indices of a sequence's queries count, and those that do not may be anything.
    Records that a query does not name never reach its results, whatever they hold.

    With `extra_pool`, of the same format and with pages of `extra_page_size`, a query also names records of
    that pool, by `extra_indices` and `extra_lengths`; they follow the others.

    A query without keys gets `out` 0 and `lse` +infinity. The sink is not in `lse`; +infinity makes `out` 0.
    Sums are those of `sparse_mla_prefill`: the same bits for the same keys, whatever else is in the batch.
    """
    result: DecodedAttention = launch(
        OP, q, pool, indices, sink, lengths, extra_pool, extra_indices, extra_lengths,
        format, page_size, scale, d_v, extra_page_size, out,
    )  # fmt: skip
    return result


def reference(
    q: Tensor,
    pool: Tensor,
    indices: Tensor,
    *,
    format: KvFormat,
    page_size: int,
    scale: float,
    d_v: int = 512,
    sink: Tensor | None = None,
    lengths: Tensor | None = None,
    extra_pool: Tensor | None = None,
    extra_indices: Tensor | None = None,
    extra_page_size: int | None = None,
    extra_lengths: Tensor | None = None,
) -> DecodedAttention:
    """One query after the other: its records read by the reference of `kv_read`, then float64."""
    parts = [(pool, indices, page_size, lengths)]
    if extra_pool is not None and extra_indices is not None and extra_page_size is not None:
        parts.append((extra_pool, extra_indices, extra_page_size, extra_lengths))
    dtype = pool.dtype if format == "bf16" else q.dtype
    rows = []
    for b, of_sequence in enumerate(q):
        for t, one in enumerate(of_sequence):
            keys = []
            for records, named, size, counts in parts:
                slots = named[b, t] if counts is None else named[b, t, : int(counts[b])]
                slots = slots[slots >= 0]
                keys.append(kv_read.reference(records, slots, format=format, page_size=size, dtype=dtype))
            k = torch.cat(keys)[:, None]
            result = attend(one, k, k[..., :d_v], scale, sink)
            rows.append((result.out, result.lse))
    return stacked(rows, q, d_v)


def _selection(dims: Dims, topk: int, slots: int, rng: torch.Generator) -> tuple[Tensor, Tensor | None]:
    """Indices, some below 0, some twice; with `lengths`, of which the second is 0, garbage behind them."""
    shape = (dims["B"], dims["n"], topk)
    indices = torch.randint(slots, shape, generator=rng, dtype=torch.int32)
    if dims.get("all_there"):
        return indices, None
    indices[torch.rand(shape, generator=rng) < 0.1] = -1
    indices[torch.rand(shape, generator=rng) < 0.02] = -(2**31)
    indices[-1:, -1] = -1
    if not dims.get("lengths"):
        return indices, None
    lengths = torch.randint(topk + 1, (dims["B"],), generator=rng, dtype=torch.int32)
    lengths[1:2] = 0
    indices[(torch.arange(topk) >= lengths[:, None])[:, None].expand(shape)] = 2**31 - 1
    return indices, lengths


def _pool(dims: Dims, indices: Tensor, lengths: Tensor | None, rng: torch.Generator) -> Tensor:
    """Values around 1/2 in the records that are named, 0xFF bytes everywhere else."""
    if lengths is not None:
        counts = torch.arange(indices.shape[-1]) < lengths[:, None]
        indices = indices[counts[:, None].expand(indices.shape)]
    pages, size, format_ = dims["pages"], dims["page_size"], _kv.format_of(dims)
    dtype = torch.float32 if dims.get("f32") else torch.bfloat16
    if format_ == "bf16":
        bytes_ = torch.full((pages, size, dims["D"] * dtype.itemsize), 0xFF, dtype=torch.uint8)
        pool = bytes_.view(dtype)
    else:
        pool = torch.full((pages, _kv.kv_page_bytes(format_, size)), 0xFF, dtype=torch.uint8)
    slots = indices[indices >= 0].unique()
    values = (torch.randn(len(slots), _width(dims), generator=rng) / 2 + 0.5).to(dtype)
    kv_write.reference(pool, slots, values, format=format_, page_size=size, scale_rounding="none")
    return pool


def _width(dims: Dims) -> int:
    """Values of a record."""
    format_ = _kv.format_of(dims)
    return dims["D"] if format_ == "bf16" else _kv.RECORDS[format_].dim


def inputs(dims: Dims, rng: torch.Generator) -> dict[str, Any]:
    """Normal queries, records around 1/2, and 0xFF bytes wherever nobody looks."""
    slots = dims["pages"] * dims["page_size"]
    indices, lengths = _selection(dims, dims["topk"], slots, rng)
    dtype = torch.float32 if dims.get("f32") else torch.bfloat16
    q = torch.randn(dims["B"], dims["n"], dims["Hq"], _width(dims), generator=rng)
    x: dict[str, Any] = {
        "q": q.to(dtype),
        "pool": _pool(dims, indices, lengths, rng),
        "indices": indices,
        "lengths": lengths,
        "format": _kv.format_of(dims),
        "page_size": dims["page_size"],
        "scale": _width(dims) ** -0.5,
        "d_v": dims["d_v"],
        "sink": sinks(dims["Hq"], rng) if dims.get("sink") else None,
    }
    if "extra" not in dims:
        return x
    more = {**dims, "page_size": dims["extra_page"]}
    indices, lengths = _selection(more, dims["extra"], more["pages"] * more["page_size"], rng)
    return x | {
        "extra_pool": _pool(more, indices, lengths, rng),
        "extra_indices": indices,
        "extra_page_size": more["page_size"],
        "extra_lengths": lengths,
    }


def _records(d: Dims) -> int:
    """Named by all queries."""
    return d["B"] * d["n"] * (d["topk"] + d.get("extra", 0))


MLA656, MLA584, MLA528, PLAIN = 0, 1, 2, 5

OP = Op(
    fn=sparse_mla_decode,
    family="attention",
    args=(
        Arg("q", "B n Hq D", "f32 bf16", "n queries of every sequence"),
        Arg("pool", "pages page_bytes | pages page_size D", "u8 bf16 f32", "the pages"),
        Arg("indices", "B n topk", "i32", "slots: page * page_size + place, or below 0"),
        Arg("sink", "Hq", "f32", "a logit of each head without a value; none: -infinity"),
        Arg("lengths", "B", "i32", "how many of its indices a query sees; none: all"),
        Arg(
            "extra_pool",
            "extra_pages extra_page_bytes | extra_pages extra_page_size D",
            "u8 bf16 f32",
            "pages of a second pool",
        ),
        Arg("extra_indices", "B n extra_topk", "i32", "slots there"),
        Arg("extra_lengths", "B", "i32", "how many of these a query sees; none: all"),
    ),
    outs=(
        Out("out", "B n Hq d_v", "q", "the weighted mean of the values"),
        Out("lse", "B Hq n", "f32", "natural logarithm of the sum of exp(logit)"),
    ),
    reference=reference,
    inputs=inputs,
    test_dims=(
        {"format": MLA656, "B": 3, "n": 2, "Hq": 6, "pages": 5, "page_size": 16, "topk": 37, "d_v": 512,
         "sink": 1},
        {"format": MLA584, "B": 3, "n": 1, "Hq": 4, "pages": 9, "page_size": 64, "topk": 700, "d_v": 512,
         "extra": 90, "extra_page": 2, "lengths": 1, "sink": 1},
        {"format": MLA584, "B": 2, "n": 3, "Hq": 5, "pages": 3, "page_size": 7, "topk": 20, "d_v": 99,
         "f32": 1},
        {"format": MLA656, "B": 2, "n": 1, "Hq": 3, "pages": 3, "page_size": 8, "topk": 40, "d_v": 512,
         "f32": 1},
        {"format": MLA528, "B": 2, "n": 1, "Hq": 130, "pages": 3, "page_size": 1, "topk": 6, "d_v": 64,
         "lengths": 1},
        {"format": PLAIN, "B": 4, "n": 2, "Hq": 6, "pages": 7, "page_size": 10, "topk": 30, "D": 35,
         "d_v": 30, "extra": 600, "extra_page": 3, "lengths": 1},
        {"format": PLAIN, "B": 3, "n": 2, "Hq": 3, "pages": 7, "page_size": 10, "topk": 30, "D": 20,
         "d_v": 20, "f32": 1, "sink": 1},
        {"format": PLAIN, "B": 1, "n": 1, "Hq": 1, "pages": 1, "page_size": 1, "topk": 1, "D": 1, "d_v": 1},
        {"format": PLAIN, "B": 2, "n": 1, "Hq": 2, "pages": 2, "page_size": 2, "topk": 0, "D": 8, "d_v": 8},
        {"format": MLA584, "B": 0, "n": 1, "Hq": 2, "pages": 2, "page_size": 2, "topk": 3, "d_v": 8},
    ),
    bench_dims=(
        *(
            {"format": MLA656, "B": batch, "n": 1, "Hq": 128, "pages": 1024, "page_size": 64, "topk": 2048,
             "d_v": 512, "all_there": 1}
            for batch in (1, 8)
        ),
        {"format": MLA584, "B": 4, "n": 1, "Hq": 64, "pages": 256, "page_size": 256, "topk": 128, "d_v": 512,
         "extra": 512, "extra_page": 64, "all_there": 1},
    ),
    spoil=lambda x: {**x, "scale": 1.1 * x["scale"]},
    source="FlashMLA 9241ae3 flash_mla_with_kvcache, with indices",
    max_err=2**-7,
    rows=("q", "indices", "lengths", "extra_indices", "extra_lengths"),
    result=DecodedAttention,
    flops=lambda d: 2.0 * _records(d) * d["Hq"] * (_width(d) + d["d_v"]),
    bytes=lambda d: (
        (656.0 if d["format"] == MLA656 else 584.0) * _records(d)
        + 2.0 * d["B"] * d["n"] * d["Hq"] * (_width(d) + d["d_v"])
    ),
)  # fmt: skip

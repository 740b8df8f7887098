"""Read the tokens of sequences from a paged KV cache, one after the other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsekern.backend import launch
from sparsekern.ops import _kv
from sparsekern.ops._kv import RECORDS, KvFormat
from sparsekern.schema import Arg, Dims, Op, Option, Out, ShapeError


def kv_gather(
    pool: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    *,
    format: KvFormat,
    page_size: int,
    starts: Tensor | None = None,
    total: int | None = None,
    out: Tensor | tuple[Tensor, Tensor] | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Gather seq_lens[b] tokens of every sequence b, from token starts[b] on.

        rows of b: record t % page_size of page block_table[b, t // page_size],
        t = starts[b] ... starts[b] + seq_lens[b] - 1

    The rows of sequence b + 1 follow those of b. They are values in bfloat16 as `kv_read` gives them (for
    "bf16" in the dtype of the pool). The index formats give what the indexer multiplies by: codes and
    scales, as they are stored. `starts` is 0 unless given. Entries of the block table past a sequence's
    last page are never looked at.

    There are sum(seq_lens) rows, or `total` if given, of which those past that sum are zero, their scales
    too; too small a `total` is an error.
    """
    record = RECORDS.get(format)
    index = _kv.is_index(format)
    if record is None:
        width, dtype = _kv.plain(pool)
    elif not index:
        width, dtype = record.dim, torch.bfloat16
    else:
        width, dtype = record.codes, torch.uint8 if record.fp4 else torch.float8_e4m3fn
    scale_dtype, scales = None, 1
    if record is not None and index:
        scale_dtype = torch.float32 if record.fp32_scales else torch.float8_e8m0fnu
        scales = record.coded // record.tile
    into = _as_pair(out, index, scales)
    rows, scale = launch(
        OP,
        pool,
        block_table,
        seq_lens,
        starts,
        format,
        page_size,
        total,
        width,
        scales,
        dtype,
        scale_dtype,
        into,
    )
    if out is not None:
        return out
    return (rows, scale.squeeze(-1) if scales == 1 else scale) if index else rows


def _as_pair(out: Any, index: bool, scales: int) -> Any:
    """The results' memory as the record has it: two tensors, the second of rank 2 or not there.

    Raises:
        ShapeError: two tensors are given for one result.
    """
    if out is None or (index and not isinstance(out, tuple)) or not isinstance(out, (Tensor, tuple)):
        return out
    if not index:
        if isinstance(out, tuple):
            raise ShapeError(f"kv_gather: out has {len(out)} tensors, expected 1")
        return out, None
    one = len(out) == 2 and scales == 1 and isinstance(out[1], Tensor) and out[1].dim() == 1
    return (out[0], out[1].unsqueeze(-1)) if one else out


def reference(
    pool: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    *,
    format: KvFormat,
    page_size: int,
    starts: Tensor | None = None,
    total: int | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Slots, token by token; then their records."""
    first = [0] * len(seq_lens) if starts is None else starts.tolist()
    slots = [
        int(block_table[b, t // page_size]) * page_size + t % page_size
        for b, (start, n) in enumerate(zip(first, seq_lens.tolist(), strict=True))
        for t in range(start, start + n)
    ]
    tail = 0 if total is None else total - len(slots)
    at, pad = torch.tensor(slots, dtype=torch.int64), (0, 0, 0, tail)
    if format == "bf16":
        return torch.nn.functional.pad(pool[at // page_size, at % page_size], pad)
    r = RECORDS[format]
    page, data, scales = _kv.places(r, at, page_size)
    records, bytes_ = pool[page[:, None], data], pool[page[:, None], scales]
    if format.startswith("mla"):
        return torch.nn.functional.pad(_kv.decode(r, records, bytes_, torch.bfloat16), pad)
    records, bytes_ = (torch.nn.functional.pad(t, pad) for t in (records, bytes_))
    if r.fp4:
        return records, bytes_.view(torch.float8_e8m0fnu)
    return records.view(torch.float8_e4m3fn), bytes_.view(torch.float32).squeeze(-1)


def inputs(dims: Dims, rng: torch.Generator) -> dict[str, Any]:
    """Sequences of any length, empty ones too; garbage in the block table past their ends."""
    b, pages, size = dims["B"], dims["pages"], dims["page_size"]
    wide = dims.get("maxpages", 6)
    table = torch.randint(pages, (b, wide), generator=rng, dtype=torch.int32)
    lens = torch.randint(wide * size + 1, (b,), generator=rng, dtype=torch.int32)
    lens[torch.rand(b, generator=rng) < 0.2] = 0
    if dims.get("full"):
        lens[:] = wide * size
    x = {"pool": _kv.random_pool(dims, rng), **_kv.pool_sizes(dims)}
    first = torch.zeros_like(lens)
    if dims.get("starts"):
        first = (torch.rand(b, generator=rng) * lens).int()
        x["starts"] = first
        lens = lens - first
    past = torch.arange(wide) * size >= (first + lens)[:, None]
    table[past] = torch.tensor([2**31 - 1, -(2**31), -1], dtype=torch.int32)[
        torch.arange(int(past.sum())) % 3
    ]
    if "spare" in dims:
        x["total"] = int(lens.sum()) + dims["spare"]
    return {**x, "block_table": table, "seq_lens": lens}


OP = Op(
    fn=kv_gather,
    family="kv",
    args=(
        Arg("pool", "pages page_bytes | pages page_size D", "u8 bf16 f32", "the pages"),
        Arg("block_table", "B maxpages", "i32", "the pages of every sequence, in order"),
        Arg("seq_lens", "B", "i32", "how many tokens to gather"),
        Arg("starts", "B", "i32", "the first of them; none: 0"),
    ),
    outs=(
        Out("out", "N width", "out_dtype", "values, or codes of an index format"),
        Out("scale", "N scales", "scale_dtype", "scales of an index format, [N] where there is one a row"),
    ),
    reference=reference,
    inputs=inputs,
    test_dims=(
        *(
            {"B": 4, "pages": 3, "page_size": 5, "D": 9, "format": f, "starts": 1, "spare": 3}
            for f in range(6)
        ),
        *({"B": 5, "pages": 7, "page_size": 4, "D": 40, "format": f} for f in range(6)),
        {"B": 3, "pages": 3, "page_size": 64, "D": 33, "format": 5, "f32": 1, "starts": 1},
        {"B": 1, "pages": 1, "page_size": 1, "D": 1},
        {"B": 0, "pages": 2, "page_size": 3, "D": 1, "format": 1},
        {"B": 2, "pages": 2, "page_size": 3, "D": 1, "format": 3, "maxpages": 0},
    ),
    bench_dims=tuple(
        {"B": 1, "pages": 4096, "page_size": 64, "D": 576, "format": f, "maxpages": 32, "full": 1}
        for f in range(6)
    ),
    spoil=lambda x: {**x, "block_table": x["block_table"].flip(0).clamp(0, len(x["pool"]) - 1)},
    source="vLLM cp_gather_cache, cp_gather_and_upconvert_fp8_kv_cache, cp_gather_indexer_k_quant_cache",
    bytes=lambda d: 1650.0 * d["B"] * d["maxpages"] * d["page_size"],
    dynamic={"N": "total"},
    hidden=(
        Option("width", "int", 0, False),
        Option("scales", "int", 1, False),
        Option("out_dtype", "dtype", torch.bfloat16, False),
        Option("scale_dtype", "dtype", None, True),
    ),
)

"""Read records of a paged KV cache back as values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsekern.backend import launch
from sparsekern.ops import _kv
from sparsekern.ops._kv import RECORDS, KvFormat
from sparsekern.schema import Arg, Dims, Op, Option, Out


def kv_read(
    pool: Tensor,
    slots: Tensor,
    *,
    format: KvFormat,
    page_size: int,
    dtype: torch.dtype = torch.bfloat16,
    out: Tensor | None = None,
) -> Tensor:
    """Read the records of some slots.

        out[n, :] = decode(record slots[n] % page_size of page slots[n] // page_size)

    A value is its code times its tile's scale in float32, rounded once to `dtype`, which is bfloat16 or
    float32. Any positive scale is taken, power of two or not; a UE8M0 scale byte b is 2^(b - 127), but 0 is
    0.0 and 255 infinity. NaN codes give NaN. A slot below 0 gives a row of zeros.
    """
    record = RECORDS.get(format)
    width = record.dim if record is not None else _kv.plain(pool)[0]
    result: Tensor = launch(OP, pool, slots, format, page_size, dtype, width, out)
    return result


def reference(
    pool: Tensor, slots: Tensor, *, format: KvFormat, page_size: int, dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    """Every slot read as it is, then those below 0 set to zero."""
    at = slots.long().clamp(min=0)
    if format == "bf16":
        rows = pool[at // page_size, at % page_size].to(dtype)
    else:
        r = RECORDS[format]
        page, data, scales = _kv.places(r, at, page_size)
        rows = _kv.decode(r, pool[page[:, None], data], pool[page[:, None], scales], dtype)
    return torch.where(slots[:, None] < 0, 0.0, rows).to(dtype)


def inputs(dims: Dims, rng: torch.Generator) -> dict[str, Any]:
    """Any slots, some twice, a tenth below 0."""
    slots = torch.randint(dims["pages"] * dims["page_size"], (dims["T"],), generator=rng)
    slots[torch.rand(dims["T"], generator=rng) < 0.1] = -3
    x = {"pool": _kv.random_pool(dims, rng), "slots": slots, **_kv.pool_sizes(dims)}
    if dims.get("to_f32"):
        x["dtype"] = torch.float32
    if dims.get("i32"):
        x["slots"] = slots.int()
    return x


OP = Op(
    fn=kv_read,
    family="kv",
    args=(
        Arg("pool", "pages page_bytes | pages page_size D", "u8 bf16 f32", "the pages"),
        Arg("slots", "T", "i64 i32", "page * page_size + place of each record, or below 0"),
    ),
    outs=(Out("out", "T width", "dtype", "values"),),
    reference=reference,
    inputs=inputs,
    test_dims=(
        *({"T": 19, "pages": 4, "page_size": 5, "D": 40, "format": f} for f in range(6)),
        *({"T": 9, "pages": 3, "page_size": 64, "D": 37, "format": f, "to_f32": 1} for f in range(6)),
        {"T": 9, "pages": 3, "page_size": 4, "D": 37, "format": 5, "f32": 1, "to_f32": 1, "i32": 1},
        {"T": 9, "pages": 3, "page_size": 4, "D": 64, "format": 5, "f32": 1},
        {"T": 1, "pages": 1, "page_size": 1, "D": 1},
        {"T": 0, "pages": 2, "page_size": 3, "D": 1, "format": 1},
    ),
    bench_dims=tuple({"T": 2048, "pages": 4096, "page_size": 64, "D": 576, "format": f} for f in range(6)),
    spoil=lambda x: {**x, "slots": x["slots"].flip(0)},
    source="FlashMLA 9241ae3 tests/quant.py, DeepGEMM 54e2261 (layouts)",
    rows=("slots",),
    bytes=lambda d: 1650.0 * d["T"],
    hidden=(Option("width", "int", 0, False),),
)

"""Quantise tokens and insert them into a paged KV cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsekern.backend import launch
from sparsekern.ops import _kv
from sparsekern.ops._kv import RECORDS, KvFormat, ScaleRounding
from sparsekern.ops._small_floats import sample
from sparsekern.schema import Arg, Dims, Op


def kv_write(
    pool: Tensor,
    slots: Tensor,
    values: Tensor,
    *,
    format: KvFormat,
    page_size: int,
    scale_rounding: ScaleRounding = "pow2",
    amax_floor: float | None = None,
) -> None:
    """Write each row of values as a record of the pool, in place.

        record slots[t] % page_size of page slots[t] // page_size = encode(values[t, :])

    A tile of values has the scale amax / 448 (FP4: amax / 6), rounded up to a power of two, and the codes
    of `quantize_fp8` or `quantize_fp4`; with `scale_rounding` "none", scales that the format holds in
    float32 are not rounded. `amax_floor` bounds amax from below: 1e-4, or 6 * 2^-126 for FP4, unless given.
    float32 values are rounded to bfloat16 first. Format "bf16" only copies: its pool is [pages, page_size,
    D], of bfloat16 or float32.

    A slot below 0 skips its token. Of several tokens with one slot the last one stays. Other bytes of the
    pool are left as they are, but for padding between the scales of a record, which becomes 0.
    """
    launch(OP, pool, slots, values, format, page_size, scale_rounding, amax_floor, None)


def reference(
    pool: Tensor,
    slots: Tensor,
    values: Tensor,
    *,
    format: KvFormat,
    page_size: int,
    scale_rounding: ScaleRounding = "pow2",
    amax_floor: float | None = None,
) -> None:
    """Token by token."""
    slots, kept = slots.long(), slots >= 0
    if format == "bf16":
        rows = values.to(pool.dtype)
        for i in kept.nonzero().flatten():
            pool[slots[i] // page_size, slots[i] % page_size] = rows[i]
        return
    r = RECORDS[format]
    data, scales = _kv.encode(r, values, scale_rounding, amax_floor)
    page, at, scales_at = _kv.places(r, slots, page_size)
    for i in kept.nonzero().flatten():
        pool[page[i], at[i]] = data[i]
        pool[page[i], scales_at[i]] = scales[i]


def inputs(dims: Dims, rng: torch.Generator) -> dict[str, Any]:
    """Rows of very different size to slots in any order; a tenth is skipped."""
    pool = _kv.random_pool(dims, rng)
    t, places = dims["T"], dims["pages"] * dims["page_size"]
    slots = torch.randperm(max(t, places), generator=rng)[:t] % places
    slots[torch.rand(t, generator=rng) < 0.1] = -1
    format_ = _kv.format_of(dims)
    width = dims["D"] if format_ == "bf16" else RECORDS[format_].dim
    dtype = torch.float32 if dims.get("f32_values") else torch.bfloat16
    x = {"pool": pool, "slots": slots, "values": sample((t, width), rng, dtype), **_kv.pool_sizes(dims)}
    if dims.get("exact"):
        x["scale_rounding"] = "none"
    if dims.get("floor"):
        x["amax_floor"] = 0.5
    if dims.get("i32"):
        x["slots"] = slots.int()
    return x


OP = Op(
    fn=kv_write,
    family="kv",
    args=(
        Arg(
            "pool",
            "pages page_bytes | pages page_size D",
            "u8 bf16 f32",
            "the pages, `kv_page_bytes` each",
            written=True,
        ),
        Arg("slots", "T", "i64 i32", "page * page_size + place of each token, or below 0"),
        Arg("values", "T D", "bf16 f32", "the tokens"),
    ),
    outs=(),
    reference=reference,
    inputs=inputs,
    test_dims=(
        {"T": 13, "pages": 4, "page_size": 5, "D": 40},
        {"T": 20, "pages": 3, "page_size": 64, "D": 40, "exact": 1, "f32_values": 1},
        {"T": 13, "pages": 4, "page_size": 5, "D": 40, "format": 1},
        {"T": 30, "pages": 20, "page_size": 2, "D": 40, "format": 1, "floor": 1, "i32": 1},
        {"T": 13, "pages": 4, "page_size": 5, "D": 40, "format": 2},
        {"T": 13, "pages": 4, "page_size": 5, "D": 40, "format": 3},
        {"T": 13, "pages": 3, "page_size": 64, "D": 40, "format": 3, "exact": 1},
        {"T": 13, "pages": 4, "page_size": 5, "D": 40, "format": 4},
        {"T": 13, "pages": 4, "page_size": 5, "D": 41, "format": 5},
        {"T": 9, "pages": 3, "page_size": 4, "D": 7, "format": 5, "f32": 1},
        {"T": 9, "pages": 3, "page_size": 4, "D": 64, "format": 5, "f32": 1, "f32_values": 1},
        {"T": 9, "pages": 3, "page_size": 4, "D": 33, "format": 5, "f32_values": 1},
        {"T": 1, "pages": 1, "page_size": 1, "D": 1},
        {"T": 0, "pages": 2, "page_size": 3, "D": 1, "format": 1},
    ),
    bench_dims=tuple(
        {"T": t, "pages": 1024, "page_size": 64, "D": 576, "format": f} for f in range(6) for t in (1, 512)
    ),
    spoil=lambda x: {**x, "slots": x["slots"].flip(0)},
    source="FlashMLA 9241ae3, DeepGEMM 54e2261 (layouts); TileKernels 36d9e45 per_token_cast",
    bytes=lambda d: 1500.0 * d["T"],
)

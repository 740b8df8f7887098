"""Copy pages of a paged KV cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsekern.backend import launch
from sparsekern.schema import Arg, Dims, Op


def kv_copy_pages(src_pool: Tensor, dst_pool: Tensor, pairs: Tensor) -> None:
    """Copy whole pages from one pool to another, or within one, in place.

        dst_pool[pairs[i, 1]] = src_pool[pairs[i, 0]]  for all i, as if every source were read first

    The pools may be one tensor: a chain of pairs then moves pages on, a cycle rotates them. A destination
    that is named twice is an error.
    """
    launch(OP, src_pool, dst_pool, pairs, None)


def reference(src_pool: Tensor, dst_pool: Tensor, pairs: Tensor) -> None:
    """Read everything, then write everything."""
    src, dst = pairs.long().unbind(1)
    dst_pool[dst] = src_pool[src].clone()


def inputs(dims: Dims, rng: torch.Generator) -> dict[str, Any]:
    """Random bytes; some sources are read twice."""
    size = (dims["page_size"], dims["D"]) if dims.get("bf16") else (dims["D"],)
    dtype = torch.bfloat16 if dims.get("bf16") else torch.uint8

    def pool(pages: int) -> Tensor:
        return torch.randint(100, (pages, *size), generator=rng).to(dtype)

    src = torch.randint(dims["pages"], (dims["P"],), generator=rng)
    dst = torch.randperm(dims["P"] + dims.get("others", 3), generator=rng)[: dims["P"]]
    pairs = torch.stack([src, dst], 1)
    return {
        "src_pool": pool(dims["pages"]),
        "dst_pool": pool(dims["P"] + dims.get("others", 3)),
        "pairs": pairs.int() if dims.get("i32") else pairs,
    }


OP = Op(
    fn=kv_copy_pages,
    family="kv",
    args=(
        Arg("src_pool", "src_pages page_bytes | src_pages page_size D", "u8 bf16 f32", "where from"),
        Arg(
            "dst_pool",
            "dst_pages page_bytes | dst_pages page_size D",
            "u8 bf16 f32",
            "where to",
            written=True,
        ),
        Arg("pairs", "P 2", "i64 i32", "pages of `src_pool` and of `dst_pool`"),
    ),
    outs=(),
    reference=reference,
    inputs=inputs,
    test_dims=(
        {"P": 5, "pages": 4, "D": 96},
        {"P": 7, "pages": 9, "D": 33, "page_size": 5, "bf16": 1, "i32": 1},
        {"P": 1, "pages": 1, "D": 1, "others": 0},
        {"P": 0, "pages": 2, "D": 5},
    ),
    bench_dims=({"P": 256, "pages": 1024, "D": 37440},),
    spoil=lambda x: {**x, "pairs": torch.stack([x["pairs"][:, 0].flip(0), x["pairs"][:, 1]], 1)},
    source="vLLM swap_blocks, copy_blocks",
    bytes=lambda d: 2.0 * d["P"] * d["D"],
)

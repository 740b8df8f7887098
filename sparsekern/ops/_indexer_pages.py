"""What the ops of the lightning indexer over a paged cache share: pages of keys, taken apart and made."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsekern.ops._indexer import random_keys, random_queries, scores
from sparsekern.schema import Arg, Dims

ARGS = (
    Arg("q", "B n H D", "f32 bf16 e4m3 fp4", "n queries of every sequence, H heads each"),
    Arg(
        "cache",
        "pages page_size entry",
        "u8 f32 bf16",
        "keys; of FP8 and FP4 bytes: those of a page's keys, then their scales, so that entry is D + 4 or "
        "D/2 + 4; else entry is D",
        layout="dense",
    ),
    Arg("weights", "B*n H", "f32", "of the heads; with a query's scale, if it has one"),
    Arg("context_lens", "B n | B", "i32", "keys that a query sees; [B]: that the last of n sees"),
    Arg("block_table", "B max_pages", "i32", "pages of every sequence; read as far as its context goes"),
    Arg("q_scale", "B n H D/32", "e8m0", "of FP4 queries"),
)


def reach(cache: Any, block_table: Any) -> int | None:
    """How many keys a sequence can have; None for arguments that an error will be about."""
    if not isinstance(cache, Tensor) or not isinstance(block_table, Tensor):
        return None
    return cache.shape[1] * block_table.shape[1] if (cache.dim(), block_table.dim()) == (3, 2) else None


def seen(context_lens: Tensor, n: int) -> Tensor:
    """How many keys each query sees, [B * n]."""
    if context_lens.dim() == 1:
        context_lens = context_lens[:, None] - n + 1 + torch.arange(n)
    return context_lens.flatten().clamp_min(0)


def paged_scores(
    q: Tensor,
    cache: Tensor,
    weights: Tensor,
    lens: Tensor,
    block_table: Tensor,
    q_scale: Tensor | None,
    columns: int,
) -> Tensor:
    """[B * n, columns] in float64, -inf past the context."""
    batch, n, _, dim = q.shape
    s = torch.full((batch * n, columns), -torch.inf, dtype=torch.float64)
    for i, (row, count) in enumerate(zip(q.flatten(0, 1), lens.clamp_max(columns).tolist(), strict=True)):
        keys, scale = page_keys(cache, block_table[i // n], count, dim, q.dtype)
        own = None if q_scale is None else q_scale.flatten(0, 1)[i : i + 1]
        s[i, :count] = scores(row[None], keys, scale, weights[i : i + 1], own)[0]
    return s


def page_keys(
    cache: Tensor, pages: Tensor, count: int, dim: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """The first keys of a sequence and their scales."""
    page_size = cache.shape[1]
    used = cache[pages[: -(-count // page_size)].long()]
    if cache.dtype != torch.uint8:
        return used.flatten(0, 1)[:count], None
    flat = used.flatten(1)
    keys = flat[:, : page_size * dim].reshape(-1, dim)[:count]
    scale = flat[:, page_size * dim :].reshape(-1, 4)[:count]
    if dtype == torch.uint8:
        return keys, scale[:, : -(-2 * dim // 32)].view(torch.float8_e8m0fnu)
    return keys.view(dtype), scale.contiguous().view(torch.float32)[:, 0]


def paged_inputs(dims: Dims, rng: torch.Generator) -> dict[str, Any]:
    """Sequences in shuffled pages. What no query sees is garbage: places, pages and the table's entries."""
    batch, n, size, longest = dims["B"], dims["n"], dims["page"], dims["N"]
    x = random_queries(batch * n, dims, rng)
    x = {name: v if name == "weights" else v.unflatten(0, (batch, n)) for name, v in x.items()}
    lens = torch.randint(-1, longest + 1, (batch, n), generator=rng).sort(-1).values.int()
    if batch:
        lens[-1, -1] = longest
    pages = -(-longest // size) + 1  # of a sequence, the last one unused
    table = torch.randperm(batch * pages + 2, generator=rng)[: batch * pages].view(batch, pages).int()

    keys = random_keys(batch * pages * size, dims, rng)
    plain = dims["kind"] < 2
    parts = [keys["k"]] if plain else [keys["k"].view(torch.uint8), _four_bytes(keys["k_scale"])]
    unseen = torch.arange(pages * size) >= lens[:, -1:]
    for part in parts:
        part.view(torch.uint8)[unseen.flatten()] = 0xFF
    rows = torch.cat([part.reshape(batch * pages, size * part.shape[1]) for part in parts], 1)
    cache = torch.full((batch * pages + 2, rows.shape[1]), -1.0 if plain else 255).to(rows.dtype)
    cache[table.flatten().long()] = rows
    for b, count in enumerate((~unseen).sum(-1).tolist()):
        table[b, -(-count // size) :] = -(2**31) if b % 2 else 2**31 - 1
    return x | {
        "cache": cache.unflatten(1, (size, rows.shape[1] // size)),
        "context_lens": lens[:, -1].contiguous() if dims.get("lens_1d") else lens,
        "block_table": table,
    }


def _four_bytes(scale: Tensor) -> Tensor:
    """[keys, 4]: a float32 each, or UE8M0 and padding."""
    if scale.dtype == torch.float32:
        return scale.view(torch.uint8).view(-1, 4)
    return torch.nn.functional.pad(scale.view(torch.uint8), (0, 4 - scale.shape[-1]), value=127)

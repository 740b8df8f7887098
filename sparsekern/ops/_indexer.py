"""What the ops of the lightning indexer share: test inputs, and references in float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsekern.ops.quantize_fp4 import reference as quantize_fp4
from sparsekern.schema import Dims
from sparsekern.weights import dequantised

KINDS = ("f32", "bf16", "e4m3", "fp4")
KEY_BYTES = (4.0, 2.0, 1.0, 0.5)


def scores(q: Tensor, k: Tensor, k_scale: Tensor | None, weights: Tensor, q_scale: Tensor | None) -> Tensor:
    """[M, N] in float64, whoever sees what."""
    fp4 = q.dtype == torch.uint8
    queries = dequantised(q, q_scale, (1, 32))
    keys = dequantised(k, k_scale, (1, 32)) if fp4 else dequantised(k, None)
    rows = [w.double() @ (query @ keys.mT).relu() for query, w in zip(queries, weights, strict=True)]
    s = torch.stack(rows) if rows else torch.zeros(0, len(k), dtype=torch.float64)
    return s if k_scale is None or fp4 else s * k_scale


def outside(rows: int, columns: int, starts: Tensor | None, ends: Tensor | None) -> Tensor:
    """Where a column is not in its row's range, [rows, columns]."""
    column = torch.arange(columns).expand(rows, columns)
    wrong = torch.zeros(rows, columns, dtype=torch.bool)
    if starts is not None:
        wrong |= column < starts[:, None]
    if ends is not None:
        wrong |= column >= ends[:, None]
    return wrong


def best_columns(scores: Tensor, k: int) -> Tensor:
    """Columns of the k largest, ascending, then -1; NaN and -inf are none."""
    columns = scores.shape[-1]
    found = scores.masked_fill(scores.isnan(), -torch.inf).sort(dim=-1, descending=True, stable=True)
    best = found.indices[..., :k].masked_fill(found.values[..., :k] == -torch.inf, columns).sort(-1).values
    best = torch.nn.functional.pad(best, (0, max(0, k - columns)), value=columns)
    return best.masked_fill(best == columns, -1).int()


def best_keys(scores: Tensor, k: int, candidates: tuple[int, int] | None) -> Tensor:
    """Columns of the k largest, of all or of the best blocks."""
    rows, columns = scores.shape
    if candidates is None or columns == 0:
        return best_columns(scores, k)
    block, count = candidates
    known = scores.masked_fill(scores.isnan(), -torch.inf)
    padded = torch.nn.functional.pad(known, (0, -columns % block), value=-torch.inf)
    blocks = padded.view(rows, padded.shape[1] // block, block)
    chosen = best_columns(blocks.amax(-1), count)
    kept = torch.zeros(rows, blocks.shape[1] + 1, dtype=torch.bool)
    kept.scatter_(1, chosen.masked_fill(chosen < 0, blocks.shape[1]).long(), True)
    column = torch.arange(columns).expand(rows, columns)
    return best_columns(known.masked_fill(~kept.gather(1, column // block), -torch.inf), k)


def quantised(x: Tensor, kind: str, name: str, *, scaled: bool = True) -> dict[str, Tensor | None]:
    """Rows of x as the argument `name`, with its scales where there are any."""
    if kind in ("f32", "bf16"):
        return {name: x.to(torch.float32 if kind == "f32" else torch.bfloat16)}
    if kind == "fp4":
        codes, scale = quantize_fp4(x)
        return {name: codes, f"{name}_scale": scale}
    if not scaled:  # a query's scale is part of its weights
        return {name: x.to(torch.float8_e4m3fn)}
    scale = x.abs().amax(-1).clamp_min(1e-4) / 448
    return {name: (x / scale[..., None]).to(torch.float8_e4m3fn), f"{name}_scale": scale}


def random_queries(m: int, dims: Dims, rng: torch.Generator) -> dict[str, Any]:
    """Queries [m, H, D] and weights; "wild" puts NaN, infinity and zeros among the weights."""
    weights = normal((m, dims["H"]), dims, rng)
    if dims.get("wild") and m > 2:
        weights[0, 0], weights[1, 0], weights[2] = torch.nan, torch.inf, -0.0
    x = normal((m, dims["H"], dims["D"]), dims, rng)
    return {**quantised(x, KINDS[dims["kind"]], "q", scaled=False), "weights": weights}


def random_keys(n: int, dims: Dims, rng: torch.Generator) -> dict[str, Any]:
    """Keys [n, D] of the queries' kind."""
    x = {"k_scale": None, **quantised(normal((n, dims["D"]), dims, rng), KINDS[dims["kind"]], "k")}
    if dims.get("exact") and dims["kind"] == 2:
        x["k_scale"] = torch.exp2(torch.randint(-2, 2, (n,), generator=rng).float())
    return x


def normal(shape: tuple[int, ...], dims: Dims, rng: torch.Generator) -> Tensor:
    """Normal numbers; "exact": small integers, whose sums are exact in any order, and tie."""
    x = torch.randn(shape, generator=rng)
    return x.round().clamp(-2, 2) if dims.get("exact") else x


def random_ranges(m: int, n: int, rng: torch.Generator) -> dict[str, Tensor]:
    """Some empty, some beyond what there is."""
    cuts = torch.randint(-2, n + 3, (m, 2), generator=rng).sort(-1).values.int()
    return {"starts": cuts[:, 0].contiguous(), "ends": cuts[:, 1].contiguous()}

"""Rows of a large table."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsekern.backend import launch
from sparsekern.schema import Arg, Dims, Op, Option, Out


def engram_lookup(
    table: Tensor, rows: Tensor, *, scale: Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    """Gather rows of a table side by side.

        out[t, r D : (r + 1) D] = table[rows[t, r], :] scale[rows[t, r], :], zeros where rows[t, r] is -1

    Rows of bfloat16 and float32 are copied. FP8 codes have a `scale` for every 32 and become bfloat16. The
    table may be larger than memory, if it is mapped from a file; rows are fetched ahead of their use.
    """
    wide = isinstance(table, Tensor) and table.dtype == torch.float32
    dtype = torch.float32 if wide else torch.bfloat16
    result: Tensor = launch(OP, table, rows, scale, dtype, out)
    return result


def reference(table: Tensor, rows: Tensor, *, scale: Tensor | None = None) -> Tensor:
    """On bytes, which torch can index for every dtype."""

    def taken(t: Tensor) -> Tensor:
        entries = t.contiguous().view(torch.uint8)
        zero = entries.new_zeros(1, entries.shape[1])
        return torch.cat([entries, zero])[rows.long()]  # -1 is the last row, the zeros

    values = taken(table).view(table.dtype)
    if scale is not None:
        factors = (taken(scale).int() << 23).view(torch.float32).repeat_interleave(32, -1)
        values = (values.float() * factors[..., : table.shape[1]]).bfloat16()
    return values.flatten(1)


def inputs(dims: Dims, rng: torch.Generator) -> dict[str, Any]:
    """Random bytes, every code among them, and rows in any order; a tenth is none."""
    dtype = (torch.bfloat16, torch.float32, torch.float8_e4m3fn)[dims.get("dtype", 0)]
    v, d = dims["V"], dims["D"]
    codes = torch.randint(256, (v, d * dtype.itemsize), generator=rng, dtype=torch.uint8)
    rows = torch.randint(max(v, 1), (dims["T"], dims["R"]), generator=rng, dtype=torch.int32)
    rows[torch.rand(rows.shape, generator=rng) < (0.1 if v else 2)] = -1
    x = {"table": codes.view(dtype), "rows": rows}
    if dims.get("dtype") == 2:
        scale = torch.randint(256, (v, -(-d // 32)), generator=rng, dtype=torch.uint8)
        x["scale"] = scale.view(torch.float8_e8m0fnu)
    return x


OP = Op(
    fn=engram_lookup,
    family="engram",
    args=(
        Arg("table", "V D", "f32 bf16 e4m3", "the entries"),
        Arg("rows", "T R", "i32", "which entries each token takes; -1: none"),
        Arg("scale", "V D/32", "e8m0", "of every 32 FP8 codes"),
    ),
    outs=(Out("out", "T R*D", "dtype", "the entries of each token side by side"),),
    reference=reference,
    inputs=inputs,
    test_dims=(
        {"V": 50, "D": 40, "T": 9, "R": 5},
        {"V": 20, "D": 64, "T": 7, "R": 3, "dtype": 1},
        {"V": 30, "D": 100, "T": 5, "R": 4, "dtype": 2},
        {"V": 300, "D": 256, "T": 40, "R": 24, "dtype": 2},
        {"V": 3, "D": 1, "T": 2, "R": 2},
        {"V": 0, "D": 16, "T": 2, "R": 2},
        {"V": 5, "D": 8, "T": 0, "R": 3},
        {"V": 5, "D": 8, "T": 3, "R": 0},
    ),
    bench_dims=(
        {"V": 1 << 20, "D": 256, "T": 1, "R": 24},
        {"V": 1 << 20, "D": 256, "T": 4096, "R": 24},
        {"V": 1 << 20, "D": 256, "T": 4096, "R": 24, "dtype": 2},
    ),
    spoil=lambda x: {**x, "rows": torch.full_like(x["rows"], -1)},
    source="Engram, arXiv 2601.07372",
    rows=("rows",),
    hidden=(Option("dtype", "dtype", None, nullable=False),),
    bytes=lambda d: d["T"] * d["R"] * d["D"] * (4.0, 8.0, 3.0)[d.get("dtype", 0)],
)

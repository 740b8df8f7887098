"""Rows of tokens in the order of their experts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsekern.backend import launch
from sparsekern.schema import DTYPES, Arg, Dims, Op, Out


def moe_gather(x: Tensor, row_token: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Copy the row of each token to where its experts want it.

    out[r, :] = x[row_token[r], :], zero bytes where row_token[r] is -1

    Any dtype, unchanged, so that codes and their scales gather alike.
    """
    result: Tensor = launch(OP, x, row_token, out)
    return result


def reference(x: Tensor, row_token: Tensor) -> Tensor:
    """On bytes, which torch can index for every dtype."""
    rows = x.contiguous().view(torch.uint8)
    zero = rows.new_zeros(1, rows.shape[1])
    return torch.cat([rows, zero])[row_token.long()].view(x.dtype)  # -1 is the last row, the zeros


def inputs(dims: Dims, rng: torch.Generator) -> dict[str, Any]:
    """Random bytes as values of any dtype; a tenth of the rows is padding."""
    dtype = list(DTYPES.values())[dims.get("dtype", 1)]
    limit, width = 2 if dtype is torch.bool else 256, dims["H"] * dtype.itemsize
    codes = torch.randint(limit, (dims["T"], width), generator=rng)
    row_token = torch.randint(dims["T"], (dims["P"],), generator=rng, dtype=torch.int32)
    row_token[torch.rand(dims["P"], generator=rng) < 0.1] = -1
    return {"x": codes.to(torch.uint8).view(dtype), "row_token": row_token}


OP = Op(
    fn=moe_gather,
    family="moe",
    args=(
        Arg("x", "T H", " ".join(DTYPES), "one row per token"),
        Arg("row_token", "P", "i32", "the token of each row, -1 on padding"),
    ),
    outs=(Out("out", "P H", "x", "one row per row of the permutation"),),
    reference=reference,
    inputs=inputs,
    test_dims=(
        *({"T": 9, "H": 37, "P": 50, "dtype": i} for i in range(len(DTYPES))),
        {"T": 3, "H": 1, "P": 7, "dtype": 4},
        {"T": 40, "H": 7168, "P": 300},
        {"T": 4, "H": 16, "P": 0},
    ),
    bench_dims=(
        {"T": 1, "H": 7168, "P": 8},
        {"T": 64, "H": 7168, "P": 512},
        {"T": 4096, "H": 7168, "P": 32768, "dtype": 2},
    ),
    spoil=lambda x: {**x, "row_token": torch.full_like(x["row_token"], -1)},
    source="TileKernels expand_to_fused",
    rows=("row_token",),
    bytes=lambda d: 2.0 * d["P"] * d["H"] * list(DTYPES.values())[d.get("dtype", 1)].itemsize,
)

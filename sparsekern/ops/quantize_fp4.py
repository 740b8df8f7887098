"""FP4 quantisation: two e2m1 codes a byte, one power-of-two scale per row and group of channels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsekern.backend import launch
from sparsekern.ops._small_floats import (
    block_amax,
    e2m1_codes,
    pack_nibbles,
    sample,
    scale_and_inverse,
    spread,
)
from sparsekern.schema import Arg, Dims, Op, Out


def quantize_fp4(
    x: Tensor,
    *,
    group_size: int = 32,
    amax_floor: float = 6 * 2**-126,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Quantise each group of `group_size` channels of each row to FP4, with one UE8M0 scale.

        amax = max(max |x[r, group]|, amax_floor)
        scale[r, g] = 2^ceil(log2(amax / 6)),  code[r, k] = e2m1(x[r, k] / scale),  x ~ value(code) * scale

    The power of two is found on the bits of amax / 6. Codes are rounded to nearest, ties to the even code;
    the sign of zero is kept. They lie two in a byte, the earlier one in the lower half, so the last dimension
    and `group_size` are even. The last group of a row may be shorter.

    FP4 has no NaN: NaN becomes +6, as in hardware, and counts as nothing in amax. An infinity becomes +-6 and
    counts as the largest finite number. With `amax_floor` 0 a group of zeros has scale byte 0.
    """
    result: tuple[Tensor, Tensor] = launch(OP, x, group_size, amax_floor, out)
    return result


def reference(x: Tensor, *, group_size: int = 32, amax_floor: float = 6 * 2**-126) -> tuple[Tensor, Tensor]:
    """Blocks of one row."""
    rows, block = x.unsqueeze(-2), (1, group_size)
    scale, inverse = scale_and_inverse(block_amax(rows, block), 6.0, "ue8m0", amax_floor)
    codes = e2m1_codes(rows.float() * spread(inverse, block, rows.shape))
    return pack_nibbles(codes).squeeze(-2), scale.squeeze(-2).to(torch.float8_e8m0fnu)


def inputs(dims: Dims, rng: torch.Generator) -> dict[str, Any]:
    """Rows of very different size, with zeros, infinities and NaN; with `ties` points between codes."""
    dtype = torch.float32 if dims.get("f32") else torch.bfloat16
    x = sample((dims["M"], dims["K"]), rng, dtype)
    if dims.get("ties"):
        x = torch.randint(-24, 25, x.shape, generator=rng).div(4).to(dtype)
        x[..., :: dims["group_size"]] = 6.0
    return {"x": x, "group_size": dims["group_size"]}


OP = Op(
    fn=quantize_fp4,
    family="quant",
    args=(Arg("x", "... K", "f32 bf16", "rows"),),
    outs=(
        Out("packed", "... K", "fp4", "codes, two a byte"),
        Out("scale", "... K/group_size", "e8m0", "what the codes' values are multiplied by to give x"),
    ),
    reference=reference,
    inputs=inputs,
    test_dims=(
        {"M": 9, "K": 512, "group_size": 32},
        {"M": 5, "K": 330, "group_size": 32, "f32": 1},
        {"M": 6, "K": 78, "group_size": 14, "f32": 1},
        {"M": 4, "K": 22, "group_size": 2},
        {"M": 3, "K": 50, "group_size": 1000},
        {"M": 16, "K": 96, "group_size": 32, "ties": 1},
        {"M": 1, "K": 2, "group_size": 32},
        {"M": 0, "K": 64, "group_size": 32},
        {"M": 3, "K": 0, "group_size": 32},
    ),
    bench_dims=(
        {"M": 1, "K": 7168, "group_size": 32},
        {"M": 4096, "K": 7168, "group_size": 32},
        {"M": 65536, "K": 128, "group_size": 32},
    ),
    spoil=lambda x: {**x, "x": x["x"] * 1.3},
    source="TileKernels 36d9e45 per_token_cast, e2m1",
    rows=("x",),
    flops=lambda d: 3.0 * d["M"] * d["K"],
    bytes=lambda d: (4.5 if d.get("f32") else 2.5) * d["M"] * d["K"],
)

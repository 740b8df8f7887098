"""FP8 quantisation of activations: one scale per row and group of channels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsekern.backend import launch
from sparsekern.ops._small_floats import ScaleFormat, quantise_e4m3, sample
from sparsekern.schema import Arg, Dims, Op, Out


def quantize_fp8(
    x: Tensor,
    *,
    group_size: int = 128,
    scale_format: ScaleFormat = "fp32",
    amax_floor: float = 1e-4,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Quantise each group of `group_size` channels of each row to FP8, with one scale.

        amax = max(max |x[r, group]|, amax_floor)
        q[r, k] = e4m3(x[r, k] * (448 / amax)),  scale[r, g] = amax / 448,  x ~ q * scale

    The division is correctly rounded, codes are rounded to nearest even and saturate at 448. With "ue8m0" the
    scale is the smallest power of two that is not below amax / 448, and x is multiplied by its exact inverse.
    The last group of a row may be shorter.

    NaN counts as nothing in amax and becomes the NaN code, with its sign; the other codes are as without it.
    An infinity becomes +-448 and counts as the largest finite number in amax. A group of zeros has scale
    amax_floor / 448.
    """
    result: tuple[Tensor, Tensor] = launch(OP, x, group_size, scale_format, amax_floor, out)
    return result


def reference(
    x: Tensor, *, group_size: int = 128, scale_format: ScaleFormat = "fp32", amax_floor: float = 1e-4
) -> tuple[Tensor, Tensor]:
    """Blocks of one row."""
    q, scale = quantise_e4m3(x.unsqueeze(-2), (1, group_size), scale_format, amax_floor)
    return q.squeeze(-2), scale.squeeze(-2)


def inputs(dims: Dims, rng: torch.Generator) -> dict[str, Any]:
    """Rows of very different size, with zeros, infinities and NaN; with `ties` points between codes."""
    dtype = torch.float32 if dims.get("f32") else torch.bfloat16
    x = sample((dims["M"], dims["K"]), rng, dtype)
    if dims.get("ties"):  # odd multiples of half a step of 448's neighbourhood, and of the subnormals
        x = torch.randint(-896, 897, x.shape, generator=rng).div(2 if dims["ties"] == 1 else 2**11).to(dtype)
        x[..., :: dims["group_size"]] = 448.0
    options = {"scale_format": "ue8m0"} if dims.get("ue8m0") else {}
    return {"x": x, "group_size": dims["group_size"], **options}


OP = Op(
    fn=quantize_fp8,
    family="quant",
    args=(Arg("x", "... K", "f32 bf16", "rows"),),
    outs=(
        Out("q", "... K", "e4m3", "codes"),
        Out("scale", "... K/group_size", "scale_format", "what codes are multiplied by to give x"),
    ),
    reference=reference,
    inputs=inputs,
    test_dims=(
        {"M": 9, "K": 512, "group_size": 128},
        {"M": 5, "K": 331, "group_size": 128, "ue8m0": 1},
        {"M": 7, "K": 200, "group_size": 32, "f32": 1},
        {"M": 6, "K": 77, "group_size": 24, "f32": 1, "ue8m0": 1},
        {"M": 4, "K": 21, "group_size": 1},
        {"M": 3, "K": 50, "group_size": 1000},
        {"M": 16, "K": 384, "group_size": 128, "f32": 1, "ties": 1},
        {"M": 16, "K": 384, "group_size": 128, "f32": 1, "ties": 2},
        {"M": 1, "K": 1, "group_size": 128},
        {"M": 0, "K": 256, "group_size": 128},
        {"M": 3, "K": 0, "group_size": 128},
    ),
    bench_dims=(
        {"M": 1, "K": 7168, "group_size": 128},
        {"M": 128, "K": 7168, "group_size": 128},
        {"M": 4096, "K": 7168, "group_size": 128},
        {"M": 4096, "K": 7168, "group_size": 128, "ue8m0": 1},
        {"M": 4096, "K": 4096, "group_size": 32, "ue8m0": 1},
    ),
    spoil=lambda x: {**x, "x": x["x"] * 1.1},
    source="TileKernels 36d9e45 per_token_cast; arXiv 2412.19437, section 3.3.2",
    rows=("x",),
    flops=lambda d: 3.0 * d["M"] * d["K"],
    bytes=lambda d: (5.0 if d.get("f32") else 3.0) * d["M"] * d["K"],
)

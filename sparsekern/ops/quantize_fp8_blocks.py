"""FP8 quantisation of weights: one scale per block of a matrix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsekern.backend import launch
from sparsekern.ops._small_floats import ScaleFormat, quantise_e4m3, sample
from sparsekern.schema import Arg, Dims, Op, Out


def quantize_fp8_blocks(
    w: Tensor,
    *,
    block: tuple[int, int] = (128, 128),
    scale_format: ScaleFormat = "fp32",
    amax_floor: float = 1e-4,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Quantise each block of a matrix to FP8, with one scale.

        amax = max(max |w[block]|, amax_floor)
        q[n, k] = e4m3(w[n, k] * (448 / amax)),  scale[block] = amax / 448,  w ~ q * scale

    `block` is (rows, columns); the last blocks of a matrix may be smaller. Rounding, "ue8m0", NaN and
    infinities are as in `quantize_fp8`.
    """
    result: tuple[Tensor, Tensor] = launch(OP, w, block, scale_format, amax_floor, out)
    return result


def reference(
    w: Tensor,
    *,
    block: tuple[int, int] = (128, 128),
    scale_format: ScaleFormat = "fp32",
    amax_floor: float = 1e-4,
) -> tuple[Tensor, Tensor]:
    """The formula, block by block."""
    return quantise_e4m3(w, block, scale_format, amax_floor)


def inputs(dims: Dims, rng: torch.Generator) -> dict[str, Any]:
    """Matrices whose rows are of very different size, with zeros, infinities and NaN."""
    dtype = torch.float32 if dims.get("f32") else torch.bfloat16
    options = {"scale_format": "ue8m0"} if dims.get("ue8m0") else {}
    w = sample((dims["E"], dims["N"], dims["K"]), rng, dtype)
    return {"w": w, "block": (dims["block_0"], dims["block_1"]), **options}


def _dims(e: int, n: int, k: int, rows: int = 128, cols: int = 128, **flags: int) -> Dims:
    return {"E": e, "N": n, "K": k, "block_0": rows, "block_1": cols, **flags}


OP = Op(
    fn=quantize_fp8_blocks,
    family="quant",
    args=(Arg("w", "... N K", "f32 bf16", "matrices"),),
    outs=(
        Out("q", "... N K", "e4m3", "codes"),
        Out("scale", "... N/block_0 K/block_1", "scale_format", "what codes are multiplied by to give w"),
    ),
    reference=reference,
    inputs=inputs,
    test_dims=(
        _dims(2, 256, 256),
        _dims(1, 200, 333, ue8m0=1),
        _dims(3, 70, 90, 32, 32, f32=1),
        _dims(2, 9, 11, 4, 3, ue8m0=1, f32=1),
        _dims(1, 5, 40, 1, 32),
        _dims(1, 40, 5, 32, 1),
        _dims(1, 3, 3, 500, 500),
        _dims(1, 1, 1),
        _dims(2, 0, 128),
        _dims(0, 128, 128),
    ),
    bench_dims=(_dims(1, 4096, 7168), _dims(8, 2048, 7168), _dims(1, 7168, 2048, 32, 32, ue8m0=1)),
    spoil=lambda x: {**x, "block": (x["block"][0], x["block"][1] + 1), "w": x["w"] * 1.1},
    source="TileKernels 36d9e45 per_block_cast; arXiv 2412.19437, section 3.3.2",
    rows=("w",),
    flops=lambda d: 3.0 * d["E"] * d["N"] * d["K"],
    bytes=lambda d: (5.0 if d.get("f32") else 3.0) * d["E"] * d["N"] * d["K"],
)

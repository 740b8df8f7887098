"""Dense GEMM with weights of any format."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsekern.backend import launch
from sparsekern.schema import Arg, Dims, Op, Out
from sparsekern.weights import (
    BYTES,
    FORMATS,
    PackedWeights,
    Sparse2to4,
    as_arguments,
    dequantised,
    masks_argument,
    packed_option,
    random_activations,
    random_weights,
)


def gemm(
    a: Tensor,
    b: Tensor | PackedWeights | Sparse2to4,
    *,
    a_scale: Tensor | None = None,
    b_scale: Tensor | None = None,
    a_block: tuple[int, int] | None = None,
    b_block: tuple[int, int] | None = None,
    bias: Tensor | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
    out: Tensor | None = None,
) -> Tensor:
    """Multiply activations by the transpose of weights, accumulating in float32.

    out[m, n] = sum_k (a[m, k] * a_scale[m, k / ga]) * (b[n, k] * b_scale[n / bn, k / bk]) + bias[n]

    Weights are float32 (with float32 `a`), bfloat16, FP8, packed FP4, `Sparse2to4` of bfloat16 or FP8, or
    `PackedWeights`. With bfloat16 or float32 `a` and quantised `b` only the weights are quantised: they are
    decoded exactly, and float32 `a` keeps float32 products. The block sizes follow from the scales' shapes
    (the power of two that fits) unless `a_block`, `b_block` say otherwise. Row m depends on row m of `a`
    alone, bit for bit. `pack_weights` makes it faster.
    """
    w = as_arguments("gemm", b, b_scale, b_block)
    result: Tensor = launch(
        OP, a, w.data, a_scale, w.scale, bias, w.masks, a_block, w.block, out_dtype, w.description, out
    )
    return result


def reference(
    a: Tensor,
    b: Tensor | PackedWeights | Sparse2to4,
    *,
    a_scale: Tensor | None = None,
    b_scale: Tensor | None = None,
    a_block: tuple[int, int] | None = None,
    b_block: tuple[int, int] | None = None,
    bias: Tensor | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """Dequantise, multiply in float64, round once."""
    y = dequantised(a, a_scale, a_block) @ dequantised(b, b_scale, b_block).mT
    return (y if bias is None else y + bias.double()).to(out_dtype)


def inputs(dims: Dims, rng: torch.Generator) -> dict[str, Any]:
    """Activations and weights of the kinds that `dims` names by number."""
    x = random_activations(dims["M"], dims["K"], A_KINDS[dims["a"]], rng, dims.get("group", 128))
    block = (dims["bn"], dims["bk"]) if "bn" in dims else None
    x |= random_weights(dims["N"], dims["K"], FORMATS[dims["b"]], rng, block=block)
    if block is not None:
        x["b_block"] = block
    if "group" in dims:
        x["a_block"] = (1, dims["group"])
    if dims.get("bias"):
        x["bias"] = torch.randn(dims["N"], generator=rng)
    return {**x, "out_dtype": torch.float32 if dims.get("f32") else torch.bfloat16}


A_KINDS = ("f32", "bf16", "e4m3")

# (a, b) by number: every pair that there is.
PAIRS = tuple((a, b) for a in range(3) for b in range(len(FORMATS)) if b > 0 or a == 0)

OP = Op(
    fn=gemm,
    family="gemm",
    args=(
        Arg("a", "M K", "f32 bf16 e4m3", "activations"),
        Arg("b", "N K | bytes", "f32 bf16 e4m3 fp4", "weights, or the panels of packed ones", layout="dense"),
        Arg("a_scale", "M K/a_block_1", "f32 e8m0", "scales of e4m3 activations, per row and group of K"),
        Arg(
            "b_scale",
            "N/b_block_0 K/b_block_1 | scales",
            "f32 e8m0",
            "block scales of the weights",
            layout="dense",
        ),
        Arg("bias", "N", "f32 bf16", "added before rounding"),
        masks_argument(),
    ),
    outs=(Out("out", "M N", "out_dtype", "a @ b.T"),),
    reference=reference,
    inputs=inputs,
    test_dims=(
        *(
            {"M": m, "N": n, "K": k, "a": a, "b": b}
            for a, b in PAIRS
            for m, n, k in ((1, 40, 96), (9, 70, 264))
        ),
        {"M": 37, "N": 136, "K": 516, "a": 1, "b": 2, "f32": 1},
        {"M": 3, "N": 50, "K": 77, "a": 1, "b": 2, "bias": 1},
        {"M": 7, "N": 1, "K": 1, "a": 1, "b": 1},
        {"M": 8, "N": 33, "K": 96, "a": 2, "b": 2, "group": 5, "bn": 3, "bk": 7},
        {"M": 8, "N": 33, "K": 96, "a": 1, "b": 3, "bn": 4, "bk": 6},
        {"M": 300, "N": 20, "K": 32, "a": 2, "b": 3, "group": 32},
        {"M": 5, "N": 35, "K": 68, "a": 1, "b": 5, "bn": 4, "bk": 12},
        {"M": 70, "N": 65, "K": 140, "a": 1, "b": 5, "f32": 1},
        {"M": 0, "N": 16, "K": 32, "a": 1, "b": 2},
        {"M": 2, "N": 16, "K": 0, "a": 1, "b": 1},
    ),
    bench_dims=tuple({"M": m, "N": 2048, "K": 7168, "a": 1, "b": 2} for m in (1, 8, 16, 256)),
    spoil=lambda x: {**x, "b": x["b"].view(torch.uint8).roll(x["b"].element_size(), -1).view(x["b"].dtype)},
    source="DeepSeek-V3 technical report (arXiv 2412.19437), section 3.3",
    max_err=2**-8,
    rows=("a", "a_scale"),
    hidden=(packed_option(),),
    flops=lambda d: 2.0 * d["M"] * d["N"] * d["K"],
    bytes=lambda d: d["N"] * d["K"] * BYTES[d["b"]] + 2.0 * d["M"] * (d["N"] + d["K"]),
)

"""Grouped GEMM: every row meets the weights of the expert that owns it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsekern.backend import launch
from sparsekern.ops.gemm import A_KINDS, PAIRS
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


def grouped_gemm(
    a: Tensor,
    b: Tensor | PackedWeights | Sparse2to4,
    expert_offsets: Tensor,
    *,
    a_scale: Tensor | None = None,
    b_scale: Tensor | None = None,
    a_block: tuple[int, int] | None = None,
    b_block: tuple[int, int] | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
    out: Tensor | None = None,
) -> Tensor:
    """Multiply each row by the weights of its expert; rows are sorted by expert.

    out[r, n] = sum_k a[r, k] * b[e, n, k]    where expert_offsets[e] <= r < expert_offsets[e + 1]

    Rows from expert_offsets[E] on are zero. An expert may own any number of rows, none included; nothing
    has to be padded. Formats, scales, blocks and precision are those of `gemm`, and a row gives the bits
    that `gemm` gives it.
    """
    w = as_arguments("grouped_gemm", b, b_scale, b_block)
    result: Tensor = launch(
        OP,
        a,
        w.data,
        expert_offsets,
        a_scale,
        w.scale,
        w.masks,
        a_block,
        w.block,
        out_dtype,
        w.description,
        out,
    )
    return result


def reference(
    a: Tensor,
    b: Tensor | PackedWeights | Sparse2to4,
    expert_offsets: Tensor,
    *,
    a_scale: Tensor | None = None,
    b_scale: Tensor | None = None,
    a_block: tuple[int, int] | None = None,
    b_block: tuple[int, int] | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """Expert by expert in float64."""
    x, w = dequantised(a, a_scale, a_block), dequantised(b, b_scale, b_block)
    out = x.new_zeros(x.shape[0], w.shape[1])
    for e, (first, last) in enumerate(
        zip(expert_offsets[:-1].tolist(), expert_offsets[1:].tolist(), strict=True)
    ):
        out[first:last] = x[first:last] @ w[e].mT
    return out.to(out_dtype)


def inputs(dims: Dims, rng: torch.Generator) -> dict[str, Any]:
    """Rows dealt to experts at random, some experts without any, a few rows left over."""
    x = random_activations(dims["P"], dims["K"], A_KINDS[dims["a"]], rng)
    x |= random_weights(dims["N"], dims["K"], FORMATS[dims["b"]], rng, dims["E"])
    cuts = (
        torch.randint(0, max(dims["P"] - dims.get("spare", 0), 0) + 1, (dims["E"],), generator=rng)
        .sort()
        .values
    )
    return {**x, "expert_offsets": torch.cat([torch.tensor([0]), cuts]).int()}


OP = Op(
    fn=grouped_gemm,
    family="gemm",
    args=(
        Arg("a", "P K", "f32 bf16 e4m3", "activations, sorted by expert"),
        Arg(
            "b", "E N K | bytes", "f32 bf16 e4m3 fp4", "weights, or the panels of packed ones", layout="dense"
        ),
        Arg("expert_offsets", "E+1", "i32", "where each expert's rows start; the last: where they end"),
        Arg("a_scale", "P K/a_block_1", "f32 e8m0", "scales of e4m3 activations, per row and group of K"),
        Arg("b_scale", "E N/b_block_0 K/b_block_1 | scales", "f32 e8m0", "block scales", layout="dense"),
        masks_argument(),
    ),
    outs=(Out("out", "P N", "out_dtype", "a @ b[expert].T"),),
    reference=reference,
    inputs=inputs,
    test_dims=(
        *(
            {"P": p, "N": 72, "K": 160, "E": e, "a": a, "b": b}
            for a, b in PAIRS
            for p, e in ((5, 3), (41, 4))
        ),
        {"P": 30, "N": 33, "K": 64, "E": 40, "a": 1, "b": 2, "spare": 7},
        {"P": 0, "N": 16, "K": 32, "E": 2, "a": 1, "b": 2},
    ),
    bench_dims=tuple({"P": p, "N": 4096, "K": 2048, "E": 16, "a": 1, "b": 2} for p in (8, 128, 1024)),
    spoil=lambda x: {**x, "a": x["a"].view(torch.uint8).roll(x["a"].element_size(), -1).view(x["a"].dtype)},
    source="DeepGEMM, m-grouped contiguous layout",
    max_err=2**-8,
    hidden=(packed_option("E"),),
    flops=lambda d: 2.0 * d["P"] * d["N"] * d["K"],
    bytes=lambda d: min(d["P"], d["E"]) * d["N"] * d["K"] * BYTES[d["b"]],
)

"""Grouped GEMM over a fixed number of row slots per expert, of which the first few are filled."""

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


def grouped_gemm_masked(
    a: Tensor,
    b: Tensor | PackedWeights | Sparse2to4,
    rows: Tensor,
    *,
    a_scale: Tensor | None = None,
    b_scale: Tensor | None = None,
    a_block: tuple[int, int] | None = None,
    b_block: tuple[int, int] | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
    out: Tensor | None = None,
) -> Tensor:
    """Multiply the first rows[e] rows of each expert's slice by its weights.

    out[e, r, n] = sum_k a[e, r, k] * b[e, n, k]    where r < rows[e]

    What `a` holds beyond rows[e] is never looked at; those rows of the result are zero, or left untouched
    when `out` is given. Formats, scales, blocks and precision are those of `gemm`.
    """
    w = as_arguments("grouped_gemm_masked", b, b_scale, b_block)
    result: Tensor = launch(
        OP, a, w.data, rows, a_scale, w.scale, w.masks, a_block, w.block, out_dtype, w.description, out
    )
    return result


def reference(
    a: Tensor,
    b: Tensor | PackedWeights | Sparse2to4,
    rows: Tensor,
    *,
    a_scale: Tensor | None = None,
    b_scale: Tensor | None = None,
    a_block: tuple[int, int] | None = None,
    b_block: tuple[int, int] | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """Expert by expert in float64."""
    x, w = dequantised(a, a_scale, a_block), dequantised(b, b_scale, b_block)
    out = x.new_zeros(*x.shape[:2], w.shape[1])
    for e, n in enumerate(rows.tolist()):
        out[e, :n] = x[e, :n] @ w[e].mT
    return out.to(out_dtype)


def inputs(dims: Dims, rng: torch.Generator) -> dict[str, Any]:
    """Slices filled to random heights; NaN beyond."""
    e, m = dims["E"], dims["Mmax"]
    x = random_activations(m, dims["K"], A_KINDS[dims["a"]], rng, lead=(e,))
    rows = torch.randint(0, m + 1, (e,), generator=rng).int()
    unused = torch.arange(m) >= rows[:, None]
    x["a"] = torch.where(unused[..., None], float("nan"), x["a"].float()).to(x["a"].dtype)
    return {**x, **random_weights(dims["N"], dims["K"], FORMATS[dims["b"]], rng, e), "rows": rows}


OP = Op(
    fn=grouped_gemm_masked,
    family="gemm",
    args=(
        Arg("a", "E Mmax K", "f32 bf16 e4m3", "activations of each expert"),
        Arg(
            "b", "E N K | bytes", "f32 bf16 e4m3 fp4", "weights, or the panels of packed ones", layout="dense"
        ),
        Arg("rows", "E", "i32", "how many rows of each expert count"),
        Arg(
            "a_scale", "E Mmax K/a_block_1", "f32 e8m0", "scales of e4m3 activations, per row and group of K"
        ),
        Arg("b_scale", "E N/b_block_0 K/b_block_1 | scales", "f32 e8m0", "block scales", layout="dense"),
        masks_argument(),
    ),
    outs=(Out("out", "E Mmax N", "out_dtype", "a[e] @ b[e].T"),),
    reference=reference,
    inputs=inputs,
    test_dims=(
        *({"E": 3, "Mmax": 9, "N": 72, "K": 160, "a": a, "b": b} for a, b in PAIRS),
        {"E": 2, "Mmax": 1, "N": 5, "K": 10, "a": 1, "b": 2},
        {"E": 2, "Mmax": 0, "N": 16, "K": 32, "a": 1, "b": 2},
    ),
    bench_dims=({"E": 16, "Mmax": 8, "N": 4096, "K": 2048, "a": 1, "b": 2},),
    spoil=lambda x: {**x, "rows": (x["rows"] - 1).clamp_min(0)},
    source="DeepGEMM, m-grouped masked layout",
    max_err=2**-8,
    hidden=(packed_option("E"),),
    flops=lambda d: 1.0 * d["E"] * d["Mmax"] * d["N"] * d["K"],
    bytes=lambda d: d["E"] * d["N"] * d["K"] * BYTES[d["b"]],
)

"""The expert layer of a mixture of experts, in one call."""

from __future__ import annotations

from typing import Any, Literal

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
    random_weights,
)


def fused_moe(
    x: Tensor,
    w13: Tensor | PackedWeights | Sparse2to4,
    w2: Tensor | PackedWeights | Sparse2to4,
    weights: Tensor,
    ids: Tensor,
    *,
    w13_scale: Tensor | None = None,
    w2_scale: Tensor | None = None,
    w13_block: tuple[int, int] | None = None,
    w2_block: tuple[int, int] | None = None,
    activation: Literal["silu"] = "silu",
    limit: float | None = None,
    quantize_activations: Literal["fp8"] | None = None,
    weight_on: Literal["output", "hidden"] = "output",
    out_dtype: torch.dtype | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Send each token through its experts and add up what they return.

    out[t] = sum_j weights[t, j] * w2[e] @ (silu(gate) * up)    where e = ids[t, j], [gate | up] = w13[e]
    @ x[t]

    ids < 0 or >= E are dropped. `limit` bounds gate from above and up on both sides. `weight_on="hidden"`
    multiplies by the routing weight before the second GEMM instead of after it. The sum over j is in
    order, in float32. Without `quantize_activations` only the weights are quantised: both GEMMs run on
    x's dtype, and the rows between them are rounded to it once. With "fp8" the inputs of both GEMMs are
    quantised in groups of 128 (W8A8). Nothing of size tokens x experts is written, and scratch is
    bounded: tokens go in chunks.
    """
    up = as_arguments("fused_moe", w13, w13_scale, w13_block, "w13")
    down = as_arguments("fused_moe", w2, w2_scale, w2_block, "w2")
    result: Tensor = launch(
        OP, x, up.data, down.data, weights, ids, up.scale, down.scale, up.masks, down.masks, up.block,
        down.block, activation, limit, quantize_activations, weight_on, out_dtype, up.description,
        down.description, out,
    )  # fmt: skip
    return result


def reference(
    x: Tensor,
    w13: Tensor | PackedWeights | Sparse2to4,
    w2: Tensor | PackedWeights | Sparse2to4,
    weights: Tensor,
    ids: Tensor,
    *,
    w13_scale: Tensor | None = None,
    w2_scale: Tensor | None = None,
    w13_block: tuple[int, int] | None = None,
    w2_block: tuple[int, int] | None = None,
    activation: Literal["silu"] = "silu",
    limit: float | None = None,
    quantize_activations: Literal["fp8"] | None = None,
    weight_on: Literal["output", "hidden"] = "output",
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Token by token and expert by expert in float64."""
    first, second = dequantised(w13, w13_scale, w13_block), dequantised(w2, w2_scale, w2_block)
    rounded = _as_fp8 if quantize_activations else (lambda y: y.to(x.dtype).double())
    inputs_, out = rounded(x.double()), x.new_zeros(x.shape, dtype=torch.float64)
    for t, row in enumerate(ids.tolist()):
        for j, e in enumerate(row):
            if not 0 <= e < len(first):
                continue
            gate, up = (first[e] @ inputs_[t]).chunk(2)
            if limit is not None:
                gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
            hidden, weight = gate * gate.sigmoid() * up, weights[t, j].double()
            hidden = rounded((hidden * weight if weight_on == "hidden" else hidden)[None])[0]
            y = second[e] @ hidden
            out[t] += y if weight_on == "hidden" else y * weight
    return out.to(out_dtype or x.dtype)


def _as_fp8(y: Tensor) -> Tensor:
    """Quantised to e4m3 in groups of 128 and back."""
    groups = torch.nn.functional.pad(y.float(), (0, -y.shape[-1] % 128)).unflatten(-1, (-1, 128))
    amax = groups.abs().amax(-1, keepdim=True).clamp_min(1e-4)
    codes = (groups * (torch.full_like(amax, 448) / amax)).clamp(-448, 448).to(torch.float8_e4m3fn)
    values: Tensor = codes.double() * (amax / 448).double()
    return values.flatten(-2)[..., : y.shape[-1]]


def inputs(dims: Dims, rng: torch.Generator) -> dict[str, Any]:
    """Tokens routed at random, a few slots dropped; weights scaled to keep values near one."""
    t, h, i, e, k = (dims[d] for d in ("T", "H", "I", "E", "top_k"))
    kind = FORMATS[dims["w"]]
    w13, w2 = (random_weights(n, c, kind, rng, e) for n, c in ((2 * i, h), (h, i)))
    ids = (
        torch.stack([torch.randperm(max(e, k), generator=rng)[:k] for _ in range(t)])
        if t
        else torch.zeros(0, k)
    )
    ids = torch.where(torch.rand(ids.shape, generator=rng) < 0.1, -1, ids) if dims.get("drop") else ids
    x = {
        "x": (torch.randn(t, h, generator=rng) / h**0.5).to(
            torch.float32 if dims.get("f32") else torch.bfloat16
        ),
        "w13": w13["b"],
        "w2": w2["b"],
        "weights": torch.rand(t, k, generator=rng),
        "ids": ids.int(),
    }
    if "b_scale" in w13:
        x |= {"w13_scale": w13["b_scale"], "w2_scale": w2["b_scale"]}
    if dims.get("limit"):
        x["limit"] = dims["limit"] / 4
    if dims.get("w8a8"):
        x["quantize_activations"] = "fp8"
    return {**x, "weight_on": "hidden" if dims.get("hidden") else "output"}


_SMALL = {"T": 5, "H": 96, "I": 64, "E": 6, "top_k": 3}
_REAL = {"E": 16, "top_k": 8, "w": 2}

OP = Op(
    fn=fused_moe,
    family="gemm",
    args=(
        Arg("x", "T H", "f32 bf16", "tokens"),
        Arg(
            "w13",
            "E 2*I H | bytes13",
            "f32 bf16 e4m3 fp4",
            "gate above up, or the panels of packed ones",
            layout="dense",
        ),
        Arg(
            "w2",
            "E H I | bytes2",
            "f32 bf16 e4m3 fp4",
            "down projection, or the panels of packed ones",
            layout="dense",
        ),
        Arg("weights", "T top_k", "f32", "routing weights", layout="dense"),
        Arg("ids", "T top_k", "i32", "expert of each slot"),
        Arg(
            "w13_scale",
            "E 2*I/w13_block_0 H/w13_block_1 | scales13",
            "f32 e8m0",
            "block scales",
            layout="dense",
        ),
        Arg("w2_scale", "E H/w2_block_0 I/w2_block_1 | scales2", "f32 e8m0", "block scales", layout="dense"),
        masks_argument("w13"),
        masks_argument("w2"),
    ),
    outs=(Out("out", "T H", "out_dtype x", "the sum over each token's experts"),),
    reference=reference,
    inputs=inputs,
    test_dims=(
        *({**_SMALL, "w": w, "f32": f32} for w in range(len(FORMATS)) for f32 in (0, 1) if w or f32),
        {**_SMALL, "w": 2, "drop": 1, "limit": 2, "hidden": 1},
        {**_SMALL, "w": 2, "w8a8": 1, "I": 200},
        {"T": 40, "H": 130, "I": 72, "E": 2, "top_k": 2, "w": 2, "limit": 2},
        {"T": 3, "H": 64, "I": 10, "E": 9, "top_k": 4, "w": 1},
        {"T": 0, "H": 64, "I": 32, "E": 4, "top_k": 2, "w": 2},
    ),
    bench_dims=(
        *({"T": t, "H": 2048, "I": 1024, **_REAL} for t in (1, 4, 16, 64)),
        *({"T": t, "H": 7168, "I": 2048, **_REAL} for t in (1, 16)),
    ),
    spoil=lambda x: {**x, "weights": x["weights"] * 1.1},
    source="DeepSeek-V3 technical report (arXiv 2412.19437)",
    max_err=2**-6,
    rows=("x", "weights", "ids"),
    hidden=(
        packed_option("E", "packed13", ("I2", "H", "w13_format", "w13_block_0", "w13_block_1")),
        packed_option("E", "packed2", ("H", "I", "w2_format", "w2_block_0", "w2_block_1")),
    ),
    flops=lambda d: 6.0 * d["T"] * d["top_k"] * d["H"] * d["I"],
    bytes=lambda d: min(d["E"], d["T"] * d["top_k"]) * 3.0 * d["H"] * d["I"] * BYTES[d["w"]],
)

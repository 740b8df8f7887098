"""Packing of weights for the GEMMs."""

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
    dense_shape,
    format_of,
    masks_argument,
    packed_option,
    random_weights,
    scale_block,
)


def pack_weights(
    b: Tensor | Sparse2to4, b_scale: Tensor | None = None, *, block: tuple[int, int] | None = None
) -> PackedWeights:
    """Lay weights out as the kernels of this library stream them: once, when a model is loaded.

    The result takes the place of `(b, b_scale)` in every GEMM, holds as many bytes (N is rounded up to
    16, K to a few elements) and gives the same bits; `unpack()` returns the logical weights exactly.
    Without `block`, the block size is the power of two that the scale's shape allows.
    """
    w = as_arguments("pack_weights", b, b_scale, block)
    data, scale = launch(OP, w.data, w.scale, w.masks, w.block, w.description, None)
    return _packed(b, b_scale, block, data, scale)


def _packed(
    b: Tensor | Sparse2to4,
    b_scale: Tensor | None,
    block: tuple[int, int] | None,
    data: Tensor,
    scale: Tensor | None,
) -> PackedWeights:
    n, k = dense_shape(b)
    lead = (b.values if isinstance(b, Sparse2to4) else b).shape[:-2]
    sizes = scale_block(n, k, b_scale, block)
    return PackedWeights(data, scale if b_scale is not None else None, (*lead, n, k), format_of(b), sizes)


def reference(
    b: Tensor | Sparse2to4, b_scale: Tensor | None = None, *, block: tuple[int, int] | None = None
) -> PackedWeights:
    """Element by element, from the description in csrc/gemm/gemm.h."""
    n, k = dense_shape(b)
    name, (bn, bk) = format_of(b), scale_block(n, k, b_scale, block)
    values = b.values if isinstance(b, Sparse2to4) else b
    experts = values.reshape(-1, *values.shape[-2:])
    length = max(min(bk, k) if b_scale is not None else k, 1)
    if isinstance(b, Sparse2to4):
        matrices = [_pack_sparse(*e) for e in zip(experts, b.metadata.view(-1, n, -(-k // 8)), strict=True)]
    else:
        matrices = [_pack_matrix(e, name, k, length) for e in experts]
    data = torch.cat(matrices) if matrices else values.new_empty(0)
    scale = b_scale
    if b_scale is not None and bn % 16:  # a lane each: [n / 16][segment][16]
        rows = b_scale.view(torch.uint8) if b_scale.dtype != torch.float32 else b_scale
        rows = rows.repeat_interleave(bn, -2)[..., :n, :]
        lanes = torch.nn.functional.pad(rows, (0, 0, 0, -n % 16)).unflatten(-2, (-1, 16)).transpose(-1, -2)
        scale = lanes.contiguous().view(b_scale.dtype)
    if scale is not None:
        scale = scale.reshape(-1)
    return _packed(b, b_scale, block, data.view(torch.uint8), scale)


def _pack_matrix(b: Tensor, name: str, k: int, length: int) -> Tensor:
    """[N, K] -> bytes: [panel][chunk][16 columns of 4 bytes]; segments are padded to whole chunks."""
    per_chunk = {"f32": 1, "bf16": 2, "e4m3": 4, "fp4": 8}[name]
    codes = torch.stack([b & 15, b >> 4], -1).flatten(-2) if name == "fp4" else b
    unit = max(per_chunk, 2)
    segments = [
        torch.nn.functional.pad(
            s.view(torch.uint8) if name == "e4m3" else s, (0, -s.shape[1] % unit, 0, -len(b) % 16)
        )
        for s in codes.split(length, 1)
    ]
    chunks = (
        torch.cat(segments, 1).unflatten(1, (-1, per_chunk)).unflatten(0, (-1, 16))
    )  # vector, column, chunk, element
    if name == "fp4":  # a byte for k and k + 2
        codes = chunks.unflatten(-1, (2, 2, 2))
        chunks = (codes[..., 0, :] | codes[..., 1, :] << 4).flatten(-2)
    if name in ("e4m3", "fp4"):  # in every group of four columns, all first pairs, then all second ones
        chunks = chunks.unflatten(1, (4, 4)).unflatten(-1, (2, 2)).permute(0, 3, 1, 4, 2, 5)
    else:
        chunks = chunks.transpose(1, 2)
    chunks = chunks.reshape(*chunks.shape[:2], -1).contiguous().view(torch.uint8)  # vector, chunk, 64 bytes
    return _panels(chunks)


def _pack_sparse(values: Tensor, metadata: Tensor) -> Tensor:
    """[N, K/2] and [N, K/8] -> chunks of four k's: two values of each of 16 columns, then 16 masks."""
    pad, kept = -len(values) % 16, 2 * values.itemsize
    fours = values.view(torch.uint8).unflatten(1, (-1, kept))
    masks = torch.stack([metadata & 15, metadata >> 4], -1).flatten(1)[:, : fours.shape[1]]
    fours = torch.nn.functional.pad(fours, (0, 0, 0, 0, 0, pad)).unflatten(0, (-1, 16)).transpose(1, 2)
    masks = torch.nn.functional.pad(masks, (0, 0, 0, pad), value=3).unflatten(0, (-1, 16)).transpose(1, 2)
    return _panels(torch.cat([fours.flatten(2), masks[..., 0::2] | masks[..., 1::2] << 4], -1))


def _panels(chunks: Tensor) -> Tensor:
    """[vector, chunk, bytes]: four vectors side by side."""
    return torch.cat([p.transpose(0, 1).reshape(-1) for p in chunks.split(4)])


def inputs(dims: Dims, rng: torch.Generator) -> dict[str, Any]:
    """Random weights of the kind that `dims` names by number."""
    return random_weights(dims["N"], dims["K"], FORMATS[dims["kind"]], rng, dims.get("E"))


OP = Op(
    fn=pack_weights,
    family="gemm",
    args=(
        Arg("b", "N K | E N K | bytes_in", "f32 bf16 e4m3 fp4", "weights", layout="dense"),
        Arg(
            "b_scale",
            "N/block_0 K/block_1 | E N/block_0 K/block_1",
            "f32 e8m0",
            "block scales",
            layout="dense",
        ),
        masks_argument(),
    ),
    outs=(
        Out("data", "bytes", "u8", "the panels"),
        Out("scale", "scales", "b_scale", "the scales, arranged for the kernels"),
    ),
    reference=reference,
    inputs=inputs,
    test_dims=tuple(
        {"N": n, "K": k + 2 * name.endswith("_2to4"), "kind": kind, **({"E": e} if e else {})}
        for kind, name in enumerate(FORMATS)
        for n, k, e in ((1, 2, 0), (70, 198, 0), (33, 130, 2), (64, 126, 3), (64, 128, 3))
        if k % 4 == 2 or not name.endswith("_2to4")
    ),
    bench_dims=tuple({"N": 4096, "K": 7168, "kind": kind} for kind in (2, 3, 5)),
    spoil=lambda x: {**x, "b": (x["b"].view(torch.uint8) ^ 1).view(x["b"].dtype)},
    source="the layout of this library",
    dynamic={"bytes": "", "scales": ""},
    hidden=(packed_option("E", sizes=("N", "K", "b_format", "block_0", "block_1")),),
    bytes=lambda d: 2.0 * BYTES[d["kind"]] * d["N"] * d["K"],
)

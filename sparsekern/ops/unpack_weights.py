"""The way back from packed weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sparsekern.backend import launch
from sparsekern.ops import pack_weights as packing
from sparsekern.schema import Arg, Dims, Op, Out
from sparsekern.weights import PackedWeights, packed_option


def unpack_weights(b: PackedWeights) -> tuple[Tensor, Tensor | None]:
    """Return the logical weights and scales of packed weights, exactly as they were packed."""
    data, scale = launch(OP, b.data, b.scale, b.description, None)
    return _shaped(b, data, scale)


def _shaped(b: PackedWeights, data: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor | None]:
    *lead, n, k = b.shape
    torch._check(data.shape[0] == math.prod(b.shape) * b.dtype.itemsize // (2 if b.format == "fp4" else 1))
    rows = data.view(b.dtype).view(*lead, n, k // 2 if b.format == "fp4" else k)
    if b.scale is None or scale is None:
        return rows, None
    return rows, scale.view(*lead, -(-n // b.block[0]), -(-k // b.block[1]))


def reference(b: PackedWeights) -> tuple[Tensor, Tensor | None]:
    """Undo the reference of pack_weights step by step."""
    *lead, n, k = b.shape
    per_chunk = {"f32": 1, "bf16": 2, "e4m3": 4, "fp4": 8}[b.format]
    length = max(min(b.block[1], k), 1) if b.scale is not None else max(k, 1)
    parts = [min(length, k - s) for s in range(0, k, length)]
    padded = [p + -p % max(per_chunk, 2) for p in parts]
    experts = b.data.view(max(lead[0] if lead else 1, 0), -1) if b.data.numel() else b.data.view(0, 0)
    rows = [_unpack_matrix(e, b.format, n, per_chunk, parts, padded) for e in experts]
    data = torch.stack(rows) if rows else b.data
    if b.scale is None:
        return _shaped(b, data.reshape(-1), None)
    bn, blocks = b.block[0], len(parts)
    if bn % 16 == 0:
        return _shaped(b, data.reshape(-1), b.scale)
    lanes = b.scale.view(-1, -(-n // 16), blocks, 16).transpose(-1, -2).reshape(-1, -(-n // 16) * 16, blocks)
    return _shaped(b, data.reshape(-1), lanes[:, :n:bn].reshape(-1))


def _unpack_matrix(
    e: Tensor, name: str, n: int, per_chunk: int, parts: list[int], padded: list[int]
) -> Tensor:
    vectors, chunks = -(-n // 16), sum(padded) // per_chunk
    panels = e.split([min(4, vectors - v) * chunks * 64 for v in range(0, vectors, 4)])
    x = torch.cat([p.view(chunks, -1, 64).transpose(0, 1) for p in panels])  # vector, chunk, 64 bytes
    if name == "e4m3":
        x = x.unflatten(-1, (4, 2, 4, 2)).permute(0, 2, 4, 1, 3, 5).reshape(vectors, 16, chunks, 4)
    elif name == "fp4":
        nibbles = torch.stack([x & 15, x >> 4], -1).view(vectors, chunks, 16, 2, 4)
        x = nibbles.transpose(-1, -2).reshape(vectors, chunks, 16, 8).transpose(1, 2)
    else:
        x = x.view(vectors, chunks, 16, 4).transpose(1, 2)
    rows = x.reshape(vectors * 16, chunks, -1)[:n].reshape(n, -1)  # bytes, or nibbles
    unit = rows.shape[1] // max(sum(padded), 1)
    kept = [s[:, : p * unit] for s, p in zip(rows.split([q * unit for q in padded], 1), parts, strict=True)]
    flat = torch.cat(kept, 1) if kept else rows
    return flat[:, 0::2] | flat[:, 1::2] << 4 if name == "fp4" else flat


def inputs(dims: Dims, rng: torch.Generator) -> dict[str, Any]:
    """Random bytes packed."""
    return {"b": packing.pack_weights(**packing.inputs(dims, rng))}


OP = Op(
    fn=unpack_weights,
    family="gemm",
    args=(
        Arg("b", "bytes_in", "u8", "the panels", layout="dense"),
        Arg("b_scale", "scales_in", "f32 e8m0", "their scales", layout="dense"),
    ),
    outs=(
        Out("data", "bytes", "u8", "the rows"),
        Out("scale", "scales", "b_scale", "the block scales"),
    ),
    reference=reference,
    inputs=inputs,
    test_dims=packing.OP.test_dims,
    bench_dims=packing.OP.bench_dims,
    spoil=lambda x: {"b": x["b"]._replace(data=x["b"].data ^ 1)},
    source="the layout of this library",
    dynamic={"bytes": "", "scales": ""},
    hidden=(packed_option("E"),),
    bytes=packing.OP.bytes,
)

"""The way back from packed weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sparsekern.backend import launch
from sparsekern.ops import pack_weights as packing
from sparsekern.schema import Arg, Dims, DtypeError, Op, Out
from sparsekern.weights import PackedWeights, Sparse2to4, packed_option


def unpack_weights(b: PackedWeights) -> tuple[Tensor | Sparse2to4, Tensor | None]:
    """Return the logical weights and scales of packed weights, exactly as they were packed."""
    if not isinstance(b, PackedWeights):
        raise DtypeError(f"unpack_weights: b is {type(b).__name__}, expected the result of pack_weights")
    data, scale, masks = launch(OP, b.data, b.scale, b.description, None)
    return _shaped(b, data, scale, masks)


def _shaped(
    b: PackedWeights, data: Tensor, scale: Tensor | None, masks: Tensor | None = None
) -> tuple[Tensor | Sparse2to4, Tensor | None]:
    *lead, n, k = b.shape
    columns = k if b.format in ("f32", "bf16", "e4m3") else k // 2
    torch._check(data.shape[0] == math.prod(lead) * n * columns * b.dtype.itemsize)
    rows = data.view(b.dtype).view(*lead, n, columns)
    if b.scale is None or scale is None:
        scale = None
    else:
        scale = scale.view(*lead, -(-n // b.block[0]), -(-k // b.block[1]))
    if not b.format.endswith("_2to4") or masks is None:
        return rows, scale
    torch._check(masks.shape[0] == math.prod(lead) * n * -(-k // 8))
    return Sparse2to4(rows, masks.view(*lead, n, -(-k // 8))), scale


def reference(b: PackedWeights) -> tuple[Tensor | Sparse2to4, Tensor | None]:
    """Undo the reference of pack_weights step by step."""
    data, masks = _unpack_sparse(b) if b.format.endswith("_2to4") else (_unpack_dense(b), None)
    return _shaped(b, data, _unpack_scales(b), masks)


def _parts(b: PackedWeights) -> list[int]:
    """What K is cut into: the blocks that have a scale."""
    k = b.shape[-1]
    length = max(min(b.block[1], k), 1) if b.scale is not None else max(k, 1)
    return [min(length, k - s) for s in range(0, k, length)]


def _unpack_scales(b: PackedWeights) -> Tensor | None:
    if b.scale is None or b.block[0] % 16 == 0:
        return b.scale
    n, blocks = b.shape[-2], len(_parts(b))
    lanes = b.scale.view(-1, -(-n // 16), blocks, 16).transpose(-1, -2).reshape(-1, -(-n // 16) * 16, blocks)
    return lanes[:, : n : b.block[0]].reshape(-1)


def _unpack_sparse(b: PackedWeights) -> tuple[Tensor, Tensor]:
    n, k = b.shape[-2:]
    vectors, fours, kept = -(-n // 16), k // 4, 32 * b.dtype.itemsize
    experts = b.data.view(math.prod(b.shape[:-2]), -1)
    panels = experts.split([min(4, vectors - v) * fours * (kept + 8) for v in range(0, vectors, 4)], 1)
    x = torch.cat([p.unflatten(1, (fours, -1, kept + 8)).transpose(1, 2) for p in panels], 1)

    def rows(of_columns: Tensor) -> Tensor:  # expert, vector, four, column, ... -> expert, row, four, ...
        return of_columns.transpose(2, 3).flatten(1, 2)[:, :n].flatten(2)

    values = rows(x[..., :kept].unflatten(-1, (16, -1)))
    masks = rows(torch.stack([x[..., kept:] & 15, x[..., kept:] >> 4], -1).flatten(-2)[..., None])
    masks = torch.nn.functional.pad(masks, (0, fours % 2))
    return values.reshape(-1), (masks[..., 0::2] | masks[..., 1::2] << 4).reshape(-1)


def _unpack_dense(b: PackedWeights) -> Tensor:
    per_chunk = {"f32": 1, "bf16": 2, "e4m3": 4, "fp4": 8}[b.format]
    parts = _parts(b)
    padded = [p + -p % max(per_chunk, 2) for p in parts]
    lead = b.shape[:-2]
    experts = b.data.view(max(lead[0] if lead else 1, 0), -1) if b.data.numel() else b.data.view(0, 0)
    rows = [_unpack_matrix(e, b.format, b.shape[-2], per_chunk, parts, padded) for e in experts]
    return (torch.stack(rows) if rows else b.data).reshape(-1)


def _unpack_matrix(
    e: Tensor, name: str, n: int, per_chunk: int, parts: list[int], padded: list[int]
) -> Tensor:
    vectors, chunks = -(-n // 16), sum(padded) // per_chunk
    panels = e.split([min(4, vectors - v) * chunks * 64 for v in range(0, vectors, 4)])
    x = torch.cat([p.view(chunks, -1, 64).transpose(0, 1) for p in panels])  # vector, chunk, 64 bytes
    if name in ("e4m3", "fp4"):
        x = x.unflatten(-1, (4, 2, 4, 2)).permute(0, 2, 4, 1, 3, 5).reshape(vectors, 16, chunks, 4)
    else:
        x = x.view(vectors, chunks, 16, 4).transpose(1, 2)
    if name == "fp4":  # a byte holds k and k + 2
        pairs = x.unflatten(-1, (2, 2))
        x = torch.stack([pairs & 15, pairs >> 4], -2).flatten(-3)
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
        Out("masks", "masks", "u8", "the metadata of 2:4 weights, or nothing"),
    ),
    reference=reference,
    inputs=inputs,
    test_dims=packing.OP.test_dims,
    bench_dims=packing.OP.bench_dims,
    spoil=lambda x: {"b": x["b"]._replace(data=x["b"].data ^ 1)},
    source="the layout of this library",
    dynamic={"bytes": "", "scales": "", "masks": ""},
    hidden=(packed_option("E"),),
    bytes=packing.OP.bytes,
)

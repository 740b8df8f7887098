"""Packing of weights for the GEMMs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsekern.backend import launch
from sparsekern.schema import NAME_OF, Arg, Dims, Op, Out, block_size
from sparsekern.weights import PackedWeights, random_weights


def pack_weights(
    b: Tensor, b_scale: Tensor | None = None, *, block: tuple[int, int] | None = None
) -> PackedWeights:
    """Lay weights out as the kernels of this library stream them: once, when a model is loaded.

    The result takes the place of `(b, b_scale)` in every GEMM, holds as many bytes (N is rounded up to
    16, K to a few elements) and gives the same bits; `unpack()` returns the logical weights exactly.
    Without `block`, the block size is the power of two that the scale's shape allows.
    """
    data, scale = launch(OP, b, b_scale, block, None)
    name, n, k, sizes = _described(b, b_scale, block)
    return PackedWeights(data, scale if b_scale is not None else None, (*b.shape[:-2], n, k), name, sizes)


def _described(
    b: Tensor, b_scale: Tensor | None, block: tuple[int, int] | None
) -> tuple[str, int, int, tuple[int, int]]:
    """Format, N, K and block size."""
    name = "fp4" if b.dtype == torch.uint8 else NAME_OF[b.dtype]
    n, k = b.shape[-2], b.shape[-1] * (2 if name == "fp4" else 1)
    if b_scale is None:
        return name, n, k, (1, 1)
    if block is not None:
        return name, n, k, (block[0], block[1])
    return name, n, k, (block_size(n, b_scale.shape[-2]) or 1, block_size(k, b_scale.shape[-1]) or 1)


def reference(
    b: Tensor, b_scale: Tensor | None = None, *, block: tuple[int, int] | None = None
) -> PackedWeights:
    """Element by element, from the description in csrc/gemm/gemm.h."""
    name, n, k, (bn, bk) = _described(b, b_scale, block)
    experts = b.reshape(-1, *b.shape[-2:])
    length = min(bk, k) if b_scale is not None else k
    data = (
        torch.cat([_pack_matrix(e, name, k, max(length, 1)) for e in experts])
        if len(experts)
        else b.new_empty(0)
    )
    scale = b_scale
    if b_scale is not None and bn % 16:  # a lane each: [n / 16][segment][16]
        rows = b_scale.view(torch.uint8) if b_scale.dtype != torch.float32 else b_scale
        rows = rows.repeat_interleave(bn, -2)[..., :n, :]
        lanes = torch.nn.functional.pad(rows, (0, 0, 0, -n % 16)).unflatten(-2, (-1, 16)).transpose(-1, -2)
        scale = lanes.contiguous().view(b_scale.dtype)
    if scale is not None:
        scale = scale.reshape(-1)
    return PackedWeights(data.view(torch.uint8), scale, (*b.shape[:-2], n, k), name, (bn, bk))


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
    if name == "e4m3":  # in every group of four columns, all first pairs, then all second ones
        chunks = chunks.unflatten(1, (4, 4)).unflatten(-1, (2, 2)).permute(0, 3, 1, 4, 2, 5)
    elif name == "fp4":  # per column: the even k's, then the odd ones
        even, odd = chunks[..., 0::2], chunks[..., 1::2]
        nibbles = torch.cat([even, odd], -1)
        chunks = (nibbles[..., 0::2] | nibbles[..., 1::2] << 4).transpose(1, 2)
    else:
        chunks = chunks.transpose(1, 2)
    chunks = chunks.reshape(*chunks.shape[:2], -1).contiguous().view(torch.uint8)  # vector, chunk, 64 bytes
    return torch.cat([p.transpose(0, 1).reshape(-1) for p in chunks.split(4)])


def inputs(dims: Dims, rng: torch.Generator) -> dict[str, Any]:
    """Random weights of the kind that `dims` names by number."""
    return random_weights(dims["N"], dims["K"], KINDS[dims["kind"]], rng, dims.get("E"))


KINDS = ("f32", "bf16", "e4m3", "fp4")

OP = Op(
    fn=pack_weights,
    family="gemm",
    args=(
        Arg("b", "N K | E N K", "f32 bf16 e4m3 fp4", "weights", layout="dense"),
        Arg(
            "b_scale",
            "N/block_0 K/block_1 | E N/block_0 K/block_1",
            "f32 e8m0",
            "block scales",
            layout="dense",
        ),
    ),
    outs=(
        Out("data", "bytes", "u8", "the panels"),
        Out("scale", "scales", "b_scale", "the scales, arranged for the kernels"),
    ),
    reference=reference,
    inputs=inputs,
    test_dims=tuple(
        {"N": n, "K": k, "kind": kind, **({"E": e} if e else {})}
        for kind in range(4)
        for n, k, e in ((1, 2, 0), (70, 200, 0), (33, 130, 2), (64, 128, 3))
    ),
    bench_dims=({"N": 4096, "K": 7168, "kind": 2}, {"N": 4096, "K": 7168, "kind": 3}),
    spoil=lambda x: {**x, "b": (x["b"].view(torch.uint8) ^ 1).view(x["b"].dtype)},
    source="the layout of this library",
    dynamic={"bytes": "", "scales": ""},
    bytes=lambda d: 2.0 * d["N"] * d["K"],
)

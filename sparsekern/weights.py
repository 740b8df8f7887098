"""Weights as the kernels like them best: `PackedWeights`, the result of `sparsekern.pack_weights`."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparsekern.schema import DTYPES, DtypeError, Option

FORMATS = ("f32", "bf16", "e4m3", "fp4")  # by the number that csrc/gemm/gemm.h gives them

# What a kernel must be told about packed weights; every op that takes weights has it as its last option.
SIZES = ("N", "K", "b_format", "b_block_0", "b_block_1")


class PackedWeights(NamedTuple):
    """Weights as this library's kernels stream them, taken by every GEMM in place of `(b, b_scale)`.

    The layout is the same on every machine: panels of 64 columns, FP8 and FP4 as they are (csrc/gemm/gemm.h).
    """

    data: Tensor
    """uint8 [bytes]: the panels."""
    scale: Tensor | None
    """The block scales, in their own dtype, arranged for the kernels."""
    shape: tuple[int, ...]
    """Logical shape, (N, K) or (E, N, K), in elements."""
    format: str
    """"f32", "bf16", "e4m3" or "fp4"."""
    block: tuple[int, int]
    """Rows and columns that share a scale."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the logical weights; FP4 is `torch.uint8`, two values a byte."""
        return torch.uint8 if self.format == "fp4" else DTYPES[self.format]

    @property
    def nbytes(self) -> int:
        """Bytes of the panels and the scales."""
        return self.data.nbytes + (0 if self.scale is None else self.scale.nbytes)

    def unpack(self) -> tuple[Tensor, Tensor | None]:
        """The logical weights and scales, exactly as they were packed."""
        from sparsekern.ops.unpack_weights import unpack_weights

        return unpack_weights(self)

    @property
    def description(self) -> tuple[int, ...]:
        """The numbers that a kernel needs beside the tensors: experts (0: a matrix), N, K, format, block."""
        experts = self.shape[0] if len(self.shape) == 3 else 0
        return (experts, *self.shape[-2:], FORMATS.index(self.format), *self.block)


class Sparse2to4(NamedTuple):
    """Weights of which every four along K keep two, as `sparsekern.sparsify_2to4` makes them.

    The GEMMs and `pack_weights` take it in place of a tensor; block scales stay those of the dense matrix.
    """

    values: Tensor
    """[..., N, K/2] float32, bfloat16 or e4m3: the two values of every four that stay, in their order."""
    metadata: Tensor
    """uint8 [..., N, K/8]: four bits for every four, two of them set; the first four in the low nibble."""

    def dense(self) -> Tensor:
        """[..., N, K]: the matrix with zeros where values are gone."""
        masks = torch.stack([self.metadata & 15, self.metadata >> 4], -1).flatten(-2)
        masks = masks[..., : self.values.shape[-1] // 2, None]
        stays = (masks >> torch.arange(4, dtype=torch.uint8) & 1).bool()
        bits = as_bits(self.values)
        rows = torch.zeros(stays.shape, dtype=bits.dtype)
        rows[stays] = bits.flatten()
        return rows.flatten(-2).view(self.values.dtype)


def as_bits(t: Tensor) -> Tensor:
    """The same memory as integers: FP8 cannot be indexed."""
    return t.view({1: torch.uint8, 2: torch.int16, 4: torch.int32}[t.itemsize])


def packed_option(experts: str = "experts", name: str = "packed", sizes: tuple[str, ...] = SIZES) -> Option:
    """The option that carries `PackedWeights.description`, and what an op calls its numbers."""
    return Option(name, "ints", None, nullable=True, length=6, sizes=(experts, *sizes))


def as_arguments(
    op: str, b: Tensor | PackedWeights, b_scale: Tensor | None, b_block: tuple[int, int] | None
) -> tuple[Tensor, Tensor | None, tuple[int, int] | None, tuple[int, ...] | None]:
    """Split weights into what a kernel takes: `(b, b_scale, b_block, packed)`.

    Raises:
        DtypeError: packed weights were given together with scales of their own.
    """
    if not isinstance(b, PackedWeights):
        return b, b_scale, b_block, None
    if b_scale is not None or b_block is not None:
        raise DtypeError(f"{op}: b is packed and has its scales with it; expected no b_scale and no b_block")
    return b.data, b.scale, None, b.description


def plain(b: Tensor | PackedWeights, b_scale: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Weights as rows, for references."""
    return b.unpack() if isinstance(b, PackedWeights) else (b, b_scale)


def dequantised(b: Tensor, scale: Tensor | None, block: tuple[int, int] | None = None) -> Tensor:
    """[..., N, K] of any format as float64, for references."""
    from sparsekern.schema import block_size

    values = _fp4_values(b) if b.dtype == torch.uint8 else b.double()
    if scale is None:
        return values
    n, k = values.shape[-2:]
    bn, bk = block or (block_size(n, scale.shape[-2]) or 1, block_size(k, scale.shape[-1]) or 1)
    s = scale.double() if scale.dtype == torch.float32 else _power_of_two(scale)
    return values * s.repeat_interleave(bn, -2)[..., :n, :].repeat_interleave(bk, -1)[..., :k]


def _fp4_values(packed: Tensor) -> Tensor:
    table = torch.tensor(
        [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], dtype=torch.float64
    )
    return table[torch.stack([packed & 15, packed >> 4], -1).flatten(-2).long()]


def _power_of_two(scale: Tensor) -> Tensor:
    """UE8M0 bytes as the bits of a float32 exponent: byte 0 is 0."""
    return (scale.view(torch.uint8).int() << 23).view(torch.float32).double()


def random_weights(
    n: int,
    k: int,
    kind: str,
    rng: torch.Generator,
    experts: int | None = None,
    block: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Weights of a kind for tests and benchmarks: `b`, and `b_scale` where the kind has scales."""
    lead = () if experts is None else (experts,)
    if kind in ("f32", "bf16"):
        return {"b": torch.randn(*lead, n, k, generator=rng).to(DTYPES[kind])}
    bn, bk = block or ((1, 32) if kind == "fp4" else (128, 128))
    blocks = (*lead, -(-n // bn), -(-k // bk))
    if kind == "fp4":
        scale = torch.randint(118, 130, blocks, generator=rng, dtype=torch.uint8).view(torch.float8_e8m0fnu)
        return {
            "b": torch.randint(0, 256, (*lead, n, k // 2), generator=rng, dtype=torch.uint8),
            "b_scale": scale,
        }
    scale = torch.rand(blocks, generator=rng) + 0.5
    return {"b": torch.randn(*lead, n, k, generator=rng).to(torch.float8_e4m3fn), "b_scale": scale}


def random_activations(
    m: int, k: int, kind: str, rng: torch.Generator, group: int = 128, lead: tuple[int, ...] = ()
) -> dict[str, Any]:
    """Rows of a kind for tests and benchmarks: `a`, and `a_scale` where the kind has scales."""
    a = torch.randn(*lead, m, k, generator=rng).to(DTYPES[kind])
    if kind != "e4m3":
        return {"a": a}
    return {"a": a, "a_scale": torch.rand(*lead, m, -(-k // group), generator=rng) + 0.5}

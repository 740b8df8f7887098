"""Weights as the kernels like them best: `PackedWeights`, the result of `sparsekern.pack_weights`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparsekern.schema import DTYPES, NAME_OF, Arg, DtypeError, Option, ShapeError
from sparsekern.shapes import block_size

FORMATS = ("f32", "bf16", "e4m3", "fp4", "bf16_2to4", "e4m3_2to4")  # by their numbers in csrc/gemm/gemm.h
BYTES = (4.0, 2.0, 1.0, 0.53, 1.125, 0.625)  # of a weight, scales included

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
    """"f32", "bf16", "e4m3", "fp4", "bf16_2to4" or "e4m3_2to4"."""
    block: tuple[int, int]
    """Rows and columns that share a scale."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the logical weights; FP4 is `torch.uint8`, two values a byte."""
        return torch.uint8 if self.format == "fp4" else DTYPES[self.format.removesuffix("_2to4")]

    @property
    def nbytes(self) -> int:
        """Bytes of the panels and the scales."""
        return self.data.nbytes + (0 if self.scale is None else self.scale.nbytes)

    def unpack(self) -> tuple[Tensor | Sparse2to4, Tensor | None]:
        """The logical weights and scales, exactly as they were packed."""
        from sparsekern.ops.unpack_weights import unpack_weights

        return unpack_weights(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a file that `load` reads. It replaces one of that name when it is complete."""
        from sparsekern import packed_file

        packed_file.save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, mmap: bool = True, verify: bool = True) -> PackedWeights:
        """Read what `save` wrote.

        Args:
            path: The file.
            mmap: Leave the bytes in the file, to be read when needed, dropped when memory is short. Changes
                to them stay in memory. The file must not change meanwhile.
            verify: Read everything once and compare checksums. The header and the size are always checked.

        Raises:
            ValueError: the file is none of ours, of another version, cut off or changed.
        """
        from sparsekern import packed_file

        return packed_file.load(path, mmap=mmap, verify=verify)

    @classmethod
    def of_experts(
        cls,
        experts: Iterable[tuple[Tensor | Sparse2to4, Tensor | None]],
        count: int,
        *,
        block: tuple[int, int] | None = None,
        path: str | os.PathLike[str] | None = None,
    ) -> PackedWeights:
        """Pack experts that come one by one, as `pack_weights` would all of them together.

        Only one of them is held at a time, beside those that are packed.

        Args:
            experts: (b, b_scale) of each expert, [N, K]; a generator that reads a checkpoint, say.
            count: How many there are.
            block: As in `pack_weights`.
            path: Pack into this file, and return it as `load` does; nothing but one expert is held in memory.

        Raises:
            ShapeError: experts are of different shapes, formats or blocks, or not `count`.
        """
        from sparsekern import packed_file

        return packed_file.of_experts(experts, count, block, path)

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


def masks_argument(name: str = "b") -> Arg:
    """The argument that carries the metadata of 2:4 rows, whose values come as bytes."""
    return Arg(f"{name}_masks", f"{name}_mask_bytes", "u8", f"the masks of 2:4 {name}", layout="dense")


def packed_option(experts: str = "experts", name: str = "packed", sizes: tuple[str, ...] = SIZES) -> Option:
    """The option that carries `PackedWeights.description`, and what an op calls its numbers."""
    return Option(name, "ints", None, nullable=True, length=6, sizes=(experts, *sizes))


class Arguments(NamedTuple):
    """Weights as a kernel takes them."""

    data: Tensor
    """Rows; or the bytes of panels, or of the values of 2:4 rows, which the description then tells apart."""
    scale: Tensor | None
    masks: Tensor | None
    """The metadata of 2:4 rows."""
    block: tuple[int, int] | None
    description: tuple[int, ...] | None


def as_arguments(
    op: str,
    b: Tensor | PackedWeights | Sparse2to4,
    scale: Tensor | None,
    block: tuple[int, int] | None,
    name: str = "b",
) -> Arguments:
    """Split weights into what a kernel takes.

    Raises:
        DtypeError, ShapeError: packed weights were given together with scales of their own, or the parts of
            2:4 weights do not fit each other.
    """
    if isinstance(b, PackedWeights):
        if scale is not None or block is not None:
            raise DtypeError(
                f"{op}: {name} is packed with its scales; expected no {name}_scale, {name}_block"
            )
        return Arguments(b.data, b.scale, None, None, b.description)
    if isinstance(b, Sparse2to4):
        return _sparse_arguments(op, b, scale, block, name)
    return Arguments(b, scale, None, block, None)


def _sparse_arguments(
    op: str, b: Sparse2to4, scale: Tensor | None, block: tuple[int, int] | None, name: str
) -> Arguments:
    values, metadata = b
    for part, t, dtypes in (
        ("values", values, (torch.bfloat16, torch.float8_e4m3fn)),
        ("metadata", metadata, (torch.uint8,)),
    ):
        label = f"{op}: {name}'s {part}"
        if not isinstance(t, Tensor):
            raise DtypeError(f"{label} is {type(t).__name__}, expected a tensor")
        if t.dtype not in dtypes:
            raise DtypeError(f"{label} is {t.dtype}, expected {' or '.join(map(str, dtypes))}")
        if not t.is_contiguous():
            raise ShapeError(f"{label} has strides {tuple(t.stride())}, expected contiguous")
    if values.dim() not in (2, 3) or values.shape[-1] % 2:
        raise ShapeError(f"{op}: {name}'s values have shape {tuple(values.shape)}, expected ([E,] N, K/2)")
    n, k = dense_shape(b)
    wanted = (*values.shape[:-1], -(-k // 8))
    if metadata.shape != wanted:
        raise ShapeError(f"{op}: {name}'s metadata has shape {tuple(metadata.shape)}, expected {wanted}")
    if scale is not None and scale.dim() != values.dim():
        shape = tuple(scale.shape)
        raise ShapeError(f"{op}: {name}_scale has shape {shape}, expected {values.dim()} dimensions")
    experts = values.shape[0] if values.dim() == 3 else 0
    description = (experts, n, k, FORMATS.index(format_of(b)), *scale_block(n, k, scale, block))
    return Arguments(values.view(torch.uint8).view(-1), scale, metadata.view(-1), None, description)


def format_of(b: Tensor | Sparse2to4) -> str:
    """One of FORMATS."""
    if isinstance(b, Sparse2to4):
        return f"{NAME_OF[b.values.dtype]}_2to4"
    return "fp4" if b.dtype == torch.uint8 else NAME_OF[b.dtype]


def dense_shape(b: Tensor | Sparse2to4) -> tuple[int, int]:
    """N and K, counting values that are not there."""
    n, columns = (b.values if isinstance(b, Sparse2to4) else b).shape[-2:]
    return n, 2 * columns if isinstance(b, Sparse2to4) or b.dtype == torch.uint8 else columns


def scale_block(
    n: int, k: int, scale: Tensor | None, block: tuple[int, int] | None = None
) -> tuple[int, int]:
    """How many rows and columns share a scale: as the scale's shape has it, unless `block` is given."""
    if scale is None:
        return 1, 1
    if block is not None:
        return block[0], block[1]
    return block_size(n, scale.shape[-2]) or 1, block_size(k, scale.shape[-1]) or 1


def dequantised(
    b: Tensor | PackedWeights | Sparse2to4, scale: Tensor | None, block: tuple[int, int] | None = None
) -> Tensor:
    """[..., N, K] of any form and format as float64, for references."""
    if isinstance(b, PackedWeights):
        rows, scales = b.unpack()
        return dequantised(rows, scales, b.block)
    if isinstance(b, Sparse2to4):
        b = b.dense()
    values = _fp4_values(b) if b.dtype == torch.uint8 else b.double()
    if scale is None:
        return values
    n, k = values.shape[-2:]
    bn, bk = scale_block(n, k, scale, block)
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
    """Weights of a format for tests and benchmarks: `b`, and `b_scale` where it has scales."""
    if kind.endswith("_2to4"):
        from sparsekern.ops.sparsify_2to4 import sparsify_2to4

        x = random_weights(n, k, kind.removesuffix("_2to4"), rng, experts, block)
        return {**x, "b": sparsify_2to4(x["b"])}
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

"""What the references of the quantisers share: maxima of blocks, scales, FP4 codes. Plain PyTorch."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

ScaleFormat = Literal["fp32", "ue8m0"]
Block = tuple[int, int]

E4M3_MAX = 448.0
E2M1_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
HUGE = torch.finfo(torch.float32).max
TINY = torch.finfo(torch.float32).tiny


def block_amax(x: Tensor, block: Block) -> Tensor:
    """The largest magnitude of every block: NaN counts as 0, infinity as the largest finite number."""
    rows, cols = block
    finite = x.float().nan_to_num(0.0)
    down, across = -(-x.shape[-2] // rows), -(-x.shape[-1] // cols)
    padded = finite.new_zeros(*x.shape[:-2], down * rows, across * cols)
    padded[..., : x.shape[-2], : x.shape[-1]] = finite
    blocks = padded.reshape(*x.shape[:-2], down, rows, across, cols)
    return blocks.abs().amax((-3, -1)) if blocks.numel() else finite.new_zeros(*x.shape[:-2], down, across)


def scale_and_inverse(
    amax: Tensor, largest: float, scale_format: ScaleFormat, amax_floor: float
) -> tuple[Tensor, Tensor]:
    """The scale that maps `largest` to amax or above, and what values are multiplied by."""
    a = amax.clamp(min=amax_floor)
    full = torch.full_like(a, largest)  # dividing by a number would multiply by its reciprocal
    scale = a / full
    if scale_format == "fp32":
        return scale, (full / a).clamp(max=HUGE)
    mantissa, exponent = torch.frexp(scale.double())  # mantissa in [1/2, 1), exactly 1/2 for powers of two
    power = torch.exp2(torch.where(mantissa == 0.5, exponent - 1, exponent).double()).clamp(min=TINY)
    return torch.where(scale > 0, power, 0.0).float(), (1 / power).float()


def spread(scale: Tensor, block: Block, shape: torch.Size) -> Tensor:
    """One value per block -> one per element of `shape`."""
    rows = scale.repeat_interleave(block[0], -2)[..., : shape[-2], :]
    return rows.repeat_interleave(block[1], -1)[..., : shape[-1]]


def quantise_e4m3(
    x: Tensor, block: Block, scale_format: ScaleFormat, amax_floor: float
) -> tuple[Tensor, Tensor]:
    """Codes and scales, one scale per block."""
    scale, inverse = scale_and_inverse(block_amax(x, block), E4M3_MAX, scale_format, amax_floor)
    q = (x.float() * spread(inverse, block, x.shape)).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
    return q, scale.to(torch.float8_e8m0fnu) if scale_format == "ue8m0" else scale


def e2m1_codes(x: Tensor) -> Tensor:
    """The nearest FP4 code, ties to the even one; NaN is +6."""
    y = x.abs().nan_to_num(6.0, posinf=6.0)
    code = torch.zeros_like(x, dtype=torch.uint8)
    for i in range(7):
        middle = (E2M1_VALUES[i] + E2M1_VALUES[i + 1]) / 2
        code += (y >= middle) if i % 2 else (y > middle)
    return code | (8 * (x.signbit() & ~x.isnan())).to(torch.uint8)


def pack_nibbles(codes: Tensor) -> Tensor:
    """Two codes a byte, the earlier one in the lower half."""
    return codes[..., 0::2] | codes[..., 1::2] << 4


def unpack_nibbles(packed: Tensor) -> Tensor:
    """The codes again, along the last dimension."""
    return torch.stack((packed & 15, packed >> 4), -1).flatten(-2)


def scale_value(scale: Tensor) -> Tensor:
    """Scales as float32: UE8M0 bytes are the exponent bits of a float."""
    if scale.dtype == torch.float32:
        return scale
    return (scale.view(torch.uint8).int() << 23).view(torch.float32)


def sample(shape: tuple[int, ...], rng: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Normal rows of very different size; an occasional zero, infinity and NaN where there is room."""
    x = torch.randn(shape, generator=rng) * torch.exp2(
        torch.randint(-40, 30, (*shape[:-1], 1), generator=rng)
    )
    if x.numel() > 64:
        flat = x.view(-1)
        for value in (0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1e-42, -1e-40, 3.3e38):
            flat[torch.randint(x.numel(), (1,), generator=rng)] = value
    return x.to(dtype)

"""A weight in the kernels' own layout, living where the parameter it replaces lived."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from sparsekern import PackedWeights, dequantize, pack_weights, quantize_fp4, quantize_fp8_blocks

Format = Literal["bf16", "fp8", "fp4"]
FORMATS: tuple[Format, ...] = ("bf16", "fp8", "fp4")

FP8_BLOCK = (128, 128)
FP4_BLOCK = (1, 32)

# An nn.Module with the attributes of some transformers class, which torch's stubs cannot know.
HfModule: TypeAlias = Any


class Unsupported(Exception):
    """A module computes something sparsekern has no op for; the message completes "because"."""


class Packed(nn.Module):
    """A packed weight, in place of the parameter of the same name.

    A module rather than an attribute, so that `buffers()` and the memory footprint count its bytes.
    `state_dict()` gives back what the model had under this name, in shape and dtype; a weight that was
    quantised here comes dequantised, so that the dictionary holds the values the model now computes with.
    """

    def __init__(
        self, value: PackedWeights, *, shape: torch.Size, dtype: torch.dtype, block: tuple[int, int] | None
    ) -> None:
        """Hold a packed weight.

        Args:
            value: the weight, its last two dimensions as the GEMMs read them.
            shape: the parameter's shape.
            dtype: the parameter's dtype.
            block: the block to dequantise by for `state_dict()`, None where the parameter was as it is now.
        """
        super().__init__()
        self.value = value
        self.shape = shape
        self.dtype = dtype
        self.block = block
        for i, part in enumerate(value):
            if isinstance(part, Tensor):
                self.register_buffer(f"part{i}", part, persistent=False)

    @classmethod
    def of_float(cls, weight: Tensor, weights: Format | None, *, shape: torch.Size | None = None) -> Packed:
        """Pack a bf16 or fp32 weight `[..., N, K]` as `weights`; None keeps its dtype.

        Args:
            weight: the logical weight.
            weights: the format to hold it in.
            shape: the parameter's own shape where it differs from the weight's.
        """
        weight, shape, dtype = weight.detach(), shape or weight.shape, weight.dtype
        if weights == "fp8":
            value = pack_weights(*quantize_fp8_blocks(weight, block=FP8_BLOCK), block=FP8_BLOCK)
            return cls(value, shape=shape, dtype=dtype, block=FP8_BLOCK)
        if weights == "fp4":
            value = pack_weights(*quantize_fp4(weight), block=FP4_BLOCK)
            return cls(value, shape=shape, dtype=dtype, block=FP4_BLOCK)
        held = weight.to(torch.bfloat16) if weights == "bf16" else weight
        return cls(pack_weights(held.contiguous()), shape=shape, dtype=dtype, block=None)

    @classmethod
    def of_codes(cls, codes: Tensor, scale: Tensor, block: tuple[int, int], *, shape: torch.Size) -> Packed:
        """Pack the codes and scales of a quantised checkpoint as they are.

        Args:
            codes: e4m3, or FP4 packed two per byte.
            scale: one scale per block, perhaps with rows of padding (transformers allocates at least two).
            block: the checkpoint's block, (1, 32) for FP4.
            shape: the parameter's own shape.
        """
        dtype, codes, scale = codes.dtype, codes.detach().contiguous(), scale.detach()
        if dtype == torch.int8:
            codes, scale = codes.view(torch.uint8), scale.float().to(torch.float8_e8m0fnu)
        rows = -(-codes.shape[-2] // block[0])
        scale = scale[..., :rows, :].contiguous()
        return cls(pack_weights(codes, scale, block=block), shape=shape, dtype=dtype, block=None)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Packed:
        """Stay as packed: a cast would change the bytes the kernels read, not the numbers they mean."""
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        name = prefix.removesuffix(".")
        weight, scale = self.value.unpack()
        assert isinstance(weight, Tensor)  # nothing here is 2:4
        if scale is None:
            weight = weight.to(self.dtype)
        elif self.block is not None:
            weight = dequantize(weight, scale, block=self.block, dtype=self.dtype)
        else:
            weight = weight.view(self.dtype)
            destination[f"{name}_scale_inv"] = scale.flatten(0, -2) if len(self.shape) == 2 else scale
        destination[name] = weight.reshape(self.shape)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        errors: list[str] = rest[-1]
        errors.append(f"{prefix.removesuffix('.')} is packed by sparsekern: load weights before optimize()")

    def extra_repr(self) -> str:
        """Say what is held, for `print(model)`."""
        return f"{tuple(self.value.shape)}, {self.value.dtype}, {self.value.nbytes} bytes"


def check_float(weight: Tensor, weights: Format | None) -> None:
    """Raise Unsupported unless `of_float` can take this weight."""
    if weight.is_meta:
        raise Unsupported("its weights are on the meta device: load them first")
    if weight.dtype not in (torch.float32, torch.bfloat16):
        raise Unsupported(f"its weights are {weight.dtype}: convert the model to float32 or bfloat16 first")
    if weights == "fp4" and weight.shape[-1] % FP4_BLOCK[1]:
        raise Unsupported(f"FP4 takes rows of a multiple of 32 numbers, these have {weight.shape[-1]}")


def check_codes(codes: Tensor, scale: Tensor, weights: Format | None) -> None:
    """Raise Unsupported unless `of_codes` can take these and they are what the caller asked for."""
    if codes.is_meta:
        raise Unsupported("its weights are on the meta device: load them first")
    held = "fp4" if codes.dtype == torch.int8 else "fp8"
    if weights not in (None, held):
        raise Unsupported(f"its weights are {held} already: pass weights=None to keep them")
    if held == "fp4" and not torch.equal(scale.float(), scale.float().to(torch.float8_e8m0fnu).float()):
        raise Unsupported("its FP4 scales are not powers of two")

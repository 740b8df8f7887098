"""Linear layers on `gemm` and `grouped_gemm`: those a checkpoint holds in FP8, and others on request."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from transformers.integrations.finegrained_fp8 import FP8Linear

from sparsekern import gemm, grouped_gemm
from sparsekern.integrations.transformers.packed import (
    Format,
    HfModule,
    Packed,
    Unsupported,
    check_codes,
    check_float,
)


def is_fp8(module: HfModule) -> bool:
    """Tell whether this is transformers' FP8 linear layer, which it cannot run on a CPU."""
    return isinstance(module, FP8Linear) and module.weight.element_size() == 1


def is_float(module: nn.Module) -> bool:
    """Tell whether this is a plain linear layer, or the block-diagonal one of DeepSeek-V4."""
    if isinstance(module, FP8Linear) or not isinstance(module, nn.Linear):
        return False
    return type(module) is nn.Linear or _is_grouped(module)


def check(module: HfModule, weights: Format | None) -> None:
    """Raise Unsupported unless `gemm` computes exactly what this layer does."""
    if not is_fp8(module):
        return check_float(module.weight, weights)
    check_codes(module.weight, module.weight_scale_inv, weights)
    rows = module.weight.shape[0] // _groups(module)
    if _groups(module) > 1 and (module.block_size is None or rows % module.block_size[0]):
        raise Unsupported(f"its {_groups(module)} groups of {rows} rows share blocks of scales")


def convert(module: HfModule, weights: Format | None) -> None:
    """Pack the weight of a checked layer, let go of the original and give this instance its forward."""
    groups, weight, shape = _groups(module), module.weight, module.weight.shape
    logical = weight.view(groups, -1, shape[1]) if groups > 1 else weight
    if is_fp8(module):
        bn, bk = module.block_size or shape
        scale = module.weight_scale_inv.reshape(*logical.shape[:-2], -1, -(-shape[1] // bk))
        packed = Packed.of_codes(logical, scale, (bn, bk), shape=shape)
        del module.weight_scale_inv
    else:
        packed = Packed.of_float(logical, weights, shape=shape)
    del module.weight
    module.add_module("weight", packed)
    module.forward = partial(grouped_forward if groups > 1 else linear_forward, module)


def linear_forward(self: HfModule, input: Tensor) -> Tensor:
    """Return `input @ weight.T + bias` in the input's dtype."""
    rows = input.reshape(-1, input.shape[-1])
    out = gemm(rows, self.weight.value, bias=self.bias, out_dtype=input.dtype)
    return out.view(*input.shape[:-1], out.shape[-1])


def grouped_forward(self: HfModule, input: Tensor) -> Tensor:
    """Multiply each group's slice of `[..., groups, K]` by that group's block of the weight."""
    groups, shape = _groups(self), input.shape[:-2]
    rows = input.movedim(-2, 0).reshape(-1, input.shape[-1])
    offsets = torch.arange(groups + 1, dtype=torch.int32, device=input.device) * (rows.shape[0] // groups)
    out = grouped_gemm(rows, self.weight.value, offsets, out_dtype=input.dtype)
    out = out.view(groups, *shape, out.shape[-1]).movedim(0, -2)
    return out if self.bias is None else out + self.bias.view(groups, -1)


def _is_grouped(module: nn.Module) -> bool:
    return "GroupedLinear" in type(module).__name__  # the test transformers' own FP8 replacement makes


def _groups(module: HfModule) -> int:
    return int(module.n_groups) if _is_grouped(module) else 1

"""Routed experts on `fused_moe`, by the entry "sparsekern" of transformers' experts registries."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.integrations.finegrained_fp8 import FP8Experts, FP8ExpertsInterface
from transformers.integrations.moe import ExpertsInterface

from sparsekern import fused_moe
from sparsekern.integrations.transformers.packed import (
    FP4_BLOCK,
    Format,
    HfModule,
    Packed,
    Unsupported,
    check_codes,
    check_float,
)

IMPLEMENTATION = "sparsekern"

PROJECTIONS = ("gate_up_proj", "down_proj")


def is_experts(module: nn.Module) -> bool:
    """Tell whether transformers dispatches this module's forward through its experts registries."""
    contract = ("_apply_gate", "has_gate", "has_bias", "is_transposed", "is_concatenated", "config")
    return all(hasattr(module, name) for name in contract)


def is_fp8(module: nn.Module) -> bool:
    """Tell whether these are the experts of an FP8 or FP4 checkpoint."""
    return isinstance(module, FP8Experts)


def check(module: HfModule, weights: Format | None) -> None:
    """Raise Unsupported unless `fused_moe` computes exactly what these experts do."""
    if not module.has_gate:
        raise Unsupported("its experts have no gate")
    if module.has_bias:
        raise Unsupported("its experts have biases")
    if module.has_post_expert_norm:
        raise Unsupported("it normalises after each expert")
    if module.is_transposed or not module.is_concatenated:
        raise Unsupported("its weights are transposed or interleaved")
    swiglu_limit(module)
    for name in PROJECTIONS:
        weight = getattr(module, name)
        if not is_fp8(module):
            check_float(weight, weights)
        elif _block(module, weight) is None:
            raise Unsupported("a scale per tensor does not say which half of gate_up_proj it is for")
        else:
            check_codes(weight, getattr(module, f"{name}_scale_inv"), weights)


def convert(module: HfModule, weights: Format | None) -> None:
    """Pack the weights of checked experts, one projection at a time, and let go of the originals."""
    module.sparsekern_limit = swiglu_limit(module)
    for name in PROJECTIONS:
        weight: Tensor = getattr(module, name)
        block = _block(module, weight) if is_fp8(module) else None
        if block is None:
            packed = Packed.of_float(weight, weights)
        else:
            packed = Packed.of_codes(weight, getattr(module, f"{name}_scale_inv"), block, shape=weight.shape)
            delattr(module, f"{name}_scale_inv")
        delattr(module, name)
        module.add_module(name, packed)


def experts_forward(
    self: HfModule, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """Run routed experts: transformers' experts interface, on `fused_moe`.

    Args:
        self: the experts module, converted by `optimize`.
        hidden_states: [T, H].
        top_k_index: [T, k]. Ids that are not an expert of ours (expert parallelism) add nothing.
        top_k_weights: [T, k].
    """
    gate_up, down = self.gate_up_proj, self.down_proj
    if not isinstance(gate_up, Packed) or not isinstance(down, Packed):
        raise RuntimeError(
            f'{type(self).__name__}: experts_implementation="sparsekern" needs packed weights; '
            "call sparsekern.integrations.transformers.optimize(model) instead of setting it"
        )
    return fused_moe(
        hidden_states,
        gate_up.value,
        down.value,
        top_k_weights.float(),
        top_k_index,
        limit=self.sparsekern_limit,
    )


# A new key changes nothing for models that do not name it.
ExpertsInterface.register(IMPLEMENTATION, experts_forward)
FP8ExpertsInterface.register(IMPLEMENTATION, experts_forward)


def swiglu_limit(module: HfModule) -> float | None:
    """Return the limit at which a module's gate is the clamped SwiGLU of `fused_moe`, None for no clamp.

    A gate is known by what it computes, not by its name: it is tried on pairs inside, at and far beyond
    every limit the module or its configuration speaks of.

    Raises:
        Unsupported: it is some other function.
    """
    owners = (module, module.config)
    named = [getattr(owner, name, None) for owner in owners for name in ("limit", "swiglu_limit")]
    limits = sorted({float(limit) for limit in named if limit})
    steps = torch.tensor([0.01, 0.3, 0.9, 1.0, 1.1, 3.0])
    points = torch.cat([steps * size for size in [1.0, 7.0, 300.0, *limits]])
    grid = torch.cat([-points, torch.zeros(1), points])
    gate, up = (t.flatten() for t in torch.meshgrid(grid, grid, indexing="ij"))
    try:
        with torch.no_grad():
            got = module._apply_gate(torch.cat([gate, up])[None])
    except Exception as error:
        raise Unsupported(f"its gate could not be tried: {error}") from error
    for limit in [None, *limits]:
        want = _swiglu(gate, up, limit)[None]
        if got.shape == want.shape and torch.allclose(got, want, rtol=1e-5, atol=1e-6):
            return limit
    raise Unsupported("its gate is not silu(gate) * up, clamped or not")


def _swiglu(gate: Tensor, up: Tensor, limit: float | None) -> Tensor:
    if limit is not None:
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return nn.functional.silu(gate) * up


def _block(module: HfModule, weight: Tensor) -> tuple[int, int] | None:
    """Return an FP8 module's block of scales; None if it has one scale per tensor."""
    if weight.dtype == torch.int8:
        return FP4_BLOCK
    return None if module.block_size is None else (module.block_size[0], module.block_size[1])

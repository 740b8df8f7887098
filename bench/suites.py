"""The workloads: suites of cases. Which ops there are and of what sizes, the catalogue and `models` say."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import sparsekern
from sparsekern.catalogue import OPS
from sparsekern.schema import Dims, Op, as_tuple
from sparsekern.testing import seeded

from . import models, routers
from .case import Case, Work
from .models import At
from .opcase import COLD, format_key, op_case
from .timing import Contender, Spread, Timings


@dataclass(frozen=True)
class Choice:
    """What the command line asked for; what is empty is left to the suite."""

    ops: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    tokens: tuple[int, ...] = ()
    shape: Mapping[str, int] = field(default_factory=dict)
    formats: tuple[str, ...] = ()  # of the weights
    cache: tuple[str, ...] = (COLD,)  # of the weights
    routing: tuple[str, ...] = ()
    at: At = field(default_factory=At)  # cached tokens, and memory for experts
    compile: bool = False  # torch.compile too

    def takes(self, op: Op) -> bool:
        """Whether the op was asked for."""
        return not self.ops or op.name in self.ops


Suite = Callable[[Choice], Iterator[Case]]
Named = tuple[str, Op, Dims]


def ops(choice: Choice) -> Iterator[Case]:
    """Every op, beside its peers: at the sizes of its record, of a model (--model), or your own (--shape)."""
    return _cases("ops", choice, _sizes(choice))


def moe(choice: Choice) -> Iterator[Case]:
    """An expert layer, hidden 2048, inter 1024, 16 experts, top-8."""
    return _layer("moe", choice, (1, 4, 16, 64, 512), {"H": 2048, "I": 1024, "E": 16, "top_k": 8, "w": 2})


def moe_large(choice: Choice) -> Iterator[Case]:
    """16 experts of DeepSeek-V3.2, hidden 7168, inter 2048: needs 10 GB."""
    return _layer(
        "moe-large", choice, (1, 4, 16, 64, 512), {"H": 7168, "I": 2048, "E": 16, "top_k": 8, "w": 2}
    )


def linear(choice: Choice) -> Iterator[Case]:
    """A dense layer, K = 7168, N = 2048."""
    named = [
        (f"{m} row{'s' * (m > 1)}", OPS["gemm"], {"M": m, "N": 2048, "K": 7168, "a": 1, "b": 2})
        for m in choice.tokens or (1, 4, 8, 16, 64, 256, 2048)
    ]
    return _cases("linear", choice, named)


def record(choice: Choice) -> Iterator[Case]:
    """The suite of record: the first and the last recorded size of every op that moves less than 300 MB."""
    for op in filter(choice.takes, OPS.values()):
        sizes = [dims for dims in op.bench_dims if op.bytes(dims) < 3e8] or list(op.bench_dims)
        chosen = sizes[:1] + sizes[1:][-1:]
        yield from _cases("record", choice, [(_label(op, dims), op, dims) for dims in chosen])


def _layer(suite: str, choice: Choice, tokens: Iterable[int], dims: Dims) -> Iterator[Case]:
    named = [
        (f"{t} token{'s' * (t > 1)}", OPS["fused_moe"], {"T": t, **dims}) for t in choice.tokens or tokens
    ]
    return _cases(suite, choice, named)


def sizes(choice: Choice) -> Iterator[Named]:
    """The ops that were asked for, at their sizes, in all formats."""
    for name, op, dims in _sizes(choice):
        yield from ((f"{name} {kind}".strip(), op, sized) for kind, sized in _formats(choice, dims))


def _sizes(choice: Choice) -> Iterator[Named]:
    for op in filter(choice.takes, OPS.values()):
        if choice.models:
            for name in choice.models:
                yield from _of_model(op, name, choice)
        elif choice.shape:
            own = {**op.bench_dims[0], **choice.shape}
            yield _label(op, own), op, own
        else:
            for dims in op.bench_dims:
                yield _label(op, dims), op, dims


def _of_model(op: Op, name: str, choice: Choice) -> Iterator[Named]:
    model = models.MODELS[name]
    for tokens in choice.tokens or (1, 16, 512):
        for part, dims in models.shapes(op, model, dataclasses.replace(choice.at, tokens=tokens)):
            words = [op.name, name, part, f"T={tokens}"]
            if dims.get("E", model.experts) < model.experts:
                words.append(f"({dims['E']} of {model.experts} experts)")
            yield " ".join(filter(None, words)), op, dims


def _label(op: Op, dims: Dims) -> str:
    """Sizes by their symbols; the numbers that stand for formats by what they stand for."""
    key = format_key(dims)
    words = [f"{symbol}={size}" for symbol, size in dims.items() if symbol not in (key, "a" if key else "")]
    kind = [list(models.FORMATS)[dims[key]]] if key else []
    return " ".join([op.name, *words, *kind, *(["on fp8"] if key and dims.get("a") == 2 else [])])


def _cases(suite: str, choice: Choice, named: Iterable[Named]) -> Iterator[Case]:
    """Some sizes, in all formats, with all routings, and with weights from memory or the caches."""
    for name, op, dims in named:
        caches = choice.cache if format_key(dims) else (COLD,)
        routings = choice.routing if any(a.name == "ids" for a in op.args) else ()
        several = itertools.product(_formats(choice, dims), caches, routings or ("",))
        for (kind, sized), cache, routing in several:
            words = [name, kind, cache if len(caches) > 1 else "", routing]
            label = " ".join(filter(None, words))
            yield op_case(suite, label, op, sized, cache=cache, routing=routing, compile=choice.compile)


def _formats(choice: Choice, dims: Dims) -> Iterator[tuple[str, Dims]]:
    """The same sizes in every format that was asked for, and its name; as they are if none was."""
    key = format_key(dims)
    for kind in choice.formats if key and choice.formats else ("",):
        yield kind, {**dims, key: models.FORMATS[kind]} if kind else dims


# --- calls --------------------------------------------------------------------------------------------------


def overhead(choice: Choice) -> Iterator[Case]:
    """A call of each op on its smallest input, beside the smallest call of torch."""
    chosen = list(filter(choice.takes, OPS.values()))
    yield Case(
        "overhead", "one call on the smallest input, new results", lambda: _smallest_calls(chosen, False)
    )
    yield Case(
        "overhead", "one call on the smallest input, out= given", lambda: _smallest_calls(chosen, True)
    )


def _smallest_calls(chosen: list[Op], given: bool) -> Work:
    one = torch.ones(1)
    add: dict[str, Any] = {"input": one, "other": one, **({"out": torch.empty(1)} if given else {})}
    contenders = {"torch.add, 2 in, 1 out": _always(torch.add, add)}
    for op in chosen:
        x = min((op.inputs(dims, seeded(op, dims)) for dims in op.test_dims), key=_size)
        made = op.fn(**x)
        name = f"{op.name}, {_count(x.values())} in, {_count(as_tuple(made))} out"
        if not given:
            contenders[name] = _always(op.fn, x)
        elif "out" in inspect.signature(op.fn).parameters:
            out = made if isinstance(made, Tensor) else tuple(as_tuple(made))
            contenders[name] = _always(op.fn, {**x, "out": out})
    return Work(contenders)


def _always(f: Callable[..., Any], x: Mapping[str, Any]) -> Contender:
    return lambda _: f(**x)


def _size(x: Mapping[str, Any]) -> float:
    """Elements of all tensors; an empty call is no call."""
    sizes = [v.numel() for v in x.values() if isinstance(v, Tensor)]
    return sum(sizes) if all(sizes) else math.inf


def _count(values: Iterable[Any]) -> int:
    """Tensors, those inside NamedTuples too."""
    return sum(_count(v) if isinstance(v, tuple) else isinstance(v, Tensor) for v in values)


def alternation(choice: Choice) -> Iterator[Case]:
    """A torch matmul and one of our ops in turn: do both run on one team of threads?"""
    yield Case("alternation", "100 calls of each", lambda: _in_turn(100))


def _in_turn(times: int) -> Work:
    rng = torch.Generator().manual_seed(0)
    a, b = torch.randn(256, 512, generator=rng), torch.randn(512, 512, generator=rng)
    x = torch.randn(256, 4096, generator=rng).bfloat16()
    theirs = _always(torch.mm, {"input": a, "mat2": b, "out": torch.empty(256, 512)})
    ours = _always(sparsekern.rms_norm, {"x": x, "eps": 1e-6, "out": torch.empty_like(x)})

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
    return Work(contenders, derived=share)


def router(choice: Choice) -> Iterator[Case]:
    """Routing alone, and tokens laid out for the experts: hidden 7168, 256 experts in 8 groups, top-8."""
    return routers.cases(choice.tokens or routers.TOKENS, choice.takes, choice.compile)


SUITES: dict[str, Suite] = {
    "ops": ops,
    "moe": moe,
    "moe-large": moe_large,
    "linear": linear,
    "router": router,
    "record": record,
    "overhead": overhead,
    "alternation": alternation,
}

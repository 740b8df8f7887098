"""An op at one size as a case: ours and its peers on the same values."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

import sparsekern
from sparsekern.schema import Dims, Op, as_tuple
from sparsekern.shapes import block_size
from sparsekern.testing import seeded
from sparsekern.weights import Sparse2to4

from . import loads
from .baselines import Call, Form, Peer, calling, peers
from .case import Case, Work
from .check import truth
from .machine import cache_bytes
from .missing import Missing, attempt
from .models import FORMATS
from .timing import Contender

WEIGHTS = ("b", "w13", "w2")  # what ops call weights
COLD, WARM = "cold", "warm"
Arguments = dict[str, Any]


def format_key(dims: Dims) -> str:
    """The dimension that numbers the format of the weights; empty where there are none."""
    return next((key for key in ("w", "b") if key in dims), "")


def op_case(
    suite: str, name: str, op: Op, dims: Dims, *, cache: str = COLD, routing: str = "", compile: bool = False
) -> Case:
    """A case of the suite; nothing is made before its turn."""
    key = format_key(dims)
    kind = list(FORMATS)[dims[key]] if key else ""
    about = {"op": op.name, "format": kind, "cache": cache if key else "", "routing": routing}
    return Case(
        suite,
        name,
        lambda: _prepare(op, dims, cache, routing, compile),
        dims,
        op.flops(dims),
        {field: value for field, value in about.items() if value},
    )


def _prepare(op: Op, dims: Dims, cache: str, routing: str, compile: bool) -> Work:
    x = inputs(op, dims, routing)
    weights = weights_of(op, x)
    key, made, missing, traffic = format_key(dims), {}, {}, {}
    everyone = {**_ours(op, weights), **peers(op, compile)}
    forms: dict[Form, Arguments] = {}
    for label, peer in everyone.items():
        if peer.form not in forms:
            forms[peer.form] = in_form(x, weights, peer.form)
        held = copies(forms[peer.form], weights) if cache == COLD else iter([forms[peer.form]])
        calls = [attempt(_prepared, peer, op, copy) for copy in held]
        lost = next((call for call in calls if isinstance(call, Missing)), None)
        if lost is not None:
            missing[label] = str(lost)
            continue
        made[label] = _in_turn(calls)
        wide = {key: FORMATS[peer.form]} if key and peer.form in FORMATS else {}
        traffic[label] = op.bytes({**dims, **wide})
    return Work(
        made,
        traffic if any(traffic.values()) else {},
        {label: everyone[label].limit for label in made},
        missing,
        {label: everyone[label].unlike for label in made if everyone[label].unlike},
        truth(op, x, dims),
        (op, x),
    )


def _prepared(peer: Peer, op: Op, x: Arguments) -> Call:
    """The peer's call. An op that writes to its arguments gets copies of them, and returns them."""
    own = {a.name: x[a.name].clone() for a in op.args if a.written}
    call = peer.prepare({**x, **own})
    if not own:
        return call

    def run() -> tuple[Tensor, ...]:
        call()
        return tuple(own.values())

    return run


def inputs(op: Op, dims: Dims, routing: str = "") -> Arguments:
    """The arguments of a call, as a model would have them."""
    x = {name: _tamed(value, seeded(op, dims)) for name, value in op.inputs(dims, seeded(op, dims)).items()}
    if routing and "ids" in x:
        x["ids"] = loads.ROUTINGS[routing](len(x["ids"]), dims["E"], x["ids"].shape[1], seeded(op, dims))
    return x


def weights_of(op: Op, x: Mapping[str, Any]) -> list[str]:
    """Which of the arguments are weights."""
    return [name for name in WEIGHTS if name in x and f"{name}_block" in inspect.signature(op.fn).parameters]


def _tamed(value: Any, rng: torch.Generator) -> Any:
    """Without the values that no model has: NaN, infinities and huge ones are there for tests."""
    if not isinstance(value, Tensor) or value.dtype not in (torch.float32, torch.bfloat16):
        return value
    usual = value.abs() < 1e4  # false for NaN
    return (
        value
        if bool(usual.all())
        else value.where(usual, torch.randn(value.shape, generator=rng).to(value.dtype))
    )


def _ours(op: Op, weights: list[str]) -> dict[str, Peer]:
    """Our ways of calling an op: as it comes, into given results, and without having packed the weights."""
    ways = {"sparsekern": Peer("packed", lambda x: calling(op.fn, x))}
    if "out" in inspect.signature(op.fn).parameters:
        ways["sparsekern, out="] = Peer("packed", lambda x: _into(op.fn, x))
    if weights:
        ways["sparsekern, weights not packed"] = Peer("stored", lambda x: calling(op.fn, x))
    return ways


def _into(function: Callable[..., Any], x: Mapping[str, Any]) -> Call:
    made = function(**x)
    return calling(function, {**x, "out": made if isinstance(made, Tensor) else tuple(as_tuple(made))})


def _in_turn(calls: list[Call]) -> Contender:
    return lambda i: calls[i % len(calls)]()


def copies(x: Arguments, weights: list[str]) -> Iterator[Arguments]:
    """The call on as many copies of its weights as it takes to find none of them in a cache."""
    size = sum(_parts(x[name])[0].nbytes for name in weights)
    yield x
    for _ in range(1, math.ceil(3 * cache_bytes() / size) if size else 1):
        yield {name: _copy(value) if name in weights else value for name, value in x.items()}


def _parts(w: Any) -> tuple[Tensor, ...]:
    """Tensors of weights in any form, the large one first."""
    return tuple(t for t in as_tuple(w) if isinstance(t, Tensor))


def _copy(w: Any) -> Any:
    if isinstance(w, Tensor):
        return w.clone()
    return w._replace(**{name: t.clone() for name, t in w._asdict().items() if isinstance(t, Tensor)})


def in_form(x: Mapping[str, Any], weights: list[str], form: Form) -> Arguments:
    """The call on weights in another form: packed, or widened to the same values."""
    changed = dict(x)
    for name in weights if form != "stored" else ():
        scale, block = changed.pop(f"{name}_scale", None), changed.pop(f"{name}_block", None)
        if form == "packed":
            changed[name] = sparsekern.pack_weights(x[name], scale, block=block)
        else:
            dtype = torch.bfloat16 if form == "bf16" else torch.float32
            changed[name] = _widened(x[name], scale, block, dtype)
    return changed


def _widened(
    w: Tensor | Sparse2to4, scale: Tensor | None, block: tuple[int, int] | None, dtype: torch.dtype
) -> Tensor:
    """The values of weights, rounded once. Our own kernel makes them: checking results checks it too."""
    if isinstance(w, Sparse2to4):
        w = w.dense()
    if scale is None:
        return w.to(dtype)
    elements = (w.shape[-2], w.shape[-1] * (2 if w.dtype == torch.uint8 else 1))
    rows, columns = (block_size(n, b) or 1 for n, b in zip(elements, scale.shape[-2:], strict=True))
    return sparsekern.dequantize(w, scale, block=block or (rows, columns), dtype=dtype)

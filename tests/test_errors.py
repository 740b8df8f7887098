"""Every way to call every op wrongly: the right error, a message that names op and argument, nothing written.

The table is made from the records of the ops. What a size must be is asked of `Op.bind`, the readable check,
so that the compiled one is held to it.
"""

import inspect
import itertools
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple

import pytest
import torch
from cases import EACH_OP, Args, as_out, buffers, filled, inputs, packed, takes_out, values, weights_of
from torch import Tensor

from sparsekern.catalogue import OPS
from sparsekern.schema import DTYPES, Arg, Dims, DtypeError, Op, Option, ShapeError, as_tuple
from sparsekern.testing import outcome, raw
from sparsekern.weights import PackedWeights

INT64_MAX = 2**63 - 1


class Wrong(NamedTuple):
    """One bad value of one argument."""

    what: str
    argument: str
    value: Any
    error: type[Exception] | tuple[type[Exception], ...]
    says: str = ""  # in the message
    dims: Dims | None = None  # of the call, where not the first of the op


def schema_says(op: Op, x: Args) -> str | None:
    """What the readable check objects to."""
    try:
        given = dict(
            zip([a.name for a in op.args] + [o.name for o in op.options], values(op, x), strict=True)
        )
        op.bind({a.name: given[a.name] for a in op.args}, {o.name: given[o.name] for o in op.options})
    except ShapeError as error:
        return str(error)
    return None


def bad_tensors(op: Op, a: Arg, t: Tensor, x: Args) -> Iterator[Wrong]:
    if a.name not in op.optional:
        yield Wrong("None", a.name, None, DtypeError, "None")
    yield Wrong("str", a.name, "text", DtypeError, "str")
    yield Wrong("list", a.name, [1.0, 2.0], DtypeError, "list")
    for name, dtype in DTYPES.items():
        if name not in a.accepts():
            hint = "convert it to bfloat16 or float32" if name == "f16" else str(dtype).removeprefix("torch.")
            yield Wrong(name, a.name, torch.zeros(t.shape, dtype=dtype), DtypeError, hint)
    yield Wrong("complex", a.name, torch.zeros(t.shape, dtype=torch.complex64), DtypeError, "complex64")
    if not any(form.batched for form in a.forms):
        yield Wrong("one dimension more", a.name, t.new_zeros((1,) * 3 + t.shape), ShapeError, "shape")
    if not any(not form.terms for form in a.forms):
        yield Wrong("no dimension", a.name, t.new_zeros(()), ShapeError, "shape")
    yield Wrong("nine dimensions", a.name, t.new_zeros((1,) * (9 - t.dim()) + t.shape), ShapeError)
    if len([v for v in x.values() if isinstance(v, Tensor)]) > 1:
        yield Wrong("meta", a.name, t.to("meta"), ShapeError, "meta")
    if t.dim() and t.shape[-1] > 1:
        gaps = t.new_zeros((*t.shape, 2))[..., 0]
        yield Wrong("every second element", a.name, gaps, ShapeError, "strides")
    if t.dim() >= 2 and min(t.shape[-2:]) > 1:
        yield Wrong(
            "transposed", a.name, t.transpose(-1, -2).contiguous().transpose(-1, -2), ShapeError, "strides"
        )
        if a.layout == "dense":
            spread = t.new_zeros((*t.shape[:-1], t.shape[-1] + 1))[..., :-1]
            yield Wrong("rows apart", a.name, spread, ShapeError, "strides")
    if t.dim() >= 3 and min(t.shape[:2]) > 1:
        yield Wrong(
            "leading swapped", a.name, t.transpose(0, 1).contiguous().transpose(0, 1), ShapeError, "strides"
        )
    for axis in range(t.dim()):
        for size in {t.shape[axis] + 1, t.shape[axis] - 1, 0} - {t.shape[axis], -1}:
            shape = (*t.shape[:axis], size, *t.shape[axis + 1 :])
            if schema_says(op, {**x, a.name: t.new_zeros(shape)}):  # else it is a size of its own
                yield Wrong(f"size {size} on axis {axis}", a.name, t.new_zeros(shape), ShapeError)


def bad_options(o: Option) -> Iterator[Wrong]:
    if not o.nullable:
        yield Wrong("None", o.name, None, DtypeError)
    kinds: dict[str, list[Any]] = {
        "int": [1.5, "1", True, (1,)],
        "float": ["1.0", True, (1.0,)],
        "bool": [1, "yes", 0.0],
        "enum": [3, torch.float32, ("fp32",)],
        "dtype": ["float32", 4, float],
        "ints": [5, "12", (1,) * (o.length + 1), (1,) * (o.length - 1), (1.5,) * o.length],
    }
    for value in [object(), *kinds[o.kind]]:
        yield Wrong(repr(value), o.name, value, DtypeError)
    if o.kind == "enum":
        yield Wrong("unknown choice", o.name, "nonsense", ShapeError, "nonsense")
    if o.kind == "dtype":
        for dtype in (torch.complex64, torch.int32, torch.bool, torch.float16, torch.float64):
            yield Wrong(str(dtype), o.name, dtype, (DtypeError, ShapeError))
    for value in {"int": (-(2**40), -1, 2**70), "ints": (0, -1, 2**70)}.get(o.kind, ()):
        yield Wrong(str(value), o.name, (value,) * o.length if o.kind == "ints" else value, ShapeError)


def defaults(op: Op) -> dict[str, Any]:
    return {name: p.default for name, p in inspect.signature(op.fn).parameters.items()}


def sizes_with(op: Op, argument: str) -> Dims | None:
    """The first test size whose call has the argument, and something in it."""
    for dims in op.test_dims:
        value = inputs(op, dims).get(argument)
        if isinstance(value, Tensor) and (value.numel() > 0 or value.dim() == 0):
            return dims
    return None


def table(op: Op, argument: str) -> list[Wrong]:
    """What is wrong for one tensor, packed weights or option."""
    if isinstance(inputs(op, op.test_dims[0]).get(argument), PackedWeights):
        others = {"None": None, "str": "text", "Tensor": torch.zeros(4, 4)}
        return [Wrong(says, argument, value, DtypeError, says) for says, value in others.items()]
    for a in op.args:
        if a.name == argument and (dims := sizes_with(op, a.name)) is not None:
            x = inputs(op, dims)
            return [w._replace(dims=dims) for w in bad_tensors(op, a, x[a.name], x)]
    return [w for o in op.options if o.name == argument for w in bad_options(o)]


def arguments(op: Op) -> list[str]:
    """The tensors and options that a caller gives by name."""
    shown = inspect.signature(op.fn).parameters
    return [given.name for given in (*op.args, *op.options) if given.name in shown]


EACH_ARGUMENT = [
    pytest.param(op, argument, id=f"{op.name}-{argument}")
    for op in OPS.values()
    for argument in arguments(op)
]


def refused(op: Op, x: Args, error: Any, out: Any = None, dims: Dims | None = None) -> str:
    """Make the call, once with memory for the results and once without; return the message."""
    given = filled(memory(op, dims or op.test_dims[0]), 0x5A)
    written = [x[a.name] for a in op.args if a.written and isinstance(x[a.name], Tensor)]
    before = [t.clone() for t in written]
    messages = []
    for into in ({"out": as_out(given) if out is None else out}, {}):
        if takes_out(op) if into else out is None:
            with pytest.raises(error) as caught:
                op.fn(**x, **into)
            messages.append(str(caught.value))
    for t in given:
        assert t is None or bool((raw(t).view(torch.uint8) == 0x5A).all()), "something was written"
    for t, old in zip(written, before, strict=True):
        assert t.device.type != "cpu" or torch.equal(raw(t), raw(old)), "something was written in place"
    assert len(set(messages)) == 1, messages
    assert messages[0].startswith(f"{op.name}: "), messages[0]
    return messages[0]


def memory(op: Op, dims: Dims) -> tuple[Tensor | None, ...]:
    """Room for the results of a good call of that size."""
    return buffers(good_result(op, tuple(dims.items())))


@lru_cache(maxsize=4)
def good_result(op: Op, dims: tuple[tuple[str, int], ...]) -> Any:
    return op.fn(**inputs(op, dict(dims)))


@pytest.mark.parametrize(("op", "argument"), EACH_ARGUMENT)
def test_wrong_argument(op: Op, argument: str) -> None:
    rows = table(op, argument)
    assert rows, "nothing is tried"
    for wrong in rows:
        with trying(wrong.what):
            x = {**inputs(op, wrong.dims or op.test_dims[0]), argument: wrong.value}
            message = refused(op, x, wrong.error, dims=wrong.dims)
            if wrong.what.startswith("size"):
                assert message == schema_says(op, x)
            else:
                assert wrong.says in message and re.search(rf"\b{argument}\b", message), message


@contextmanager
def trying(what: str) -> Iterator[None]:
    """A failure says in which row of the table it is."""
    try:
        yield
    except (Exception, pytest.fail.Exception) as error:
        raise AssertionError(f"{what}: {error!r}") from error


@pytest.mark.parametrize("op", EACH_OP)
def test_some_sizes_are_checked(op: Op) -> None:
    """Two arguments that share a size must agree on it, so the table must have cases where they do not."""
    x = inputs(op, op.test_dims[0])
    terms = [t for a in op.args if isinstance(x.get(a.name), Tensor) for t in a.forms[0].terms]
    if len(terms) == len(set(terms)):
        pytest.skip("no size is shared")
    assert any(w.what.startswith("size") for a in op.args for w in table(op, a.name))


WITH_OUT = [p for p in EACH_OP if takes_out(p.values[0])]


@pytest.mark.parametrize("op", WITH_OUT)
def test_wrong_out(op: Op) -> None:
    x = inputs(op, op.test_dims[0])
    results = as_tuple(op.fn(**x))
    for i, good in enumerate(results):
        if good is None:
            continue
        shared = any(s in op.dynamic for term in op.shapes[op.outs[i].name].terms for s in term)
        label = "out" if len(op.outs) == 1 or shared else op.outs[i].name  # who is wrong, where two disagree?
        other = torch.float64 if good.dtype != torch.float64 else torch.float32
        bad = {
            "shape": torch.zeros((*good.shape[:-1], good.shape[-1] + 1), dtype=good.dtype),
            "float64": torch.zeros(good.shape, dtype=other),
            "meta": good.to("meta"),
            "str": "text",
        }
        if good.dim() and good.shape[-1] > 1:
            bad["strides"] = torch.zeros((*good.shape, 2), dtype=good.dtype)[..., 0]
        for says, value in bad.items():
            given = [torch.empty_like(t) if t is not None else None for t in results]
            given[i] = value
            message = refused(op, x, (ShapeError, DtypeError), as_out(tuple(given)))
            assert says in message and label in message, message


@pytest.mark.parametrize("op", WITH_OUT)
def test_out_count(op: Op) -> None:
    x = inputs(op, op.test_dims[0])
    results = as_tuple(op.fn(**x))
    if len(results) == 1:
        assert "out" in refused(op, x, ShapeError, (results[0].clone(),) * 2)
    else:
        assert "out" in refused(op, x, DtypeError, results[0])
        assert "out" in refused(op, x, ShapeError, tuple(results[:-1]))
    assert "out" in refused(op, x, DtypeError, "text")


@pytest.mark.parametrize("op", WITH_OUT)
def test_out_overlaps(op: Op) -> None:
    x = inputs(op, op.test_dims[0])
    results = as_tuple(op.fn(**x))
    for i, good in enumerate(results):
        if good is None or good.numel() == 0:
            continue
        for name, t in x.items():
            if not isinstance(t, Tensor) or t.numel() == 0:
                continue
            room = torch.zeros(
                t.numel() * t.element_size() + good.numel() * good.element_size() + 16, dtype=torch.uint8
            )
            size = t.numel() * t.element_size()
            at = (size - 1) // good.element_size() * good.element_size()  # one element shared, no more
            moved = room[:size].view(t.dtype).view(t.shape)
            raw(moved).copy_(raw(t))
            given = [torch.empty_like(r) if r is not None else None for r in results]
            given[i] = room[at : at + good.numel() * good.element_size()].view(good.dtype).view(good.shape)
            assert "overlap" in refused(op, {**x, name: moved}, ShapeError, as_out(tuple(given)))
    for i, one in enumerate(results):
        for j, two in enumerate(results):
            if (
                i < j
                and one is not None
                and two is not None
                and one.shape == two.shape
                and one.dtype == two.dtype
            ):
                given = [torch.empty_like(r) if r is not None else None for r in results]
                given[j] = given[i]
                assert "overlap" in refused(op, x, ShapeError, tuple(given))


@pytest.mark.parametrize("op", EACH_OP)
def test_no_silently_detached_result(op: Op) -> None:
    for a in op.args:
        x = inputs(op, op.test_dims[0])
        t = x.get(a.name)
        if not isinstance(t, Tensor) or t.dtype not in (torch.float32, torch.bfloat16):
            continue
        x[a.name] = t.requires_grad_()
        message = refused(op, x, RuntimeError)
        assert a.name in message and "requires grad" in message
        with torch.no_grad():
            op.fn(**x)
        x[a.name] = torch.nn.Parameter(t.detach())
        assert "requires grad" in refused(op, x, RuntimeError)
        with torch.inference_mode():
            op.fn(**x)


@pytest.mark.parametrize("op", EACH_OP)
def test_wild_indices_are_refused_or_dropped(op: Op) -> None:
    """Never a crash: a bad index is an error that names the argument, or counts as none."""
    for a in op.args:
        dims = sizes_with(op, a.name)
        if not {"i32", "i64"} & set(a.dtypes.split()) or dims is None:
            continue
        x = inputs(op, dims)
        wild = (-2, -(2**31), 2**31 - 1, 2**40, -(2**40), INT64_MAX, -INT64_MAX - 1)
        for value, at in itertools.product(wild, sorted({0, x[a.name].numel() // 2, x[a.name].numel() - 1})):
            bad = x[a.name].long()
            bad.view(-1)[at] = value
            try:
                got = outcome(op, {**x, a.name: bad})
            except ShapeError as error:
                assert str(error).startswith(f"{op.name}: ") and a.name in str(error)
                refused(op, {**x, a.name: bad}, ShapeError, dims=dims)
            else:
                assert all(t is None or t.device.type == "cpu" for t in as_tuple(got))


def survives(op: Op, x: Args) -> None:
    """A result, an error of the op's, or one of torch's that there is no memory."""
    try:
        outcome(op, x)
    except ShapeError as error:
        assert str(error).startswith(f"{op.name}: "), error
    except (RuntimeError, MemoryError) as error:
        assert "memory" in str(error) or "Storage size" in str(error), error


@pytest.mark.parametrize("op", EACH_OP)
def test_huge_options_are_refused_or_taken(op: Op) -> None:
    """Sizes that overflow when they are multiplied, or no memory can hold: never a crash, and soon over."""
    for o in op.options:
        if o.kind not in ("int", "ints") or o in op.hidden or o.name not in defaults(op):
            continue
        for value in (2**40, 2**62, INT64_MAX):
            x = {**inputs(op, op.test_dims[0]), o.name: (value,) * o.length if o.kind == "ints" else value}
            survives(op, x)


@pytest.mark.parametrize("op", EACH_OP)
def test_huge_tensors_are_refused_or_taken(op: Op) -> None:
    """Rows without columns take no memory, however many there are: no loop goes over them."""
    for a in op.args:
        dims = sizes_with(op, a.name)
        if dims is None or len(shape := inputs(op, dims)[a.name].shape) < 2:
            continue
        t = inputs(op, dims)[a.name]
        for many in (2**31, 2**40, 2**62 // max(math.prod(shape[1:-1]), 1)):
            for huge in ((many, *shape[1:-1], 0), (0, *shape[1:-1], many)):
                survives(op, {**inputs(op, dims), a.name: t.new_empty(huge)})


TAKES_PACKED = [p for p in EACH_OP if weights_of(p.values[0]) or p.id == "unpack_weights"]


@pytest.mark.parametrize("op", TAKES_PACKED)
def test_packed_weights_that_lie(op: Op) -> None:
    """What packed weights say of themselves is checked against the bytes they hold."""
    dims = next(d for d in op.test_dims if any(k in ("b", "w", "kind") and v == 2 for k, v in d.items()))
    for name in weights_of(op) or ["b"]:
        x = packed(op, inputs(op, dims))
        good = x[name]
        *lead, n, k = good.shape
        lies = {
            "data too short": good._replace(data=good.data[:-1]),
            "data too long": good._replace(data=torch.cat([good.data, good.data[:1]])),
            "no data": good._replace(data=good.data[:0]),
            "scale too short": good._replace(scale=good.scale[:-1]),
            "more rows": good._replace(shape=(*lead, n + 64, k)),
            "longer rows": good._replace(shape=(*lead, n, k + 128)),
            "more experts": good._replace(shape=(lead[0] + 1, n, k) if lead else (2, n, k)),
            "negative": good._replace(shape=(*lead, -n, -k)),
            "huge": good._replace(shape=(*lead, 2**62, 2**62)),
            "another format": good._replace(format="f32"),
            "smaller blocks": good._replace(block=(1, 1)),
            "no block": good._replace(block=(0, 0)),
            "scales are bytes": good._replace(scale=good.scale.view(torch.uint8)),
        }
        for lie, weights in lies.items():
            with pytest.raises((ShapeError, DtypeError)) as caught:
                op.fn(**{**x, name: weights})
                pytest.fail(f"{name} is believed: {lie}")
            assert str(caught.value).startswith(f"{op.name}: "), caught.value
        if weights_of(op):
            with pytest.raises(DtypeError):
                op.fn(**{**x, f"{name}_scale": good.scale})


@pytest.mark.parametrize("op", EACH_OP)
def test_errors_are_the_usual_kinds(op: Op) -> None:
    assert issubclass(ShapeError, ValueError) and issubclass(DtypeError, TypeError)
    with pytest.raises(TypeError):
        op.fn()
    with pytest.raises(TypeError):
        op.fn(**inputs(op, op.test_dims[0]), no_such_option=1)

"""What the tests enumerate: every op of the catalogue on every one of its test sizes."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor

import sparsekern
from sparsekern import backend
from sparsekern.catalogue import OPS
from sparsekern.schema import Dims, Op, as_tuple
from sparsekern.shapes import Shape
from sparsekern.testing import cpu_isas, guarded, outcome, raw, seeded
from sparsekern.weights import PackedWeights

Args = dict[str, Any]

# Rows that are nobody's are left as they are in `out=`.
KEEPS_OUT = {"grouped_gemm_masked"}
# Made of GEMM loops, which flush subnormals by decision (docs/numerics.md).
FLUSHES = {op.name for op in OPS.values() if op.family == "gemm"} | {
    "sparse_mla_prefill",
    "sparse_mla_decode",
    "mla_decode",
    "sparse_attention",
    "indexer_logits",
    "indexer_topk",
    "indexer_logits_paged",
    "indexer_topk_paged",
}


def weights_of(op: Op) -> list[str]:
    """The arguments that may be `PackedWeights` instead of tensors."""
    hints = typing.get_type_hints(op.fn)
    return [a.name for a in op.args if {PackedWeights, Tensor} <= set(typing.get_args(hints.get(a.name)))]


def _sizes(op: Op) -> Iterator[Dims]:
    for dims in op.test_dims:
        yield dims
        if weights_of(op):
            yield {**dims, "packed": 1}


def _many(op: Op, dims: Dims) -> Dims:
    """The case with enough rows for several threads, unless their number is given."""
    if any(dims.get(option) for option in op.dynamic.values()):
        return dims
    return {name: 300 if name in ("M", "T", "P") and size > 1 else size for name, size in dims.items()}


def _param(op: Op, dims: Dims) -> Any:
    return pytest.param(op, dims, id=f"{op.name}-" + "_".join(f"{k}{v}" for k, v in dims.items()))


CASES = [_param(op, dims) for op in OPS.values() for dims in _sizes(op)]
MANY_ROWS = [_param(op, _many(op, dims)) for op in OPS.values() for dims in _sizes(op)]
EACH_OP = [pytest.param(op, id=op.name) for op in OPS.values()]
EACH_ISA = cpu_isas()


@lru_cache(maxsize=4)
def _made(op: Op, dims: tuple[tuple[str, int], ...]) -> Args:
    own = {name: size for name, size in dims if name != "packed"}
    x = op.inputs(own, seeded(op, own))
    return packed(op, x) if dict(dims).get("packed") else x


@lru_cache(maxsize=4)
def _expected(op: Op, dims: tuple[tuple[str, int], ...]) -> Any:
    return outcome(op, _made(op, dims), op.reference)


def inputs(op: Op, dims: Dims) -> Args:
    """The arguments of a case, copied: a test may do with them what it likes."""
    return mapped(_made(op, tuple(dims.items())), Tensor.clone)


def expected(op: Op, dims: Dims) -> Any:
    """What the reference makes of `inputs(op, dims)`."""
    return _expected(op, tuple(dims.items()))


def packed(op: Op, x: Mapping[str, Any]) -> Args:
    """The same call with packed weights."""
    x = dict(x)
    for name in weights_of(op):
        stem = name + "_"
        x[name] = sparsekern.pack_weights(
            x[name], x.pop(stem + "scale", None), block=x.pop(stem + "block", None)
        )
    return x


def fenced(op: Op, x: Mapping[str, Any], at: Any) -> Args:
    """The arguments behind guard pages; only what the op writes to can be written."""
    written = {a.name for a in op.args if a.written}
    return {
        name: _mapped(v, lambda t, can=name in written: guarded(t, at, writable=can)) for name, v in x.items()
    }


def mapped(x: Mapping[str, Any], change: Callable[[Tensor], Tensor]) -> Args:
    """The arguments with every tensor changed, also those inside NamedTuples."""
    return {name: _mapped(v, change) for name, v in x.items()}


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if hasattr(value, "_fields"):
        return type(value)(*(_mapped(v, change) for v in value))
    return value


def tensors(x: Mapping[str, Any]) -> list[Tensor]:
    """The arguments that are tensors, those inside NamedTuples as well."""
    flat = (v for value in x.values() for v in (value if hasattr(value, "_fields") else (value,)))
    return [v for v in flat if isinstance(v, Tensor)]


def run(op: Op, x: Mapping[str, Any], **settings: Any) -> Any:
    """Call the op under some settings of `sparsekern.config`."""
    with sparsekern.config.using(**settings):
        return outcome(op, x)


def buffers(result: Any) -> tuple[Tensor | None, ...]:
    """Memory for the results of another call like this one."""
    return tuple(torch.empty_like(t) if isinstance(t, Tensor) else None for t in as_tuple(result))


def filled(given: tuple[Tensor | None, ...], byte: int) -> tuple[Tensor | None, ...]:
    """The same memory, every byte set."""
    for t in given:
        if t is not None:
            raw(t).fill_(int.from_bytes(bytes([byte] * t.element_size()), "little"))
    return given


def as_out(given: tuple[Any, ...]) -> Any:
    """The value of `out=`: a tensor, or a tuple in return order."""
    return given[0] if len(given) == 1 else given


def values(op: Op, x: Mapping[str, Any]) -> list[Any]:
    """The call as the compiled function and `torch.ops` get it: arguments, then options, in schema order."""

    class Caught(Exception):
        pass

    def catch(*all_values: Any) -> Any:
        raise Caught(*all_values)

    kernel, backend._KERNELS[op.name] = backend._KERNELS[op.name], catch
    try:
        op.fn(**x)
    except Caught as call:
        return list(call.args[:-1])
    finally:
        backend._KERNELS[op.name] = kernel
    raise AssertionError(f"{op.name} called nothing")


def takes_out(op: Op) -> bool:
    """Whether the public function has `out=`."""
    return "out" in inspect.signature(op.fn).parameters


def first_term(shape: Shape) -> Any:
    """What the first dimension of an argument or result is called."""
    return "..." if shape.batched else shape.terms[0] if shape.terms else None


def of_rows(op: Op, result: Any) -> tuple[Tensor, ...]:
    """The results that have one entry for each entry of the arguments `op.rows`."""
    pairs = zip(as_tuple(result), op.outs, strict=True)
    rows = first_term(op.forms[op.rows[0]][0])
    return tuple(t for t, o in pairs if t is not None and first_term(op.shapes[o.name]) == rows)


def rows_of(op: Op, x: Mapping[str, Any], rows: Any) -> Args:
    """The call on some of the rows."""
    return {name: v[rows] if name in op.rows and v is not None else v for name, v in x.items()}

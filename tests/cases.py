"""What the tests enumerate: every op of the catalogue on every one of its test sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor

import sparsekern
from sparsekern.catalogue import OPS
from sparsekern.schema import Dims, Op, as_tuple
from sparsekern.testing import cpu_isas, seeded

Args = dict[str, Any]


def _id(op: Op, dims: Dims) -> str:
    return f"{op.name}-" + "_".join(f"{k}{v}" for k, v in dims.items())


CASES = [pytest.param(op, dims, id=_id(op, dims)) for op in OPS.values() for dims in op.test_dims]
EACH_OP = [pytest.param(op, id=op.name) for op in OPS.values()]
EACH_ISA = cpu_isas()


def _many(op: Op, dims: Dims) -> Dims:
    """The case with enough rows for several threads."""
    return {name: 300 if name in ("M", "T", "P") and size > 1 else size for name, size in dims.items()}


MANY_ROWS = [
    pytest.param(op, _many(op, d), id=_id(op, _many(op, d))) for op in OPS.values() for d in op.test_dims
]


@lru_cache(maxsize=4)
def _made(op: Op, dims: tuple[tuple[str, int], ...]) -> Args:
    return op.inputs(dict(dims), seeded(op, dict(dims)))


@lru_cache(maxsize=4)
def _expected(op: Op, dims: tuple[tuple[str, int], ...]) -> Any:
    return op.reference(**_made(op, dims))


def inputs(op: Op, dims: Dims) -> Args:
    """The arguments of a case, copied: a test may do with them what it likes."""
    return mapped(_made(op, tuple(dims.items())), Tensor.clone)


def expected(op: Op, dims: Dims) -> Any:
    """What the reference makes of `inputs(op, dims)`."""
    return _expected(op, tuple(dims.items()))


def mapped(x: Mapping[str, Any], change: Callable[[Tensor], Tensor]) -> Args:
    """The arguments with every tensor changed, also those inside NamedTuples."""
    return {name: _mapped(v, change) for name, v in x.items()}


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if hasattr(value, "_fields"):
        return type(value)(*(_mapped(v, change) for v in value))
    return value


def tensors(x: Mapping[str, Any]) -> dict[str, Tensor]:
    """The arguments that are tensors."""
    return {name: v for name, v in x.items() if isinstance(v, Tensor)}


def run(op: Op, x: Mapping[str, Any], **settings: Any) -> Any:
    """Call the op under some settings of `sparsekern.config`."""
    with sparsekern.config.using(**settings):
        return op.fn(**x)


def buffers(result: Any) -> tuple[Tensor | None, ...]:
    """Memory for the results of another call like this one."""
    return tuple(None if t is None else torch.empty_like(t) for t in as_tuple(result))


def filled(given: tuple[Tensor | None, ...], byte: int) -> tuple[Tensor | None, ...]:
    """The same memory, every byte set."""
    for t in given:
        if t is not None:
            t.view(torch.uint8).fill_(byte)
    return given


def as_out(given: tuple[Any, ...]) -> Any:
    """The value of `out=`: a tensor, or a tuple in return order."""
    return given[0] if len(given) == 1 else given


def values(op: Op, x: Mapping[str, Any]) -> list[Any]:
    """The arguments in the order of the schema, defaults filled in: what `torch.ops` takes."""
    return [x.get(a.name) for a in op.args] + [x.get(o.name, o.default) for o in op.options]


def first_term(op: Op, name: str) -> Any:
    """What the first dimension of an argument or result is called."""
    shape = op.forms[name][0]
    return "..." if shape.batched else shape.terms[0] if shape.terms else None


def of_rows(op: Op, result: Any) -> tuple[Tensor, ...]:
    """The results that have one entry for each entry of the arguments `op.rows`."""
    pairs = zip(as_tuple(result), op.outs, strict=True)
    return tuple(
        t for t, o in pairs if t is not None and first_term(op, o.name) == first_term(op, op.rows[0])
    )


def rows_of(op: Op, x: Mapping[str, Any], rows: Any) -> Args:
    """The call on some of the rows."""
    return {name: v[rows] if name in op.rows and v is not None else v for name, v in x.items()}

"""The way from a public function to the kernel that runs.

`launch(OP, ...)` is all that an op's function does: under a tracer it goes through `torch.ops.sparsekern`,
else straight to the compiled function of the op. That one checks the call against the op's record and, where
it refuses, comes back to `explain`, which raises the error that says why.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_compiling
from torch.utils.dlpack import from_dlpack

from sparsekern import _C, cuda
from sparsekern.schema import DTYPES, DtypeError, Op, Option, ShapeError, UnsupportedError, as_tuple

_dispatch_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack
_is_wrapped: Callable[[Tensor], bool] = torch._C._functorch.is_functorch_wrapped_tensor
_is_differentiated: Callable[[Tensor], bool] = torch._C._functorch.is_gradtrackingtensor
_is_functional: Callable[[Tensor], bool] = torch._is_functional_tensor

_OPS: dict[str, Op] = {}
_KERNELS: dict[str, Callable[..., Any]] = {}


def define(op: Op) -> None:
    """Hand an op's record to the compiled library. Done once, by the catalogue."""
    _OPS[op.name] = op
    _KERNELS[op.name] = _C.define(op.compiled())


def launch(op: Op, *values: Any) -> Any:
    """Run an op on its arguments, options and `out`, in the order of its signature."""
    if is_compiling() or _dispatch_modes():  # someone wants to see the call
        return _through_torch(op, values)
    if forward_ad._current_level >= 0:
        check_gradients(op, values)
    return _KERNELS[op.name](*values)


def run_plain(op: Op, values: Sequence[Any]) -> Any:
    """Run an op below torch's dispatcher, which has dealt with whatever a tensor's class means."""
    plain = [v.as_subclass(Tensor) if isinstance(v, Tensor) and type(v) is not Tensor else v for v in values]
    return _KERNELS[op.name](*plain)


def explain(name: str, values: tuple[Any, ...], reason: str, *, asked_cuda: bool = False) -> Any:
    """Serve a call that the compiled check refused, or raise what is wrong with it.

    Raises:
        ShapeError, DtypeError: an argument does not fit the op's record.
        UnsupportedError: nothing here runs on that device.
        RuntimeError: a result would have to carry gradients.
    """
    op = _OPS[name]
    split = len(op.args)
    options = {o.name: _checked_option(op, o, v) for o, v in zip(op.options, values[split:-1], strict=True)}
    given = dict(zip((a.name for a in op.args), values[:split], strict=True))
    tensors = {a.name: _as_tensor(op, a.name, given[a.name]) for a in op.args}
    out = values[-1]
    real = [t for t in tensors.values() if t is not None]
    results = [] if out is None else [t for t in as_tuple(out) if isinstance(t, Tensor)]

    check_gradients(op, (*tensors.values(), *results))
    if any(_needs_torch(t) for t in real):
        return _through_torch(op, (*tensors.values(), *options.values(), out))
    dims = op.bind(tensors, options)
    if real[0].device.type not in ("cpu", "cuda"):
        raise UnsupportedError(
            f"{name}: no kernels for {real[0].device}; there are some for CPUs and CUDA devices"
        )
    if real[0].device.type == "cuda" and not asked_cuda:
        on_cuda = cuda.kernel(op, _explain_on_cuda)
        _C.set_elsewhere(name, on_cuda)
        return on_cuda(*values)
    if out is not None:
        _check_out(op, tensors, options, dims, out)
    for label, t in tensors.items():
        if t is not None and t.numel() > 0 and t.data_ptr() == 0:
            raise ShapeError(f"{name}: {label} has no memory; its storage was freed or never made")
    if any(given[n] is not t for n, t in tensors.items()):  # arrays, now tensors
        return _KERNELS[name](*tensors.values(), *options.values(), out)
    raise RuntimeError(f"{name}: refused ({reason}), though the arguments fit its record; please report this")


_explain_on_cuda = functools.partial(explain, asked_cuda=True)


def check_gradients(op: Op, values: Sequence[Any]) -> None:
    """Refuse a call whose result would have to carry gradients; `values` begin with the op's arguments.

    Raises:
        RuntimeError: naming the argument that asks for them.
    """
    labels = itertools.chain((a.name for a in op.args), itertools.repeat("out"))
    for label, t in zip(labels, values, strict=False):
        if isinstance(t, Tensor) and _wants_gradients(t):
            raise RuntimeError(
                f"{op.name}: {label} requires grad, and the op has no backward; "
                "detach it or use torch.no_grad()"
            )


def _wants_gradients(t: Tensor) -> bool:
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(t).tangent is not None:
        return True
    return torch.is_grad_enabled() and (t.requires_grad or _is_differentiated(t))


def _needs_torch(t: Tensor) -> bool:
    """Whether the tensor has no memory of its own to read: fake, meta, under vmap, or any subclass."""
    plain = type(t) in (Tensor, torch.nn.Parameter) and t.device.type != "meta"
    return not plain or _is_wrapped(t) or _is_functional(t)


def _through_torch(op: Op, values: Sequence[Any]) -> Any:
    """Call `torch.ops.sparsekern.<op>`, whose fake kernel tracers understand."""
    *inputs, out = values
    overloads = getattr(torch.ops.sparsekern, op.name)
    if out is not None:
        pairs = zip(op.outs, as_tuple(out), strict=True)  # a result that this call has not: an empty tensor
        overloads.out(*inputs, **{f"out_{o.name}": torch.empty(0) if t is None else t for o, t in pairs})
        return out
    result = overloads.default(*inputs)
    return op.result(*result) if op.result is not None else result


def _as_tensor(op: Op, name: str, value: Any) -> Tensor | None:
    if value is None:
        if name not in op.optional:
            raise DtypeError(f"{op.name}: {name} is None, expected a tensor")
        return None
    if isinstance(value, Tensor):
        return value
    if hasattr(value, "__dlpack__"):
        return from_dlpack(value)
    raise DtypeError(f"{op.name}: {name} is {type(value).__name__}, expected a tensor")


def _checked_option(op: Op, o: Option, value: Any) -> Any:
    if value is None and o.nullable:
        return value
    is_int = isinstance(value, int) and not isinstance(value, bool)
    good, wanted = {
        "int": (is_int, "an int"),
        "float": (is_int or isinstance(value, float), "a float"),
        "bool": (isinstance(value, bool), "a bool"),
        "enum": (value in o.choices, " or ".join(map(repr, o.choices))),
        "dtype": (isinstance(value, torch.dtype), "a torch.dtype"),
        "ints": (
            isinstance(value, (tuple, list)) and [*map(type, value)] == [int] * o.length,
            f"{o.length} ints",
        ),
    }[o.kind]
    if not good:
        kind = ShapeError if o.kind == "enum" and isinstance(value, str) else DtypeError
        raise kind(f"{op.name}: {o.name} is {value!r}, expected {wanted}")
    if o.kind == "dtype" and value not in DTYPES.values():
        raise DtypeError(f"{op.name}: {o.name} is {value}, which is not a result dtype")
    if (o.kind == "int" and abs(value) >= 2**63) or (
        o.kind == "ints" and any(abs(v) >= 2**63 for v in value)
    ):
        raise ShapeError(f"{op.name}: {o.name} is {value}, expected a 64-bit integer")
    if o.kind == "ints" and o not in op.hidden and min(value) < 1:
        raise ShapeError(f"{op.name}: {o.name} is {value}, expected at least 1")
    return value


def _check_out(
    op: Op,
    tensors: Mapping[str, Tensor | None],
    options: Mapping[str, Any],
    dims: Mapping[str, Any],
    out: Any,
) -> None:
    """Say why `out` cannot take the results.

    Raises:
        ShapeError, DtypeError: it has another count, type, shape or layout, or overlaps an input.
    """
    if not isinstance(out, tuple) and len(op.outs) > 1:
        raise DtypeError(
            f"{op.name}: out is {type(out).__name__}, expected a tuple of {len(op.outs)} tensors"
        )
    given = as_tuple(out)
    if len(given) != len(op.outs):
        raise ShapeError(f"{op.name}: out has {len(given)} tensors, expected {len(op.outs)}")
    known = dict(dims)
    for symbol in op.dynamic:  # known from values only: any size passes here, the kernel knows
        sizes = [
            t.shape[0]
            for o, t in zip(op.outs, given, strict=True)
            if isinstance(t, Tensor) and t.dim() and op.shapes[o.name].terms[0] == (symbol,)
        ]
        known.setdefault(symbol, sizes[0] if sizes else 0)
    specs = op.result_specs(tensors, options, known)
    for result, t, wanted in zip(op.outs, given, specs, strict=True):
        if wanted is None:
            continue
        label = "out" if len(op.outs) == 1 else f"out ({result.name})"
        if not isinstance(t, Tensor):
            raise DtypeError(f"{op.name}: {label} is {type(t).__name__}, expected a tensor")
        shape, dtype = wanted
        if t.dtype != dtype:
            raise DtypeError(f"{op.name}: {label} is {t.dtype}, expected {dtype}")
        if tuple(t.shape) != shape:
            raise ShapeError(
                f"{op.name}: {label} has shape {tuple(t.shape)}, expected {result.shape} = {shape}"
            )
        device = next(x.device for x in tensors.values() if x is not None)
        if t.device != device:
            raise ShapeError(f"{op.name}: {label} is on {t.device}, expected {device}")
        if not t.is_contiguous():
            raise ShapeError(f"{op.name}: {label} has strides {tuple(t.stride())}, expected contiguous")
    raise ShapeError(f"{op.name}: out has another size than the result, or overlaps an input or another out")


# --- counting calls --------------------------------------------------------------------------------


class Calls(dict[str, Counter[str]]):
    """What ran: `calls["gemm"]` counts the op's calls, `calls.implementations("gemm")` tells them apart."""

    def __init__(self) -> None:
        super().__init__()
        self._seconds: dict[str, float] = {}

    def __getitem__(self, op: str) -> int:  # type: ignore[override]
        return self.get(op, Counter()).total()

    def implementations(self, op: str) -> Counter[str]:
        """Calls of one op by the implementation that ran."""
        return self.get(op, Counter())

    def seconds(self, op: str) -> float:
        """Time spent in one op, checks and allocation included."""
        return self._seconds.get(op, 0.0)

    def add(self, op: str, implementation: str, seconds: float) -> None:
        """Count one call."""
        self.setdefault(op, Counter())[implementation] += 1
        self._seconds[op] = self.seconds(op) + seconds


@contextlib.contextmanager
def trace() -> Iterator[Calls]:
    """Count the calls of every op, which implementation ran and how long, inside the block.

        with sparsekern.trace() as calls:
            model(tokens)
        calls["fused_moe"], calls.implementations("fused_moe"), calls.seconds("fused_moe")

    One trace at a time; it counts the calls of all threads.
    """
    calls = Calls()
    compiled = [m for m in (_C, cuda.module()) if m is not None]
    for m in compiled:
        m.set_trace(calls.add)
    try:
        yield calls
    finally:
        for m in compiled:
            m.set_trace(None)


_C.setup(torch, tuple(DTYPES.values()), explain, ShapeError)

"""Helpers for tests of ops, ours and yours: guard pages, comparisons that have teeth, seeds.

```python
x = op.inputs(dims, seeded(op, dims))
got = outcome(op, {name: guarded(v) if isinstance(v, Tensor) else v for name, v in x.items()})
assert_close(got, outcome(op, x, op.reference), op.max_err)
```
"""

from __future__ import annotations

import ctypes
import mmap
import os
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from sparsekern import _C
from sparsekern.schema import Op, as_tuple

_PAGE = mmap.PAGESIZE
_LIBC = ctypes.CDLL(None, use_errno=True)
_READ, _WRITE, _NONE = 1, 2, 0
_POISON = 0xFF  # NaN in every floating dtype, -1 as an integer


def cpu_isas() -> list[str]:
    """The instruction sets that this processor and the cap `SPARSEKERN_ISA` allow, portable one first."""
    names = _C.isas()
    return names[: names.index(_C.isa()) + 1]


def seeded(op: Op, dims: Mapping[str, int]) -> torch.Generator:
    """The random numbers of one test case: the same in every process."""
    return torch.Generator().manual_seed(zlib.crc32(f"{op.name} {sorted(dims.items())}".encode()))


def outcome(op: Op, x: Mapping[str, Any], run: Callable[..., Any] | None = None) -> Any:
    """Call an op, or `run` in its place, and return what the call makes.

    That is its result; of an op that writes in place, a tuple of the arguments it wrote to, copied. They
    are then put back, so that `x` is as it was.
    """
    written = [x[a.name] for a in op.args if a.written]
    before = [t.clone() for t in written]
    result = (op.fn if run is None else run)(**x)
    after = tuple(t.clone() for t in written)
    for t, old in zip(written, before, strict=True):
        t.copy_(old)
    return after if written else result


# --- guard pages ----------------------------------------------------------------------------------------


def _protect(address: int, size: int, access: int) -> None:
    if size and _LIBC.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(size), access) != 0:
        raise OSError(ctypes.get_errno(), "mprotect: " + os.strerror(ctypes.get_errno()))


def guarded(tensor: Tensor, at: Literal["end", "start"] = "end", *, writable: bool = True) -> Tensor:
    """Copy a tensor, strides and all, to memory that ends (or starts) at a page that cannot be touched.

    A kernel that reads or writes one byte past that side dies at once, with SIGSEGV. What lies between
    strided rows is poison: bytes 0xFF, which is NaN. Unless `writable`, a write into the tensor itself dies
    as well.
    """
    item = tensor.element_size()
    reach = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    span = (reach + 1) * item if tensor.numel() else 0
    pages = max(1, -(-span // _PAGE)) * _PAGE
    memory = mmap.mmap(-1, pages + 2 * _PAGE)  # unmapped when the last tensor on it goes
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    first = _PAGE if at == "start" else _PAGE + pages - span
    bytes_ = torch.frombuffer(memory, dtype=torch.uint8)
    bytes_[_PAGE : _PAGE + pages] = _POISON
    copy = bytes_[first : first + span].view(tensor.dtype).as_strided(tensor.shape, tensor.stride())
    raw(copy).copy_(raw(tensor))
    _protect(address, _PAGE, _NONE)
    _protect(address + _PAGE + pages, _PAGE, _NONE)
    if not writable:
        _protect(address + _PAGE, pages, _READ)
    return copy


def strided(tensor: Tensor, gap: int = 3) -> Tensor:
    """Copy a tensor to rows that lie `gap` elements apart, poison between them; not contiguous."""
    if tensor.dim() < 2 or tensor.numel() == 0:
        return tensor.clone()
    *lead, last = tensor.shape
    room = torch.full((*lead, (last + gap) * tensor.element_size()), _POISON, dtype=torch.uint8)
    copy = room.view(tensor.dtype)[..., :last]
    raw(copy).copy_(raw(tensor))
    return copy


# --- comparisons ----------------------------------------------------------------------------------------


def raw(tensor: Tensor) -> Tensor:
    """The bits of a tensor as integers, in its own shape and memory."""
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.view(integers[tensor.element_size()])


def assert_same_bits(got: Any, want: Any, what: str = "") -> None:
    """Check that two results, tensors or tuples of them, are equal to the bit.

    Raises:
        AssertionError: naming the first element that differs.
    """
    for label, a, b in _pairs(got, want, what):
        wrong = raw(a) != raw(b)
        assert not wrong.any(), _first_wrong(label, a, b, wrong)


def assert_close(got: Any, want: Any, max_err: float, what: str = "") -> None:
    """Check that floating results differ by at most `max_err` of the largest finite value in their row.

    One step between subnormals is allowed as well: these lie a fixed distance apart. NaN, +inf and -inf must
    sit in the same places. Integer results, and all results where `max_err` is 0, must be equal to the bit
    (but NaN equals NaN).

    Raises:
        AssertionError: naming the first element that is too far off.
    """
    for label, a, b in _pairs(got, want, what):
        if max_err == 0 or not b.is_floating_point():
            wrong = raw(a) != raw(b)
            if b.is_floating_point():
                wrong &= ~(a.float().isnan() & b.float().isnan())
        else:
            x, y = a.double(), b.double()
            finite = x.isfinite() & y.isfinite()
            same = (x == y) | (x.isnan() & y.isnan())
            x, y = x.where(finite, 0.0), y.where(finite, 0.0)
            largest = y.abs().amax(-1, keepdim=True) if y.dim() and y.numel() else y.abs()
            step = torch.finfo(b.dtype).tiny * torch.finfo(b.dtype).eps
            wrong = ((x - y).abs() > max_err * largest + step) | (~finite & ~same)
        assert not wrong.any(), _first_wrong(label, a, b, wrong)


def _pairs(got: Any, want: Any, what: str) -> list[tuple[str, Tensor, Tensor]]:
    """Results side by side.

    Raises:
        AssertionError: another count, shape or dtype.
    """
    a, b = as_tuple(got), as_tuple(want)
    assert len(a) == len(b), f"{what}: {len(a)} results, expected {len(b)}"
    names = getattr(want, "_fields", getattr(got, "_fields", range(len(b))))
    pairs: list[tuple[str, Tensor, Tensor]] = []
    for name, x, y in zip(names, a, b, strict=True):
        label = f"{what} result {name}".strip()
        if isinstance(y, tuple) and isinstance(x, tuple):
            pairs += _pairs(x, y, label)
            continue
        if not isinstance(y, Tensor):
            assert x == y, f"{label} is {x!r}, expected {y!r}"
            continue
        assert isinstance(x, Tensor), f"{label} is {x!r}, expected a tensor"
        assert x.dtype == y.dtype, f"{label} is {x.dtype}, expected {y.dtype}"
        assert x.shape == y.shape, f"{label} has shape {tuple(x.shape)}, expected {tuple(y.shape)}"
        pairs.append((label, x, y))
    return pairs


def _first_wrong(label: str, got: Tensor, want: Tensor, wrong: Tensor) -> str:
    at = tuple(wrong.nonzero()[0].tolist())
    a, b = (t[at].float().item() if t.is_floating_point() else t[at].item() for t in (got, want))
    return f"{label}: {int(wrong.sum())} of {wrong.numel()} differ, first at {at}: {a!r}, expected {b!r}"

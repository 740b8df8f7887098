"""Whether a timed result is right: compared with the op's reference.

References work in float64 and one row at a time, so that of large calls only some rows are checked: an op's
rows are independent (its record says of which arguments), and what is wrong with a kernel at a size is wrong
in most of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsekern.schema import Dims, Op, as_tuple
from sparsekern.testing import assert_close, outcome

ROWS = 4  # that are checked
WORK = 2e10  # operations that a reference may take where rows cannot be told apart
SIZE = 1 << 30  # bytes of arguments beyond which one row is checked
PEER_ERROR = 0.03  # of a peer's result, in the 2-norm: bf16 between two GEMMs stays below a third of it


@dataclass(frozen=True)
class Judgement:
    """How far a result is from the reference, and what is wrong with it: nothing if `complaint` is empty."""

    error: float | None  # in the 2-norm, as a part of it; None: there was nothing to compare
    complaint: str
    largest: float = 0.0  # difference of two elements
    relative: float = 0.0  # the same, as a part of the largest value of a row


@dataclass(frozen=True)
class Truth:
    """What the reference returns, for all rows or for some of them."""

    want: tuple[Any, ...]
    rows: Tensor | None  # that `want` holds; None: all
    count: int  # rows of a whole result
    max_err: float

    def judge(self, result: Any, ours: bool) -> Judgement:
        """Compare a result with the reference.

        Ours must be within twice the tolerance of the op's record, bit for bit if that is zero. A peer may
        round where its makers like, order selections differently, and return fewer tensors.
        """
        pairs = [
            (got, want)
            for got, want in zip(map(self._of_rows, as_tuple(result)), self.want, strict=False)
            if isinstance(got, Tensor) and isinstance(want, Tensor) and got.shape == want.shape
        ]
        if not pairs:
            return Judgement(None, "its result has another shape than the reference")
        error, complaint = max(distance(got, want) for got, want in pairs), ""
        if ours:
            try:
                # The reference rounds too: sums on two sides of a tie come out a rounding apart.
                assert_close(tuple(g for g, _ in pairs), tuple(w for _, w in pairs), 2 * self.max_err)
            except AssertionError as wrong:
                complaint = str(wrong)
        elif not error <= PEER_ERROR:
            complaint = f"off by {error:.1e} of the reference"
        return Judgement(error, complaint, *map(max, zip(*(_extremes(g, w) for g, w in pairs), strict=True)))

    def _of_rows(self, got: Any) -> Any:
        whole = isinstance(got, Tensor) and got.dim() > 0 and len(got) == self.count
        return got[self.rows] if self.rows is not None and whole else got


def truth(op: Op, x: Mapping[str, Any], dims: Dims) -> Truth | None:
    """What the reference makes of a call; None where it would take too long."""
    present = [name for name in op.rows if isinstance(x.get(name), Tensor)]
    if not present or any(a.written for a in op.args):
        if op.flops(dims) > WORK:
            return None
        return Truth(as_tuple(outcome(op, x, op.reference)), None, -1, op.max_err)
    count = len(x[present[0]])
    large = sum(t.nbytes for t in x.values() if isinstance(t, Tensor)) > SIZE
    wanted = 1 if large else ROWS
    rows = torch.linspace(0, count - 1, min(wanted, count)).round().long()
    some = {name: v[rows] if name in present else v for name, v in x.items()}
    return Truth(as_tuple(op.reference(**_fewer_experts(some))), rows, count, op.max_err)


def _fewer_experts(x: dict[str, Any]) -> dict[str, Any]:
    """The same call on those experts alone that its tokens go to: references widen all they are given."""
    ids = x.get("ids")
    if ids is None or not {"w13", "w2"} <= x.keys():
        return x
    used = ids[ids >= 0].unique()
    index = torch.full((len(x["w13"]) + 1,), -1, dtype=torch.int32)
    index[used.long()] = torch.arange(len(used), dtype=torch.int32)
    names = [name for name in ("w13", "w2", "w13_scale", "w2_scale") if isinstance(x.get(name), Tensor)]
    return {**x, **{name: x[name][used.long()] for name in names}, "ids": index[ids.long()]}


def distance(got: Tensor, want: Tensor) -> float:
    """How far apart two results are: floats in the 2-norm, as a part of it; others by the part that differs.

    Selections are compared as sets, row by row, since an order among them is not promised by peers.
    """
    if want.numel() == 0:
        return 0.0
    if not want.is_floating_point() or not got.is_floating_point():
        if want.dim() < 2 or want.dtype not in (torch.int32, torch.int64):
            return float((got.long() != want.long()).double().mean())
        pairs = zip(got.long().flatten(0, -2), want.long().flatten(0, -2), strict=True)
        return float(torch.cat([~torch.isin(w, g) for g, w in pairs]).double().mean())
    a, b = got.double(), want.double()
    if bool((a.isnan() != b.isnan()).any()):
        return float("inf")
    a, b = (t.where(a.isfinite() & b.isfinite(), 0.0) for t in (a, b))
    return float((a - b).norm() / b.norm().clamp_min(1e-300))


def _extremes(got: Tensor, want: Tensor) -> tuple[float, float]:
    if want.numel() == 0 or not (got.is_floating_point() and want.is_floating_point()):
        return 0.0, 0.0
    a, b = got.double(), want.double()
    a, b = (t.where(a.isfinite() & b.isfinite(), 0.0) for t in (a, b))
    apart, size = (a - b).abs(), b.abs()
    return float(apart.max()), float((apart / size.amax(-1, keepdim=True).clamp_min(1e-300)).max())

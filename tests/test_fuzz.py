"""Shapes, strides and values that nobody thought of, against the references."""

from typing import Any

import pytest
import torch
from cases import EACH_ISA, EACH_OP, FLUSHES, Args, fenced, run
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsekern.schema import Dims, Op
from sparsekern.testing import assert_close, assert_same_bits, outcome, seeded, strided

SPECIALS = (float("inf"), float("-inf"), float("nan"), -0.0, 0.0, 1e-40, -1e-40)
SIZES = st.integers(0, 40) | st.sampled_from((1, 15, 16, 17, 63, 64, 65, 128, 129))
SMALLEST_NORMAL = 2.0**-126
EDITS = st.lists(st.tuples(st.integers(0, 2**20), st.sampled_from(SPECIALS)), max_size=3)
# exp() of a large gate is 0 in float32 and not in the references' float64: times infinity, NaN or infinity.
FINITE = {"swiglu", "swiglu_quantize_fp8", "fused_moe"}
FEW = settings(
    max_examples=20,
    derandomize=True,
    deadline=None,
    database=None,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)


@st.composite
def sizes(draw: st.DrawFn, op: Op) -> Dims:
    """Sizes of a case; capitals name them, the rest are options and kinds."""
    dims = dict(draw(st.sampled_from(op.test_dims)))
    changed = draw(st.sets(st.sampled_from([name for name in dims if name[0].isupper()])))
    return dims | {name: draw(SIZES) for name in sorted(changed)}


def made(op: Op, dims: Dims, edits: list[tuple[int, float]]) -> Args:
    """The arguments of that size, with odd values among what comes in rows."""
    try:
        x = op.inputs(dims, seeded(op, dims))
        outcome(op, x, op.reference)
        outcome(op, x)
    except (RuntimeError, ValueError, IndexError, ZeroDivisionError):
        assume(False)  # sizes that do not go together; what is refused, and how, is for test_errors.py
    t = x[(op.rows or (op.args[0].name,))[0]]
    if op.rows and t.dtype in (torch.float32, torch.bfloat16) and t.numel():
        for where, value in edits:
            if op.name in FINITE and abs(value) == float("inf"):
                continue
            if op.name in FLUSHES and 0 < abs(value) < SMALLEST_NORMAL:
                continue  # GEMMs take and make no subnormals (docs/numerics.md); their own tests say so
            t.view(-1)[where % t.numel()] = value
    return x


def relaid(op: Op, x: Args, gap: int, at: Any) -> Args:
    """The same values with rows apart, behind a guard page."""
    rows = {a.name for a in op.args if a.layout == "rows" and len(a.forms) == 1}
    spread = {n: strided(v, gap) if n in rows and isinstance(v, Tensor) else v for n, v in x.items()}
    return fenced(op, spread, at)


@pytest.mark.parametrize("op", EACH_OP)
def test_matches_reference(op: Op) -> None:
    @FEW
    @given(sizes(op), EDITS, st.integers(0, 9), st.sampled_from(("end", "start")))
    def check(dims: Dims, edits: list[tuple[int, float]], gap: int, at: str) -> None:
        x = made(op, dims, edits)
        got = outcome(op, relaid(op, x, gap, at))
        assert_close(got, outcome(op, x, op.reference), op.max_err)
        for isa in EACH_ISA:
            assert_same_bits(run(op, x, isa=isa, threads=2), got, isa)

    check()


def rows_lead(op: Op) -> bool:
    """Whether leading dimensions only count rows; a row of `rope` belongs to the token of its first one."""
    return op.args[0].name in op.rows and all(op.forms[name][0].batched for name in op.rows)


@pytest.mark.parametrize("op", [p for p in EACH_OP if rows_lead(p.values[0])])
def test_leading_dimensions_are_rows(op: Op) -> None:
    """Any number of leading dimensions, also none."""
    batched = {a.name for a in op.args if a.forms[0].batched}
    outs = [i for i, o in enumerate(op.outs) if op.shapes[o.name].batched]
    x = op.inputs(op.test_dims[0], seeded(op, op.test_dims[0]))
    results = op.fn(**x)
    want = results if isinstance(results, tuple) else (results,)
    deep = {n: v[None, :, None] if n in batched and isinstance(v, Tensor) else v for n, v in x.items()}
    if any(len(a.forms[0].terms) > 1 for a in op.args if a.name in batched):
        deep = {n: v[None, None] if n in batched and isinstance(v, Tensor) else v for n, v in x.items()}
    results = op.fn(**deep)
    got = results if isinstance(results, tuple) else (results,)
    for i in outs:
        assert_same_bits(got[i].reshape(want[i].shape), want[i])

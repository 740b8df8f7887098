"""Every op on every one of its sizes: right, the same bits always, inside its memory."""

import itertools
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from cases import (
    CASES,
    EACH_ISA,
    EACH_OP,
    FLUSHES,
    KEEPS_OUT,
    MANY_ROWS,
    Args,
    as_out,
    buffers,
    expected,
    fenced,
    filled,
    inputs,
    of_rows,
    rows_of,
    run,
    takes_out,
    tensors,
)
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import sparsekern
from sparsekern.schema import Dims, Op, as_tuple
from sparsekern.testing import assert_close, assert_same_bits, guarded, outcome, raw, strided

INDEPENDENT = [p for p in MANY_ROWS if p.values[0].rows]


@pytest.mark.parametrize("isa", EACH_ISA)
@pytest.mark.parametrize(("op", "dims"), CASES)
def test_matches_reference(op: Op, dims: Dims, isa: str) -> None:
    x = inputs(op, dims)
    with sparsekern.trace() as calls:
        result = run(op, x, isa=isa)
    assert_close(result, expected(op, dims), op.max_err)
    assert [name.split("_")[0] for name in calls.implementations(op.name)] == [isa]


@pytest.mark.parametrize("op", EACH_OP)
def test_tolerance_has_teeth(op: Op) -> None:
    dims = op.test_dims[0]
    with pytest.raises(AssertionError):
        assert_close(outcome(op, op.spoil(inputs(op, dims))), expected(op, dims), op.max_err)


# --- one result ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("op", "dims"), MANY_ROWS)
def test_isas_and_threads_return_the_same_bits(op: Op, dims: Dims) -> None:
    x = inputs(op, dims)
    want = run(op, x, isa=EACH_ISA[-1], threads=1)
    for isa in EACH_ISA:
        for threads in (2, 3) if isa == EACH_ISA[-1] else (1,):
            assert_same_bits(run(op, x, isa=isa, threads=threads), want, f"{isa}, {threads} threads:")


@pytest.mark.parametrize(("op", "dims"), INDEPENDENT)
def test_row_depends_on_itself_alone(op: Op, dims: Dims) -> None:
    x = inputs(op, dims)
    want = of_rows(op, op.fn(**x))
    n = len(x[op.rows[0]])
    cuts = sorted({0, min(1, n), min(4, n), n // 3, n // 2 + 1 if n > 2 else n, max(n - 1, 0), n})
    parts = [of_rows(op, op.fn(**rows_of(op, x, slice(a, b)))) for a, b in itertools.pairwise(cuts)]
    if parts:
        assert_same_bits(tuple(map(torch.cat, zip(*parts, strict=True))), want, "split:")
    if n > 1:
        for name in op.rows:
            if x.get(name) is not None and x[name].is_floating_point():
                raw(x[name])[n // 2] = -1  # NaN
        keep = torch.arange(n) != n // 2
        poisoned = of_rows(op, op.fn(**x))
        assert_same_bits(tuple(t[keep] for t in poisoned), tuple(t[keep] for t in want), "beside NaN:")


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("op", "dims"), MANY_ROWS)
def test_rounding_mode_of_the_caller_does_not_matter(op: Op, dims: Dims, threads: int) -> None:
    for x in (inputs(op, dims), subnormal(op, inputs(op, dims))):
        want = run(op, x, threads=threads)
        torch.set_flush_denormal(True)
        got = run(op, x, threads=threads)
        assert torch.tensor(1e-40).mul(1).item() == 0, "the flag is part of the caller's state"
        torch.set_flush_denormal(False)
        assert_same_bits(got, want)


@pytest.mark.parametrize(("op", "dims"), CASES)
def test_subnormals_match_reference(op: Op, dims: Dims) -> None:
    if op.name in FLUSHES:
        pytest.skip("GEMM loops flush subnormals by decision (docs/numerics.md)")
    x = subnormal(op, inputs(op, dims))
    assert_close(outcome(op, x), outcome(op, x, op.reference), op.max_err)


def subnormal(op: Op, x: Args) -> Args:
    """The call with its first floating argument scaled down to subnormals."""
    name = next((a.name for a in op.args if "f32" in a.dtypes and isinstance(x.get(a.name), Tensor)), None)
    return x if name is None else {**x, name: (x[name].double() * 2.0**-130).to(x[name].dtype)}


# --- memory -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("isa", EACH_ISA)
@pytest.mark.parametrize("at", ["end", "start"])
@pytest.mark.parametrize(("op", "dims"), CASES)
def test_stays_inside_its_tensors(op: Op, dims: Dims, at: Any, isa: str) -> None:
    x = inputs(op, dims)
    want = run(op, x, isa=isa)
    x = fenced(op, x, at)
    assert_same_bits(run(op, x, isa=isa), want)
    if takes_out(op):
        out = tuple(None if t is None else guarded(t, at) for t in blank(op, want))
        assert_same_bits(run(op, {**x, "out": as_out(out)}, isa=isa), want)


@pytest.mark.parametrize(("op", "dims"), [p for p in CASES if takes_out(p.values[0])])
def test_out_is_filled_and_nothing_is_allocated(op: Op, dims: Dims) -> None:
    x = inputs(op, dims)
    want = op.fn(**x)
    out = blank(op, want)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        result = op.fn(**x, out=as_out(out))
    assert all(a is b for a, b in zip(as_tuple(result), out, strict=True) if b is not None)
    assert_same_bits(result, want)
    assert not any(e.name == "[memory]" for e in watched.events())


def test_the_profiler_would_see_an_allocation() -> None:
    x = torch.ones(4, 64)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        sparsekern.rms_norm(x, eps=1e-6)
    assert any(e.name == "[memory]" for e in watched.events())


@pytest.mark.parametrize(("op", "dims"), CASES)
def test_inputs_are_neither_changed_nor_returned(op: Op, dims: Dims) -> None:
    x = inputs(op, dims)
    result = outcome(op, x)
    assert_same_bits(tuple(tensors(x)), tuple(tensors(inputs(op, dims))))
    memory = {t.untyped_storage().data_ptr() for t in tensors(x)}
    assert not any(
        t.numel() and t.untyped_storage().data_ptr() in memory
        for t in as_tuple(result)
        if isinstance(t, Tensor)
    )


def blank(op: Op, result: Any) -> tuple[Tensor | None, ...]:
    """Memory for results like these; nothing of what it holds now may be left in them."""
    return filled(buffers(result), 0 if op.name in KEEPS_OUT else 0x5A)


@pytest.mark.parametrize(("op", "dims"), [p for p in CASES if p.values[0].name in KEEPS_OUT])
def test_rows_of_nobody_are_left_as_they_are(op: Op, dims: Dims) -> None:
    x = inputs(op, dims)
    zero, other = (op.fn(**x, out=as_out(filled(buffers(op.fn(**x)), byte))) for byte in (0, 0x5A))
    kept = (zero.view(torch.uint8) == 0) & (other.view(torch.uint8) == 0x5A)
    assert_same_bits(other.view(torch.uint8)[~kept], zero.view(torch.uint8)[~kept])


# --- other spellings of the same call -----------------------------------------------------------------------


@pytest.mark.parametrize(("op", "dims"), CASES)
def test_strided_rows_give_the_same_bits(op: Op, dims: Dims) -> None:
    x, want = inputs(op, dims), outcome(op, inputs(op, dims))
    for a in op.args:
        if a.layout == "rows" and isinstance(x.get(a.name), Tensor) and len(a.forms) == 1:
            x[a.name] = strided(x[a.name])
    assert_same_bits(outcome(op, x), want)


@pytest.mark.parametrize(("op", "dims"), CASES)
def test_wider_indices_and_plain_bytes_give_the_same_bits(op: Op, dims: Dims) -> None:
    x = inputs(op, dims)
    want = outcome(op, x)
    for a in op.args:
        t = x.get(a.name)
        if not isinstance(t, Tensor) or any(a.name in o.dtype.split() for o in op.outs):
            continue
        if t.dtype == torch.int32:
            x[a.name] = t.long()
        elif t.dtype == torch.float8_e8m0fnu:
            x[a.name] = t.view(torch.uint8)
    assert_same_bits(outcome(op, x), want)


@pytest.mark.parametrize(("op", "dims"), [p for p in CASES if p.values[1].get("packed")])
def test_packed_weights_give_the_same_bits(op: Op, dims: Dims) -> None:
    plain = {name: size for name, size in dims.items() if name != "packed"}
    assert_same_bits(op.fn(**inputs(op, dims)), op.fn(**inputs(op, plain)))


# --- threads and processes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("op", EACH_OP)
def test_python_threads_at_once(op: Op) -> None:
    want = [outcome(op, inputs(op, dims)) for dims in op.test_dims]
    together = threading.Barrier(2)

    def work(_: int) -> list[list[Any]]:
        cases = [inputs(op, dims) for dims in op.test_dims]
        together.wait()
        return [[outcome(op, x) for x in cases] for _ in range(10)]

    with ThreadPoolExecutor(2) as pool:
        for rounds in pool.map(work, range(2)):
            for got in rounds:
                for one, two in zip(got, want, strict=True):
                    assert_same_bits(one, two)


FORKING = """
import os, sys, torch, sparsekern
from sparsekern.catalogue import OPS
from sparsekern.testing import assert_same_bits, outcome, seeded

cases = [(op, op.inputs(d, seeded(op, d))) for op in OPS.values() for d in op.test_dims]
x = torch.ones(512, 1024)
for threads in (1, 2):  # the second child is born with the parent's thread team gone
    sparsekern.config.threads = threads
    sparsekern.rms_norm(x, eps=1e-6)
    want = [outcome(op, x) for op, x in cases]
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)  # as a DataLoader's worker does
        sparsekern.config.threads = 0
        sparsekern.rms_norm(x, eps=1e-6)
        for (op, x), w in zip(cases, want):
            assert_same_bits(outcome(op, x), w)
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
"""


def test_after_fork() -> None:
    process = subprocess.Popen([sys.executable, "-c", FORKING], start_new_session=True)
    try:
        assert process.wait(timeout=120) == 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)

"""Every op with a CUDA kernel, on all its test sizes, on the model: through the bindings, as users call."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cases import FLUSHES, expected, inputs, mapped, of_rows, rows_of
from test_golden import FOLDER, checker
from test_golden import cases as golden_cases
from torch import Tensor

from sparsekern.catalogue import OPS
from sparsekern.schema import Dims, Op, as_tuple
from sparsekern.testing import assert_close, assert_same_bits, outcome, strided
from sparsekern.weights import Sparse2to4

from .build import ROOT, nvcc
from .extension import KERNEL_OF, ModelGpu, ops_on_cuda

pytestmark = pytest.mark.devmodel
SCHEDULES = [("fifo", 1), ("lifo", 1), ("random", 1), ("random", 2)]
ON_CUDA = [OPS[name] for name in ops_on_cuda() if name in OPS]
# Sizes that cross the edges of tiles, which the records' do not.
LARGER = {
    "gemm": [
        {"M": m, "N": 264, "K": 336, "a": a, "b": b} for m in (13, 130) for a in (1, 2) for b in (1, 2, 3)
    ],
    "grouped_gemm": [{"P": 300, "N": 130, "K": 272, "E": 5, "a": a, "b": b} for a in (1, 2) for b in (2, 3)],
    "grouped_gemm_masked": [{"E": 3, "Mmax": 80, "N": 130, "K": 272, "a": a, "b": 2} for a in (1, 2)],
}
CASES = [
    pytest.param(op, dims, id=f"{op.name}-" + "_".join(f"{k}{v}" for k, v in dims.items()))
    for op in ON_CUDA
    for dims in (*op.test_dims, *LARGER.get(op.name, ()))
]


@pytest.fixture(scope="session")
def gpu(request: pytest.FixtureRequest) -> Iterator[ModelGpu]:
    if nvcc() is None:
        pytest.skip("no nvcc: CUDA kernels are not compiled, so not executed")
    tried = {item.callspec.params["op"].name for item in request.session.items if "op" in item.fixturenames}
    yield ModelGpu("sm_80", sorted(tried) if tried else None)


def with_sizes(op: Op, x: dict[str, Any], want: Any) -> dict[str, Any]:
    """The call with the sizes that a device cannot find out by itself."""
    for symbol, option in op.dynamic.items():
        if option and x.get(option) is None:
            named = next(o.name for o in op.outs if op.shapes[o.name].terms[0] == (symbol,))
            x[option] = len(as_tuple(want)[[o.name for o in op.outs].index(named)])
    return x


def served(x: dict[str, Any]) -> dict[str, Any]:
    """The call, unless CUDA kernels do not take such arguments."""
    if any(isinstance(v, Sparse2to4) for v in x.values()):
        pytest.skip("2:4 weights have no CUDA kernel yet")
    return x


def run(gpu: ModelGpu, op: Op, x: dict[str, Any]) -> Any:
    """The op on the model; nothing may be wrong, and everything must have been written."""
    with gpu.device.cleared():
        result = outcome(op, mapped(x, gpu.device.put), lambda **on_model: gpu.run(op, on_model))
        errors = gpu.device.errors()
        assert not errors, "\n".join(map(str, errors[:10]))
        outs = [t for t in as_tuple(result) if isinstance(t, Tensor)]
        if op.outs:
            assert not any(gpu.device.unwritten(t) for t in outs)
        copies = [t.clone() if isinstance(t, Tensor) else t for t in as_tuple(result)]
    if hasattr(result, "_fields"):
        return type(result)(*copies)
    return tuple(copies) if isinstance(result, tuple) else copies[0]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: f"{s[0]}{s[1]}")
@pytest.mark.parametrize(("op", "dims"), CASES)
def test_matches_reference(gpu: ModelGpu, op: Op, dims: Dims, schedule: tuple[str, int]) -> None:
    want = expected(op, dims)
    x = served(with_sizes(op, inputs(op, dims), want))
    gpu.device.configure(schedule[0], seed=schedule[1])
    got = run(gpu, op, x)
    assert_close(got, want, op.max_err)
    if op.name not in FLUSHES:  # sums of products have an order of their own
        assert_same_bits(got, outcome(op, x), "beside the CPU:")


@pytest.mark.parametrize(("op", "dims"), CASES)
def test_strided_rows_and_wider_indices(gpu: ModelGpu, op: Op, dims: Dims) -> None:
    x = served(with_sizes(op, inputs(op, dims), expected(op, dims)))
    gpu.device.configure("fifo")
    want = run(gpu, op, x)
    for a in op.args:
        t = x.get(a.name)
        if isinstance(t, Tensor) and a.layout == "rows" and len(a.forms) == 1:
            index = t.dtype == torch.int32 and not any(a.name in o.dtype.split() for o in op.outs)
            x[a.name] = strided(t.long() if index else t)
    gpu.device.configure("random", seed=3)
    got = run(gpu, op, x)
    if op.family == "gemm":  # rows that cannot be copied 16 bytes at a time go another way
        assert_close(got, want, op.max_err)
    else:
        assert_same_bits(got, want)


@pytest.mark.parametrize(("op", "dims"), [p for p in CASES if p.values[0].rows])
def test_row_depends_on_itself_alone(gpu: ModelGpu, op: Op, dims: Dims) -> None:
    x = served(inputs(op, dims))
    gpu.device.configure("fifo")
    want = of_rows(op, run(gpu, op, x))
    n = len(x[op.rows[0]])
    parts = [rows_of(op, x, slice(a, b)) for a, b in ((0, n // 9), (n // 9, n))]
    got = [of_rows(op, run(gpu, op, part)) for part in parts]
    assert_same_bits(tuple(map(torch.cat, zip(*got, strict=True))), want, "split:")


GOLDEN = [p for p in golden_cases() if p.values[0] is None or p.values[0]["op"] in ops_on_cuda()]


@pytest.mark.parametrize("case", GOLDEN)
def test_golden(gpu: ModelGpu, case: dict[str, Any]) -> None:
    op = OPS[case["op"]]

    def on_model(**x: Any) -> Any:
        written = [x[a.name] for a in op.args if a.written]
        result = run(gpu, op, with_sizes(op, x, outcome(op, x)))
        for to, made in zip(written, as_tuple(result), strict=False):
            to.copy_(made)
        return None if written else result

    gpu.device.configure("random", seed=7)
    assert checker().run(on_model, case, str(FOLDER), "cpu") == []


IN_PART = {
    "indexer_topk",
    "indexer_topk_paged",
}  # of their sizes not all were tried: these take the model long


def documented() -> list[str]:
    """The rows of docs/cuda.md, as they must be."""
    gated = {
        name.partition("::")[0]: path.stem
        for path in sorted((ROOT / "tests" / "static_gate" / "baselines").glob("*.json"))
        for name in json.loads(path.read_text())
    }
    rows = []
    for name in ops_on_cuda():
        bits = "no: order of sums" if name in FLUSHES else "yes"
        folder = KERNEL_OF.get(name, name)
        gate = gated.get({"moe_permutation": "moe"}.get(folder, folder), "not yet")
        sizes = len(OPS[name].test_dims) + len(LARGER.get(name, ()))
        tried = f"some of {sizes}" if name in IN_PART else f"{sizes}"
        rows.append(f"| `{name}` | sm_80, {tried} sizes | {bits} | {gate} | not yet |")
    return rows


def test_documentation_names_every_kernel() -> None:
    told = re.findall(r"^\| `\w+` \|.*$", (ROOT / "docs" / "cuda.md").read_text(), re.MULTILINE)
    assert told == documented(), "\n" + "\n".join(documented())

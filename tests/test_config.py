"""Settings, traces, support, the import, and the two ways to read tensors."""

import os
import subprocess
import sys

import pytest
import torch
from cases import CASES, EACH_ISA, EACH_OP, inputs

import sparsekern
from sparsekern import _C
from sparsekern.config import ISAS
from sparsekern.schema import Dims, Op
from sparsekern.testing import assert_same_bits


def python(code: str, **environment: str) -> str:
    """What another process prints."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# --- threads and instruction sets -------------------------------------------------------------------------


def test_threads_follow_torch_until_set() -> None:
    for n in (1, 2, 3):
        torch.set_num_threads(n)
        assert sparsekern.config.threads == n
    with sparsekern.config.using(threads=7):
        assert sparsekern.config.threads == 7
        torch.set_num_threads(2)
        assert sparsekern.config.threads == 7
    assert sparsekern.config.threads == 2
    with pytest.raises(ValueError, match="-1"):
        sparsekern.config.threads = -1


def test_settings_come_back_after_an_error() -> None:
    before = sparsekern.config.isa
    with pytest.raises(ZeroDivisionError), sparsekern.config.using(isa="scalar", threads=1):
        assert sparsekern.config.isa == "scalar"
        raise ZeroDivisionError
    assert sparsekern.config.isa == before


def test_isas_are_ordered_and_known() -> None:
    assert list(ISAS[: len(_C.isas())]) == _C.isas()
    with pytest.raises(ValueError, match="sse2"):
        sparsekern.config.isa = "sse2"
    for isa in EACH_ISA:
        with sparsekern.config.using(isa=isa):
            assert sparsekern.config.isa == isa


NORM = """
import torch, sparsekern
with sparsekern.trace() as calls:
    sparsekern.rms_norm(torch.ones(2, 8), eps=1e-6)
print(*calls.implementations("rms_norm"))
"""


@pytest.mark.parametrize("isa", EACH_ISA)
def test_environment_caps_the_instruction_set(isa: str) -> None:
    assert python(NORM, SPARSEKERN_ISA=isa) == isa


def test_environment_that_names_nothing() -> None:
    message = python("try: import sparsekern\nexcept ValueError as e: print(e)", SPARSEKERN_ISA="mmx")
    assert "mmx" in message and "avx2" in message


# --- traces and support -----------------------------------------------------------------------------------


def test_trace_counts() -> None:
    x = torch.ones(2, 8)
    with sparsekern.trace() as calls:
        for _ in range(3):
            sparsekern.rms_norm(x, eps=1e-6)
        with sparsekern.config.using(isa="scalar"):
            sparsekern.rms_norm(x, eps=1e-6)
        with pytest.raises(ValueError):
            sparsekern.rms_norm(x, torch.ones(3), eps=1e-6)
    assert calls["rms_norm"] == 4 and calls["gemm"] == 0
    assert calls.implementations("rms_norm")["scalar"] >= 1
    sparsekern.rms_norm(x, eps=1e-6)
    assert calls["rms_norm"] == 4


@pytest.mark.parametrize("op", EACH_OP)
def test_support_names_what_runs(op: Op) -> None:
    answer = sparsekern.support(op.name)
    with sparsekern.trace() as calls:
        op.fn(**inputs(op, op.test_dims[0]))
    assert answer.ok and not answer.reason
    assert [name.split("_")[0] for name in calls.implementations(op.name)] == [
        answer.implementation.split("_")[0]
    ]
    assert op.name in sparsekern.ops()


@pytest.mark.parametrize(
    ("op", "device", "shape"),
    [
        ("rms_norm", "cuda", {}),
        ("rms_norm", "cuda:9", {}),
        ("rms_norm", "toaster", {}),
        ("rms_norm", None, {}),
        ("rms_norm", 3.5, {}),
        ("rms_norm", "cpu", {"M": -1}),
        ("no_such_op", "cpu", {}),
        ("", "", {}),
        (None, "cpu", {}),
        (["rms_norm"], "cpu", {}),
        ("rms_norm", "cpu", {"M": "many"}),
        ("rms_norm", "cpu", {"M": None}),
    ],
)
def test_support_never_raises(op: object, device: object, shape: dict[str, object]) -> None:
    answer = sparsekern.support(op, device, **shape)
    assert not answer.ok and answer.reason and not answer.implementation


# --- the package ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("op", "dims"), CASES)
def test_attribute_reads_give_the_same_results(op: Op, dims: Dims) -> None:
    x = inputs(op, dims)
    want = op.fn(**x)
    try:
        assert not _C.use_exchange_api(False)
        got = op.fn(**x)
    finally:
        _C.use_exchange_api(True)
    assert_same_bits(got, want)


@pytest.mark.bench
def test_import_is_quick() -> None:
    code = "import time, torch; t = time.perf_counter(); import sparsekern; print(time.perf_counter() - t)"
    assert min(float(python(code)) for _ in range(3)) < 0.3


def test_import_touches_no_accelerator_and_loads_no_extra() -> None:
    code = (
        "import sys, torch; before = set(sys.modules); import sparsekern; new = set(sys.modules) - before; "
        "print(torch.cuda.is_initialized(), {'transformers', 'numpy', 'safetensors', 'pytest'} & new)"
    )
    assert python(code) == "False set()"


def test_public_names() -> None:
    for name in sparsekern.ops():
        if name in ("unpack_weights",):  # PackedWeights.unpack
            continue
        assert callable(getattr(sparsekern, name))
        assert callable(getattr(sparsekern.reference, name))

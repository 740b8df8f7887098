"""On a GPU: `pytest -m cuda`. What it needs beside the library is a device."""

import json
from pathlib import Path

import pytest
from cases import EACH_OP

from sparsekern import cuda
from sparsekern.cli import main, verify_cuda
from sparsekern.schema import Op


@pytest.fixture
def device() -> str:
    if reason := cuda.trouble():
        pytest.skip(reason)
    return "cuda"


@pytest.mark.cuda
@pytest.mark.parametrize("op", EACH_OP)
def test_op_on_a_gpu(device: str, op: Op) -> None:
    if reason := cuda.lacks(op.name):
        pytest.skip(reason)
    assert verify_cuda.check(op, device)["wrong"] == []


@pytest.mark.cuda
def test_verify_reports(device: str, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    words = ["verify", "--device", device, "--only-check", "--op", "rms_norm", "--report", str(report)]
    assert main(words) == 0
    assert json.loads(report.read_text())["ops"]["rms_norm"]["wrong"] == []


def test_verify_says_that_there_is_no_device(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "trouble", lambda: "no CUDA device")
    assert main(["verify", "--device", "cuda"]) == 2
    assert "nothing runs on cuda: no CUDA device" in capsys.readouterr().err


def test_sizes_that_a_device_cannot_find_out_are_given() -> None:
    """The CPU takes them, too, and gives the same."""
    for op in (p.values[0] for p in EACH_OP):
        if any(op.dynamic.values()):
            x = verify_cuda.arguments(op, op.test_dims[0])
            assert all(x[option] is not None for option in op.dynamic.values() if option)

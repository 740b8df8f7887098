"""The commands do what their help says."""

import json
import subprocess
import sys

import pytest
import torch

import sparsekern
from sparsekern.catalogue import OPS
from sparsekern.cli import main


def test_info_prints_every_op(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert f"sparsekern {sparsekern.__version__}" in text
    assert all(f"\n{name} " in text for name in OPS)


def test_info_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert list(facts["ops"]) == sparsekern.ops()
    assert facts["isa"] == sparsekern.config.isa
    assert facts["cuda"]["reason"]
    assert facts["torch"] == torch.__version__


def test_info_names_a_cap(capsys: pytest.CaptureFixture[str]) -> None:
    with sparsekern.config.using(isa="scalar"):
        main(["info"])
    if sparsekern.config.isa != "scalar":
        assert "scalar (capped" in capsys.readouterr().out


def test_verify_accepts_what_is_right(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--op", "rms_norm"]) == 0
    out = capsys.readouterr().out
    assert "all match" in out
    assert "WRONG" not in out


def test_verify_finds_what_is_wrong(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    op = OPS["rms_norm"]
    right = op.reference
    monkeypatch.setitem(op.__dict__, "reference", lambda **x: right(**x) * 1.02)
    assert main(["verify", "--op", "rms_norm"]) == 1
    assert "WRONG" in capsys.readouterr().out


def test_verify_says_where_nothing_runs(capsys: pytest.CaptureFixture[str]) -> None:
    device = "mps"
    assert main(["verify", "--device", device]) == 2
    assert "no mps kernels" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["nothing"], ["verify", "--op", "nothing"]])
def test_unknown_words_are_refused(words: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2


def test_it_is_a_module_too() -> None:
    command = [sys.executable, "-m", "sparsekern", "--version"]
    assert (
        subprocess.run(command, capture_output=True, text=True, check=True).stdout
        == f"sparsekern {sparsekern.__version__}\n"
    )

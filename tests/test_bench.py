"""The benchmarks measure what they say."""

import json
import time
from pathlib import Path

import pytest
import torch

import sparsekern
from sparsekern import _C
from sparsekern.cli import load, main

PARTS = "baselines", "case", "report", "roofline", "suites", "timing"
baselines, case_, report, roofline, suites, timing = (load(f"sparsekern._bench.{part}") for part in PARTS)
Case, Choice, SUITES = case_.Case, suites.Choice, suites.SUITES
Spread, measure = timing.Spread, timing.measure
BEGIN, END = report.BEGIN, report.END
QUICK = {"rounds": 3, "round_seconds": 0.005, "patience": 0.0}


def test_times_are_those_of_the_work() -> None:
    t = measure(
        {"one": lambda _: time.sleep(0.002), "three": lambda _: time.sleep(0.006)}, rounds=5, patience=0
    )
    assert t.of("one").median >= 0.002
    assert 2 < t.ratio("three", "one").median < 4


def test_contenders_walk_through_the_data() -> None:
    seen: list[int] = []
    measure({"it": seen.append}, rounds=4, round_seconds=0, patience=0)
    assert seen[-4:] == [0, 1, 2, 3]


def test_spread() -> None:
    assert Spread.of([1.0]) == Spread(1, 1, 1)
    assert Spread.of([float(i) for i in range(11)]) == Spread(5, 1, 9)


def test_waiting_has_an_end() -> None:
    _, took = timing.wait_until_idle(0.0)
    assert took < 1


def test_probes_run_on_every_isa() -> None:
    for isa in _C.isas():
        with sparsekern.config.using(isa=isa):
            _C.probe_read(torch.ones(1 << 20, dtype=torch.uint8))
            assert _C.probe_dot(10) == 2 * _C.probe_fma(10) > 0
    with pytest.raises(TypeError, match="one-dimensional"):
        _C.probe_read(torch.ones(4, 4))
    assert len(roofline.probes()) == 2


def test_peers_that_cannot_run_say_why() -> None:
    def no() -> int:
        raise baselines.Missing("not installed")

    assert baselines.available({"yes": lambda: 1, "no": no}) == ({"yes": 1}, {"no": "not installed"})


def test_a_wrong_peer_is_seen() -> None:
    x = torch.ones(100)
    contenders = {"ours": lambda _: x * 2, "right": lambda _: x + x, "wrong": lambda _: x * 3}
    case = Case("test", "doubling", contenders, flops=100, bytes={"ours": 800})
    outcome = case_.run(case, **QUICK)
    assert [row.differs for row in outcome.rows] == [0.0, 0.0, 0.5]
    rows = case_.as_json(outcome, case_.circumstances("test", {}))
    assert rows[0]["of_read"] > 0
    assert rows[1]["of_read"] is None
    assert all(row["commit"] and row["threads"] and row["versions"]["torch"] for row in rows)


def test_every_op_has_a_case() -> None:
    cases = {case.name.split()[0] for case in SUITES["ops"](Choice(("rms_norm", "swiglu")))}
    assert cases == {"rms_norm", "swiglu"}


def test_rows_go_to_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.jsonl"
    quick = ["--op", "rms_norm", "--rounds", "2", "--seconds", "0.001", "--patience", "0"]
    assert main(["bench", "ops", *quick, "--json", str(file)]) == 0
    assert "sparsekern, out=" in capsys.readouterr().out
    rows = report.read(file)
    assert {"sparsekern", "torch"} <= {row["contender"] for row in rows}
    assert json.dumps(rows[0]["ratio"]) == '{"median": 1.0, "p10": 1.0, "p90": 1.0}'
    assert main(["bench", "--compare", str(file), str(file)]) == 0
    assert capsys.readouterr().out.startswith("  1.00 x")
    assert not any(line.startswith("*") for line in report.changes(rows, rows))
    table = report.fill(f"a\n{BEGIN}old\n{END}b\n", tmp_path)
    assert table.startswith(f"a\n{BEGIN}")
    assert table.endswith(f"{END}b\n")
    assert "old" not in table
    assert "| rms_norm M=1 D=7168 |" in table
    assert report.fill(table, tmp_path) == table


def test_unknown_suites_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "nothing"]) == 2
    assert "choose from ops, moe" in capsys.readouterr().err


@pytest.mark.bench
def test_torch_and_sparsekern_share_their_threads() -> None:
    """A matmul of torch and an op of ours, 1000 times in turn, take what they take alone: DESIGN law 8."""
    (case,) = SUITES["alternation"](Choice())
    outcome = case_.run(case, rounds=10, round_seconds=0, patience=60.0)
    (share,) = outcome.derived.values()
    assert share.median < 1.05

"""The benchmarks measure what they say."""

import itertools
import json
import re
import time
from pathlib import Path

import pytest
import torch

import sparsekern
from sparsekern import _C
from sparsekern.catalogue import OPS
from sparsekern.cli import load, main

PARTS = "baselines", "case", "check", "models", "opcase", "report", "roofline", "suites", "timing"
baselines, case_, check, models, opcase, report, roofline, suites, timing = (
    load(f"sparsekern._bench.{part}") for part in PARTS
)
bench_command = load("sparsekern._bench.command")
Case, Work, Choice, SUITES = case_.Case, case_.Work, suites.Choice, suites.SUITES
Spread, measure = timing.Spread, timing.measure
QUICK = {"rounds": 3, "round_seconds": 0.005, "patience": 0.0}
SHORT = ["--rounds", "2", "--seconds", "0.001", "--patience", "0"]


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
            assert _C.probe_int8(10) == 2 * _C.probe_dot(10) == 4 * _C.probe_fma(10) > 0
    with pytest.raises(TypeError, match="one-dimensional"):
        _C.probe_read(torch.ones(4, 4))
    assert len(roofline.probes()) == 4


# --- what is said of results --------------------------------------------------------------------------------


def doubling(**contenders: object) -> object:
    x = torch.arange(100.0)
    truth = check.Truth((2 * x,), None, -1, 0.0)
    first = {"sparsekern": lambda _: x * 2}
    return Case(
        "test", "doubling", lambda: Work({**first, **contenders}, {"sparsekern": 800}, truth=truth), flops=100
    )


def test_wrong_results_are_seen() -> None:
    x = torch.arange(100.0)
    outcome = case_.run(
        doubling(right=lambda _: x + x, wrong=lambda _: x * 3, other=lambda _: x[:3]), **QUICK
    )
    assert [row.verdict for row in outcome.rows] == ["right", "right", "wrong", "unchecked"]
    assert [row.check.error for row in outcome.rows] == [0.0, 0.0, 0.5, None]
    assert outcome.wrong == []
    rows = case_.as_json(outcome, {"commit": "abc"})
    assert rows[0]["of_read"] > 0
    assert rows[1]["of_read"] is None
    assert rows[2]["remark"] == "off by 5.0e-01 of the reference"


def test_ours_must_be_right_to_the_last_bit_where_its_record_says_so() -> None:
    x = torch.arange(100.0)
    outcome = case_.run(doubling(**{"sparsekern, off": lambda _: torch.nextafter(x * 2, x * 3)}), **QUICK)
    assert outcome.wrong == ["sparsekern, off"]


def test_peers_that_cannot_run_say_why() -> None:
    def breaks(_: int) -> None:
        raise RuntimeError("no kernel for this\nand a long story")

    outcome = case_.run(doubling(peer=breaks), **QUICK)
    assert outcome.work.missing == {"peer": "it failed: no kernel for this"}
    assert [row.contender for row in outcome.rows] == ["sparsekern"]


def test_what_takes_forever_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(case_, "HOPELESS", 0.01)
    outcome = case_.run(doubling(peer=lambda _: time.sleep(0.05)), **QUICK)
    assert "too slow" in outcome.work.missing["peer"]


def test_selections_of_peers_may_have_any_order() -> None:
    want = torch.tensor([[1, 5, 9], [2, 4, 6]])
    assert check.distance(want.flip(-1), want) == 0
    assert check.distance(torch.tensor([[1, 5, 8], [2, 4, 6]]), want) == pytest.approx(1 / 6)
    assert check.distance(torch.tensor([1.0, torch.nan]), torch.ones(2)) == torch.inf


@pytest.mark.parametrize("name", ["fused_moe", "rms_norm", "quantize_fp8"])
def test_some_rows_are_checked_like_all(name: str) -> None:
    op = OPS[name]
    dims = op.test_dims[0] | ({"T": 9} if "T" in op.test_dims[0] else {"M": 9})
    x = op.inputs(dims, torch.Generator().manual_seed(0))
    some = check.truth(op, x, dims)
    assert len(some.rows) == check.ROWS
    good = op.fn(**x)
    assert some.judge(good, True).complaint == ""
    first, *rest = good if isinstance(good, tuple) else (good,)
    spoiled = first.clone()
    spoiled.view(torch.uint8)[some.rows[1]] ^= 0x40
    assert some.judge((spoiled, *rest), True).complaint


# --- cases --------------------------------------------------------------------------------------------------


def test_every_op_has_a_case() -> None:
    assert {case.about["op"] for case in SUITES["ops"](Choice())} == set(OPS)
    assert {case.about["op"] for case in SUITES["record"](Choice())} == set(OPS)


def test_every_op_has_a_peer() -> None:
    alone = {name for name, op in OPS.items() if not baselines.peers(op)}
    assert alone <= {"pack_weights", "unpack_weights"}  # our own layout


PEERS = {
    "quantize_fp4": {"M": 33, "K": 256, "group_size": 32},
    "router_gather": {"T": 20, "H": 256, "E": 16, "k": 4, "groups": 4, "kept": 2, "router": 0},
    "grouped_gemm_masked": {"E": 3, "Mmax": 9, "N": 64, "K": 128, "a": 1, "b": 2},
    "indexer_logits_paged": {"B": 3, "n": 2, "N": 150, "page": 64, "H": 8, "D": 64, "kind": 3},
    "indexer_topk_paged": {"B": 3, "n": 2, "N": 150, "page": 64, "H": 8, "D": 64, "kind": 2, "k": 40},
}


@pytest.mark.parametrize("name", PEERS)
def test_peers_do_the_same(name: str) -> None:
    outcome = case_.run(opcase.op_case("t", name, OPS[name], PEERS[name], cache="warm"), **QUICK)
    theirs = [r for r in outcome.rows if r.contender.startswith("torch")]
    assert theirs, outcome.work.missing
    assert all(r.check.error <= check.PEER_ERROR for r in theirs), theirs


def test_families_stand_for_their_models() -> None:
    assert models.called(["gpt-oss", "gpt-oss-20b", "V4.1"]) == ("gpt-oss-20b", "gpt-oss-120b", "V4.1")
    assert main(["bench", "--model", "Qwen3-MoE", "--op", "gemm", "--list"]) == 0
    with pytest.raises(ValueError, match="no model is called 'V9', choose from"):
        models.called(["V9"])


def test_models_have_shapes() -> None:
    assert models.experts_that_fit(models.MODELS["V3.2"], 2e9) == 16
    assert models.experts_that_fit(models.MODELS["Qwen3-30B"], 1e12) == 128
    assert models.MODELS["V3.2"].projections()["q_b"] == (128 * 192, 1536)
    for model in models.MODELS:
        cases = list(SUITES["ops"](Choice(models=(model,), tokens=(4,))))
        ops = {case.about["op"] for case in cases}
        assert {"gemm", "fused_moe", "rms_norm", "route_topk"} <= ops
        assert ("indexer_topk" in ops) == ("sparse_mla_prefill" in ops) == model.startswith("V")
        assert ("mhc_pre" in ops) == model.startswith("V4")
        assert "kv_write" in ops
        assert all(f" {model} " in f"{case.name} " for case in cases)


def test_the_sizes_of_models_are_sizes_of_ops() -> None:
    """Small ones of every rule run: no dimension is misspelt."""
    sizes = {"hidden": 64, "inter": 32, "experts": 8, "top_k": 2, "heads": 4, "head_dim": 64, "kv_dim": 512}
    parts = {"shared": 1, "q_lora": 32, "scoring": "sqrtsoftplus", "index": (2, 16, 8), "streams": 4}
    latent = models.Model(**sizes, **parts, format="fp4", cache="mla584")
    plain = models.Model(**{**sizes, "kv_dim": 2 * 2 * 64})
    for op, model in itertools.product(OPS.values(), (latent, plain)):
        for _, dims in models.shapes(op, model, models.At(tokens=3, context=40)):
            known = {key for sizes in (*op.bench_dims, *op.test_dims) for key in sizes}
            assert set(dims) <= known, op.name
            if op.bytes(dims) < 1e8:
                op.fn(**opcase.inputs(op, dims))


def test_a_shape_of_ones_own() -> None:
    choice = Choice(("gemm",), shape={"M": 3, "N": 5}, formats=("fp8", "bf16"), cache=("cold", "warm"))
    cases = list(SUITES["ops"](choice))
    assert [case.name.split()[-2:] for case in cases] == [
        ["fp8", "cold"],
        ["fp8", "warm"],
        ["bf16", "cold"],
        ["bf16", "warm"],
    ]
    assert all((case.dims["M"], case.dims["N"]) == (3, 5) for case in cases)
    assert [case.dims["b"] for case in cases] == [2, 2, 1, 1]


def test_cold_weights_are_larger_than_the_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opcase, "cache_bytes", lambda: 4 << 10)
    x = {"b": torch.zeros(1 << 10, dtype=torch.uint8), "a": torch.zeros(3)}
    copies = list(opcase.copies(x, ["b"]))
    assert len({c["b"].data_ptr() for c in copies}) == len(copies) == 12
    assert len({c["a"].data_ptr() for c in copies}) == 1


@pytest.mark.parametrize("routing", ["balanced", "skewed", "adversarial"])
def test_routed_cases_run(routing: str) -> None:
    dims = {"T": 6, "H": 64, "I": 32, "E": 8, "top_k": 2, "w": 2}
    outcome = case_.run(
        opcase.op_case("t", "moe", OPS["fused_moe"], dims, routing=routing, cache="warm"), **QUICK
    )
    assert {row.verdict for row in outcome.rows} == {"right"}
    assert {"sparsekern", "torch", "torch loop f32"} <= {row.contender for row in outcome.rows}


# --- what comes out -----------------------------------------------------------------------------------------


def test_rows_go_to_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.jsonl"
    assert main(["bench", "ops", "--op", "rms_norm", *SHORT, "--json", str(file)]) == 0
    assert "sparsekern, out=" in capsys.readouterr().out
    rows = report.read(file)
    assert {"sparsekern", "torch"} <= {row["contender"] for row in rows}
    assert {row["verdict"] for row in rows} == {"right"}
    assert json.dumps(rows[0]["ratio"]) == '{"median": 1.0, "p10": 1.0, "p90": 1.0}'
    assert all(
        row["commit"] and row["threads"] and row["versions"]["torch"] and row["compiler"] for row in rows
    )


def test_no_round_begins_after_the_limit() -> None:
    slow = {"it": lambda _: time.sleep(0.003)}
    t = measure(slow, rounds=9, round_seconds=0, patience=0, limit=0.0)
    assert len(t.seconds["it"]) == timing.LEAST
    assert len(measure(slow, rounds=5, round_seconds=0, patience=0).seconds["it"]) == 5


def test_what_is_slow_is_called_once_before_it_is_timed() -> None:
    seen: list[int] = []
    measure({"it": lambda i: (seen.append(i), time.sleep(0.02))}, rounds=1, round_seconds=0.001, patience=0)
    assert len(seen) == 2


def test_a_run_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, again = tmp_path / "rows.jsonl", ["--json", str(tmp_path / "rows.jsonl"), "--resume"]
    for ops, cases in ((["rms_norm"], 2), (["rms_norm", "swiglu"], 4), (["swiglu"], 4)):
        assert main(["bench", "record", "--op", *ops, *SHORT, *again]) == 0
        assert len({row["case"] for row in report.read(file)}) == cases
    assert main(["bench", "record", "--op", "swiglu", *SHORT, "--resume"]) == 2
    assert "needs the --json FILE" in capsys.readouterr().err
    file.write_text(file.read_text().replace('"threads": ', '"threads": 1'))
    assert main(["bench", "record", "--op", "swiglu", *SHORT, *again]) == 2
    assert "has rows of threads 1" in capsys.readouterr().err


def test_the_suite_of_record_takes_ten_minutes_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float | None] = []
    monkeypatch.setattr(bench_command, "_measure", lambda args: seen.append(args.budget) or 0)
    for call in (["record"], ["record", "--budget", "30"], ["moe"]):
        assert main(["bench", *call]) == 0
    assert seen == [600.0, 30.0, None]


def test_without_a_word_the_suite_of_record_runs(capsys: pytest.CaptureFixture[str]) -> None:
    listed = []
    for call in ([], ["record"], ["--op", "gemm"], ["ops", "--op", "gemm"]):
        assert main(["bench", *call, "--list"]) == 0
        listed.append(capsys.readouterr().out)
    assert listed[0] == listed[1]
    assert listed[2] == listed[3]
    assert listed[0].startswith("record: ")


def test_wrong_calls_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "nothing"]) == 2
    assert "choose from ops, moe" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["bench", "--shape", "M:4"])
    assert "'M:4' is not NAME=NUMBER" in capsys.readouterr().err


def test_a_budget_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    start = time.monotonic()
    assert main(["bench", "--op", "rms_norm", "swiglu", "--budget", "1", "--patience", "0"]) == 0
    assert time.monotonic() - start < 20
    out = capsys.readouterr().out
    assert "\nswiglu M=1 C=4096\n" in out
    assert re.search(r"\n\d cases left out: 1 seconds are over", out)


def test_cases_are_listed_without_making_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--model", "V4-Pro", "--op", "fused_moe", "--tokens", "8", "--list"]) == 0
    assert capsys.readouterr().out == "ops: fused_moe V4-Pro T=8 (8 of 384 experts)\n"


def test_traces_for_flashinfer_bench(tmp_path: Path) -> None:
    quick = ["--op", "rms_norm", "gemm", "--shape", "M=3", "N=64", "K=256", "--format", "flashinfer-trace"]
    assert main(["bench", "ops", *quick, *SHORT, "--out", str(tmp_path)]) == 0
    definitions = [json.loads(p.read_text()) for p in sorted(tmp_path.rglob("definitions/*/*.json"))]
    assert [d["op_type"] for d in definitions] == ["gemm", "rms_norm"]
    gemm = definitions[0]
    assert gemm["axes"]["M"] == {"type": "var"}
    assert gemm["axes"]["N"] == {"type": "const", "value": 64}
    assert gemm["inputs"]["b"] == {
        "shape": ["N", "K"],
        "dtype": "float8_e4m3fn",
        "description": "weights, or the panels of packed ones",
    }
    assert {
        name for spec in (*gemm["inputs"].values(), *gemm["outputs"].values()) for name in spec["shape"]
    } == set(gemm["axes"])
    scope: dict[str, object] = {}
    exec(gemm["reference"], scope)
    x = OPS["gemm"].inputs({"M": 3, "N": 64, "K": 256, "a": 1, "b": 2}, torch.Generator().manual_seed(0))
    tensors = {name: x[name] for name in gemm["inputs"]}
    assert torch.equal(scope["run"](**tensors), sparsekern.reference.gemm(**x))  # type: ignore[operator]
    traces = [
        json.loads(line) for p in tmp_path.rglob("traces/gemm/*.jsonl") for line in p.read_text().splitlines()
    ]
    solutions = {json.loads(p.read_text())["name"] for p in tmp_path.rglob("solutions/*/gemm/*/*.json")}
    assert {t["solution"] for t in traces} == solutions
    for trace in traces:
        passed = trace["evaluation"]["status"] == "PASSED"
        assert ("performance" in trace["evaluation"]) == passed
        assert trace["workload"]["axes"] == {"M": 3}


@pytest.mark.bench
def test_torch_and_sparsekern_share_their_threads() -> None:
    """A matmul of torch and an op of ours, 1000 times in turn, take what they take alone: DESIGN law 8."""
    (case,) = SUITES["alternation"](Choice())
    outcome = case_.run(case, rounds=10, round_seconds=0, patience=60.0)
    (share,) = outcome.derived.values()
    assert share.median < 1.05

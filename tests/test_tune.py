"""The tuner: what a candidate may do to it, what it records, and when it refuses to."""

import dataclasses
import errno
import itertools
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import sparsekern
from sparsekern import cuda_model, model, plan, records
from sparsekern.cli import load, main
from sparsekern.model import DEFAULT, Machine, Problem
from sparsekern.records import Record

command, diff, exchange, search, task, tune, verify, worth = (
    load(f"sparsekern._autotune.{part}")
    for part in ("command", "diff", "exchange", "search", "task", "tune", "verify", "worth")
)
timing = load("sparsekern._bench.timing")
TROUBLE = Path(__file__).with_name("trouble.py")
EFFORT = tune.Effort(rounds=7, round_seconds=0.004, patience=0.0, try_seconds=5.0, force=True)
TINY = ["--op", "gemm", "--shape", "M=2", "N=64", "K=64"]
QUICK = ["--candidates", "2", "--rounds", "3", "--seconds", "0.0005", "--patience", "0", "--force"]


@pytest.fixture(autouse=True)
def own_records(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPARSEKERN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(records, "SHIPPED", tmp_path / "shipped")
    monkeypatch.setattr(search, "WORTH", 100.0)
    records.forget()


def troubled(kind: str, **effort: Any) -> Any:
    fake = task.Task("gemm", {}, factory=f"{TROUBLE}:{kind}")
    return tune.tune_safely(fake, dataclasses.replace(EFFORT, **effort), None, lambda _, __: None)


def test_a_crash_a_hang_and_a_lie_are_results() -> None:
    outcome = troubled("trouble")
    became = {t.config["prefetch"]: t for t in outcome.tried if not t.config["decode_rows"]}
    assert became[0].status == "crashed"
    assert "SIGSEGV" in became[0].detail
    assert (became[1024].status, became[1024].detail) == ("hung", "no answer within 5 s")
    lies = [t for t in outcome.tried if t.config["decode_rows"]]
    assert {(t.status, t.detail) for t in lies} == {("wrong", "other bits than the default's result")}
    assert outcome.status == "won"
    r = outcome.record
    assert r.config == {**DEFAULT.config, "prefetch": 8192}
    assert (r.source, r.gain, r.spread) == ("measured", 2.0, 0.0)
    status = {t["config"]["prefetch"]: t["status"] for t in r.tried if not t["config"]["decode_rows"]}
    assert (status[0], status[1024], status[8192]) == ("crashed", "hung", "timed")
    assert records.parse(r.line()) == r


def test_a_crash_while_it_is_timed() -> None:
    outcome = troubled("late")
    (crashed,) = (t for t in outcome.tried if t.status == "crashed")
    assert crashed.config == {**DEFAULT.config, "prefetch": 8192}
    assert "exit code 7, in round" in crashed.detail
    assert outcome.status == "won"
    assert outcome.record.config == {**DEFAULT.config, "prefetch": 8192, "decode_rows": 1024}


def test_what_is_wrong_or_broken_is_not_recorded() -> None:
    outcome = troubled("wrong")
    assert (outcome.status, outcome.record) == ("failed", None)
    assert outcome.reason == "the default's result is wrong: 1 of 4 differ"
    outcome = troubled("broken")
    assert (outcome.status, outcome.record) == ("failed", None)
    assert "RuntimeError: no such kernel" in outcome.reason


def test_noise_is_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = troubled("noisy", force=False, patience=0.0)
    if outcome.reason.startswith("others use"):  # this machine is busy: take that as idle
        monkeypatch.setattr(timing, "wait_until_idle", lambda patience: (0.0, 0.0))
        outcome = troubled("noisy", force=False)
    assert (outcome.status, outcome.record) == ("refused", None)
    assert "the same call beside itself differs by" in outcome.reason


def test_a_busy_machine_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(timing, "wait_until_idle", lambda patience: (0.9, 0.0))
    assert main(["tune", "run", *TINY, "--out", str(tmp_path / "out")]) == 3
    assert "refused: others use 90 % of the machine" in capsys.readouterr().out
    assert records.read_folder(tmp_path / "out") == []


def test_rounds_that_others_disturbed_are_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = itertools.cycle([0.5, 0.0, 0.5])

    def round_(child: object, lot: list[Any], r: int, effort: Any) -> Any:
        others = next(busy)
        return tune.Round([9.0 if others else 1.0] * len(lot), others, others == 0)

    monkeypatch.setattr(tune, "_round", round_)
    monkeypatch.setattr(timing, "wait_until_idle", lambda patience: (0.0, 0.0))
    effort = dataclasses.replace(EFFORT, patience=60.0)
    lot = [tune.Tried({**DEFAULT.config, "prefetch": value}) for value in (2048, 4096)]
    rounds = tune._time_all(None, lot, effort, lambda *_: None)
    assert [r.counts for r in rounds].count(True) == effort.least_rounds == len(lot[1].ratios)
    assert set(lot[0].seconds) == {1.0}
    rounds = tune._time_all(None, lot, EFFORT, lambda *_: None)  # which has no patience
    assert not rounds[-1].counts


def test_what_was_refused_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def outcomes() -> Iterator[Any]:
        yield tune.Outcome(task.Task("gemm", {}), "refused", "others use it")
        yield tune.Outcome(task.Task("gemm", {}), "kept", record=entry(1))

    found = outcomes()
    monkeypatch.setattr(command, "tune_safely", lambda *_: next(found))
    assert main(["tune", "run", *TINY, "--budget", "60", "--out", str(tmp_path)]) == 0
    assert len(records.read_folder(tmp_path)) == 1
    assert "--resume" not in capsys.readouterr().out
    found = outcomes()
    assert main(["tune", "run", *TINY, "--out", str(tmp_path)]) == 3
    assert "--resume takes up what is missing" in capsys.readouterr().out


# --- deciding -----------------------------------------------------------------------------------------------


def tried(*medians: float, half: float = 0.001, **more: Any) -> list[Any]:
    """The incumbent, and candidates with those ratios to it."""
    values = [v for v in model.KNOBS["prefetch"][1:]] + [8192] * 9
    found = [tune.Tried(dict(DEFAULT.config), ratios=[1.0] * 9, seconds=[1.0] * 9)]
    for value, m in zip(values, medians, strict=False):
        ratios = [m - half, m, m + half] * 3
        found.append(tune.Tried({**DEFAULT.config, "prefetch": value}, ratios=ratios, seconds=ratios, **more))
    return found


def test_a_win_must_be_larger_than_the_margin() -> None:
    lot = tried(0.98, 1.2)
    assert tune._decide(lot, DEFAULT.config) is lot[0]
    lot = tried(0.98, 0.9)
    assert tune._decide(lot, DEFAULT.config) is lot[2]
    lot = tried(0.96, half=0.2)
    assert tune._decide(lot, DEFAULT.config) is lot[0]  # it may be luck


def test_of_equals_the_simplest_wins() -> None:
    lot = tried(0.80, 0.81)
    lot[1].config["item_rows"] = 64
    assert tune._decide(lot, DEFAULT.config) is lot[2]
    lot = tried(0.80, 0.85)
    lot[1].config["item_rows"] = 64
    assert tune._decide(lot, DEFAULT.config) is lot[1]


def test_an_incumbent_stays_if_it_is_nearly_the_best() -> None:
    lot = tried(0.80, 0.82)
    assert tune._decide(lot, lot[2].config) is lot[2]
    lot = tried(0.80, 0.84)
    assert tune._decide(lot, lot[2].config) is lot[1]


def test_it_stops_when_the_winner_is_clear() -> None:
    assert tune._clear(tried(1.0, 1.3))
    assert tune._clear(tried(0.7, 0.9))
    assert not tune._clear(tried(0.97, half=0.05))
    lot = tried(0.7, 0.9)
    tune._clear(lot)
    assert [t.status for t in lot] == ["timed", "timed", "worse"]


def test_what_is_tried_is_ranked_and_spread_out(monkeypatch: pytest.MonkeyPatch) -> None:
    p = Problem("gemm", "bf16", "e4m3", True, 128, 2048, 7168, 1, 512, 2, "avx2")
    monkeypatch.setattr(search, "WORTH", 1.25)
    always = {**DEFAULT.config, "prefetch": 0}
    found = search.search(p, [always], 6, Machine())
    assert found.configs[:2] == [always, DEFAULT.config]
    assert len(found.configs) <= 8
    assert all(isinstance(why, str) and why for why in found.dropped.values())
    assert model.choose(p, Machine()).config in found.configs
    assert len({c["item_rows"] for c in found.configs}) > 2
    assert found == search.search(p, [always], 6, Machine())


# --- the command --------------------------------------------------------------------------------------------


def test_tune_and_look_after_the_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a"
    assert main(["tune", "run", *TINY, *QUICK, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "gemm M=2 N=64 K=64 a=1 b=2: " in said
    assert "1 sizes: " in said
    assert "x as the model's choice" in said
    (r,) = records.read_folder(out)
    assert (r.op, r.device, r.key["rows"], r.key["n"]) == ("gemm", plan.cpu().name, 2, 64)
    assert r.env["threads"] and r.env["versions"]["torch"] and r.created
    assert r.tried[0]["status"] == "timed"

    assert main(["tune", "import", str(out / r.device / "gemm.jsonl")]) == 0
    assert records.find("gemm", r.device, r.key) == r
    assert main(["tune", "list"]) == 0
    assert "rows=2 n=64 k=64 bf16 e4m3" in capsys.readouterr().out
    assert main(["tune", "show", "--op", "gemm"]) == 0
    assert "chosen: item_rows 256" in capsys.readouterr().out
    assert main(["tune", "verify"]) == 0
    assert "1 records, 1 of them run here: 0 wrong, 0 files" in capsys.readouterr().out
    merged = tmp_path / "all.jsonl"
    assert main(["tune", "export", str(merged)]) == 0
    assert main(["tune", "diff", str(out), str(merged), "--json"]) == 0
    counts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert counts == {"entries": 1, "agree": 1, "within_noise": 0, "differ": 0, "only_a": 0, "only_b": 0}

    merged.write_text(merged.read_text() + "{broken\n")
    assert main(["tune", "verify", "--from", str(merged)]) == 1
    assert "line 2: not JSON" in capsys.readouterr().out
    stale = dataclasses.replace(r, version=99)
    records.write(records.user_folder(), [stale])
    assert main(["tune", "list"]) == 0
    assert "(stale)" in capsys.readouterr().out


def test_wrong_calls_say_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    calls = {
        ("run", *TINY, "--out", str(tmp_path / "file" / "out")): "Not a directory",
        ("run", "--model", "V9"): "no model is called 'V9', choose from V3.2",
        ("run", "--weights", "fp3"): "no format is called 'fp3'",
        ("run", "--shape", "M:3"): "'M:3' is not NAME=NUMBER",
        ("list", "--from", str(tmp_path / "nothing")): "does not exist",
        ("diff", str(tmp_path), str(tmp_path / "nothing")): "does not exist",
        ("import", str(tmp_path / "nothing")): "is no file",
        ("import", str(tmp_path / "file")): "neither a .jsonl of records nor named as vLLM names",
    }
    for call, complaint in calls.items():
        assert main(["tune", *call]) == 2
        assert complaint in capsys.readouterr().err
    assert main(["tune", "list"]) == 0
    assert "the model chooses" in capsys.readouterr().out


def test_a_folder_that_can_only_be_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is said before anything is measured; calls need no folder."""

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    for name in ("write_text", "mkdir", "touch"):  # whoever is root may write to any other folder
        monkeypatch.setattr(Path, name, refuse)
    monkeypatch.setattr(command, "tune_safely", lambda *_: pytest.fail("it was measured"))
    assert main(["tune", "run", *TINY, "--out", str(tmp_path)]) == 2
    assert "Read-only file system" in capsys.readouterr().err
    plan.reload()
    a, b = torch.ones(2, 64).bfloat16(), torch.ones(64, 64).bfloat16()
    assert torch.equal(sparsekern.gemm(a, b), torch.full((2, 64), 64.0).bfloat16())
    assert list(tmp_path.rglob("*")) == []


def test_a_budget_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "run", "--op", "gemm", "--budget", "0", "--out", str(tmp_path)]) == 0
    assert "4 sizes left out: 0 seconds are over" in capsys.readouterr().out


def test_what_would_be_tried(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "run", *TINY, "--list"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("gemm M=2 N=64 K=64 a=1 b=2: ")
    assert "a group has 2 rows" in out


def test_two_tuners_at_once(tmp_path: Path) -> None:
    start = [
        sys.executable,
        "-m",
        "sparsekern",
        "tune",
        "run",
        *QUICK,
        "--out",
        str(tmp_path),
        "--op",
        "gemm",
    ]
    tuners = [
        subprocess.Popen([*start, "--shape", f"M={m}", "N=64", "K=64"], stdout=subprocess.PIPE)
        for m in (1, 2)
    ]
    said = [t.communicate(timeout=300)[0] for t in tuners]
    assert [t.returncode for t in tuners] == [0, 0], said
    assert sorted(r.key["rows"] for r in records.read_folder(tmp_path)) == [1, 2]


def test_a_run_is_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for m, records_now in (("2", 1), ("2", 1), ("3", 2)):
        size = ["--op", "gemm", "--shape", f"M={m}", "N=64", "K=64"]
        assert main(["tune", "run", *size, *QUICK, "--out", str(tmp_path), "--resume"]) == 0
        assert len(records.read_folder(tmp_path)) == records_now
    assert capsys.readouterr().out.count("nothing to do") == 1


# --- GPUs that nobody has measured --------------------------------------------------------------------------

SHIPPED = [
    "--op", "gemm", "grouped_gemm", "grouped_gemm_masked",
    "--model", "V3.2", "V4-Flash", "V4-Pro", "V4.1", "--tokens", "1", "16", "128", "2048",
]  # fmt: skip


@pytest.mark.parametrize("device", cuda_model.GPUS)
def test_shipped_records_of_gpus_are_what_the_model_says(
    device: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", "run", "--device", device, *SHIPPED, "--out", str(tmp_path)]) == 0
    assert "marked modelled" in capsys.readouterr().out
    made = {(r.op, r.at): r for r in records.read_folder(tmp_path)}
    folder = Path(records.__file__).with_name("tuning") / device
    assert made == {(r.op, r.at): r for path in folder.iterdir() for r in records.read(path)}
    assert {r.config["tile_m"] for r in made.values()} == {16, 64}


def test_a_gpu_that_nobody_knows(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "run", *TINY, "--device", "sm_70"]) == 2
    assert "neither here nor modelled: sm_80, sm_86" in capsys.readouterr().err


def test_the_model_of_tiles_counts_waves_bytes_and_products() -> None:
    p = Problem("gemm", "bf16", "bf16", False, 0, 4096, 7168, 1, 4096, 0, "cuda")
    gpu = cuda_model.GPUS["sm_80"]
    small, large = cuda_model.INSTANCES

    def seconds(tile: Any = large, on: Any = gpu, **more: Any) -> float:
        return float(cuda_model.predict(dataclasses.replace(p, **more), tile, on))

    assert seconds(rows=0) == cuda_model.LAUNCH < seconds(rows=1)
    assert seconds() > 2 * p.rows * p.n * p.k / gpu.flops  # no better than its tensor cores
    assert seconds(rows=8192) / seconds() == pytest.approx(2, rel=0.15)
    wide = {"rows": 1, "n": 1 << 17}
    assert seconds(**wide) > (1 << 17) * p.k * 2 / gpu.memory  # nor than its memory
    assert seconds(**wide, weights="e4m3") < 0.8 * seconds(**wide)  # half the bytes
    slow = dataclasses.replace(gpu, clock=gpu.clock / 16, memory=math.inf)
    assert seconds(on=slow, weights="e4m3") > seconds(on=slow) / 2  # but they are decoded
    assert cuda_model.choose(p, gpu).config == large
    assert cuda_model.choose(dataclasses.replace(p, rows=8), gpu).config == small
    wave = 128 * 2 * gpu.sms  # columns that all SMs take at once
    steps = [seconds(rows=16, n=n) for n in (wave // 2 + 128, wave, wave + 128)]
    assert steps[2] - steps[1] > 3 * (steps[1] - steps[0])  # one block more is a wave more


# --- comparing and exchanging -------------------------------------------------------------------------------


def entry(
    rows: int, prefetch: int = 2048, seen: dict[int, float] | None = None, spread: float = 0.01
) -> Record:
    """A record whose tune saw other values of prefetch take that many times as long as its choice."""
    tried = tuple(
        {"config": {**DEFAULT.config, "prefetch": value}, "median": m, "p10": m - 0.01, "p90": m + 0.01}
        for value, m in (seen or {}).items()
    )
    config = {**DEFAULT.config, "prefetch": prefetch}
    return Record("gemm", "amd-zen3", {"rows": rows}, config, "measured", 1, 1.0, spread, tried)


def test_two_tunes_are_compared() -> None:
    a = [
        entry(1), entry(2, 4096, {2048: 1.02}), entry(3, 4096, {2048: 1.3}), entry(4), entry(5, 4096),
        entry(7, 4096, {2048: 1.08}, spread=0.1),
    ]  # fmt: skip
    b = [entry(1), entry(2, 2048, {4096: 1.01}), entry(3, 2048, {4096: 1.01}), entry(5), entry(6),
         entry(7, 2048, {4096: 1.02})]  # fmt: skip
    related = {r.key["rows"]: relation for relation, r in diff.compare(a, b)}
    assert related == {
        1: "agree", 2: "within_noise", 3: "differ", 4: "only_a", 5: "differ", 6: "only_b", 7: "within_noise",
    }  # fmt: skip
    counts = diff.counts(diff.compare(a, b))
    assert counts["entries"] == 7 == sum(counts.values()) - 7


def test_what_a_tune_was_worth(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(model, "choose", lambda p: model.Choice({**DEFAULT.config, "prefetch": 1024}, ""))
    found = [
        dataclasses.replace(
            entry(rows, 8192, {2048: default, 1024: modelled, 8192: 1.0}),
            device=plan.cpu().name,
            key=Problem("gemm", "bf16", "e4m3", True, 128, 2048, 7168, 1, rows, 2, "avx2").key,
        )
        for rows, default, modelled in ((1, 1.0, 1.05), (2, 1.5, 1.25))
    ]
    summary = worth.summary(found)
    assert summary == {
        "entries": 2,
        "over_default": pytest.approx(math.sqrt(1.0 * 1.5), abs=1e-4),
        "slowest_over_default": 1.0,
        "over_model": pytest.approx(math.sqrt(1.05 * 1.25), abs=1e-4),
        "model_within_10_percent": 1,
        "model_worst": 1.25,
    }
    records.write(tmp_path, found)
    assert main(["tune", "diff", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == summary
    assert main(["tune", "diff", str(tmp_path)]) == 0
    assert "within 10 % of the fastest in 1 of them, 50 % (worst 1.25 x)" in capsys.readouterr().out
    assert main(["tune", "diff", str(tmp_path), str(tmp_path)]) == 0
    assert "choices of b by the measurements of the other: 1.225 x" in capsys.readouterr().out
    assert worth.summary([dataclasses.replace(found[0], device="amd-zen9")]) == {"entries": 0}


VLLM = "E=16,N=1024,device_name=NVIDIA_H100_80GB_HBM3,dtype=fp8_w8a8,block_shape=[128,128].json"
TILE = {"BLOCK_SIZE_M": 16, "BLOCK_SIZE_N": 128, "BLOCK_SIZE_K": 128, "GROUP_SIZE_M": 1}
TILE |= {"num_warps": 4, "num_stages": 3}


def test_vllm_configurations_come_and_go(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = {"1": TILE, "64": {**TILE, "BLOCK_SIZE_M": 64}}
    source, target = tmp_path / VLLM, tmp_path / "back"
    source.write_text(json.dumps({"triton_version": "3.5.0", **content}))
    assert main(["tune", "import", str(source)]) == 0
    found = records.read_folder(records.user_folder())
    assert {(r.device, r.op, r.source) for r in found} == {("sm_90", "fused_moe", "imported")}
    assert main(["tune", "export", "--vllm", str(target)]) == 0
    assert [p.name for p in target.iterdir()] == [VLLM]
    assert json.loads((target / VLLM).read_text()) == content
    assert main(["tune", "list", "--device", "sm_90"]) == 0
    assert "tile_m 64" in capsys.readouterr().out


@pytest.mark.parametrize(
    "content",
    [
        "[1]",
        "{broken",
        json.dumps({"1": "x"}),
        json.dumps({"1": {**TILE, "num_warps": 1 << 40}}),
        '{"1": {}}',
    ],
)
def test_odd_vllm_files_are_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / VLLM).write_text(content)
    assert main(["tune", "import", str(tmp_path / VLLM)]) in (1, 2)
    assert records.read_folder(records.user_folder()) == []


@pytest.mark.parametrize("op", model.TUNED)
def test_records_are_tried_on_calls_like_their_own(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    key = Problem(op, "bf16", "e4m3", True, 128, 64, 128, 1 if op == "gemm" else 2, 8, 1, "scalar").key
    r = Record(op, plan.cpu().name, key, {**DEFAULT.config, "item_rows": 32}, "measured", model.VERSION)
    assert verify.trial(r) == ""
    assert verify.trial(dataclasses.replace(r, device="amd-zen9")) is None
    assert verify.trial(dataclasses.replace(r, key={"rows": 1})) == "its key is not that of a call"
    digests = iter("ab")
    monkeypatch.setattr(verify, "digest", lambda _: next(digests))
    assert verify.trial(r) == "other bits than the default's"

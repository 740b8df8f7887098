"""`sparsekern bench tiered`: the cache does what its model says, and the table what it should."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from sparsekern.cli import load, main
from sparsekern.kv.policy import POLICIES

bench = load("sparsekern._bench.replay")
blocks_of, modelled, replay = bench.blocks_of, bench.modelled, bench.replay
conversations = load("sparsekern._bench.loads").conversations
COSTS = bench.Costs(20000.0, 25.0, 3.0, 20500000)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("sizes", [(300, 0, 0), (180, 75, 45), (180, 0, 90), (250, 50, 0), (210, 210, 840)])
def test_the_cache_does_what_its_model_says(sizes: tuple[int, int, int], policy: str) -> None:
    trace = blocks_of(conversations(200, seed=1))
    real, model = (f(trace, sizes, policy, COSTS) for f in (replay, modelled))
    assert real.hits == model.hits
    assert (real.to_host, real.to_disk) == (model.to_host, model.to_disk)
    assert real.seconds == pytest.approx(model.seconds)
    assert sum(real.hits) > 0 and real.blocks == sum(map(len, trace))


@pytest.mark.parametrize("size", [100, 400, 1000])
def test_tiers_know_as_much_as_a_device_of_their_size(size: int) -> None:
    trace = blocks_of(conversations(300, seed=2))
    flat = modelled(trace, (size, 0, 0), "lru", COSTS)
    parts = (size - size // 4 - size // 8, size // 4, size // 8)
    tiered = modelled([keys[: parts[0]] for keys in trace], parts, "lru", COSTS)
    if max(map(len, trace)) <= parts[0]:
        assert sum(tiered.hits) == sum(flat.hits)
    assert all(n > 0 for n in tiered.hits)


def test_costs() -> None:
    compute, host, disk = COSTS.block
    assert (compute, host, disk) == pytest.approx((0.0256, 0.00082, 20.5e6 / 3e9))
    assert COSTS.seconds(2, 1, 1, 0, 0) == pytest.approx(2 * compute + host + disk)
    assert COSTS.seconds(1, 0, 0, 1, 1) == pytest.approx(compute), "writes are hidden"
    assert COSTS.seconds(1, 0, 0, 1, 9) == pytest.approx(9 * disk), "as far as there is time"


def trace_file(path: Path) -> Path:
    rows = [
        {"timestamp": 1000 * r.arrival, "input_length": r.prompt, "output_length": 1, "hash_ids": r.blocks}
        for r in conversations(150, seed=3)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(trace_file(tmp_path / "trace.jsonl"))
    options = ["--sizes", "0.2,0.5", "--processes", "1", "--json"]
    assert main(["bench", "tiered", "--trace", file, *options]) == 0
    rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["rows"]
    assert [(r["policy"], r["size"]) for r in rows] == [
        (policy, size) for size in (0.2, 0.5) for policy in ("default", "s3fifo")
    ]
    for row in rows:
        parts = [row[f"{tier}_bytes"] for tier in ("device", "host", "disk")]
        assert sum(parts) == row["untiered_bytes"] and row["device_saving"] == pytest.approx(0.4, abs=0.01)
        hits = sum(row[f"{tier}_hit_rate"] for tier in ("device", "host", "disk"))
        assert row["hit_rate"] == pytest.approx(hits)
        if row["policy"] == "default":
            assert row["hit_rate"] >= row["untiered_hit_rate"] and row["time_ratio"] <= 1.03
        assert row["added"]["hit_rate"] >= row["hit_rate"]


def test_tables_and_the_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--requests", "100", "--sizes", "0.3", "--policy", "lru", "--processes", "2"]
    if importlib.util.find_spec("matplotlib"):
        options += ["--png", str(tmp_path / "plot.png")]
    assert main(["bench", "tiered", *options]) == 0
    out = capsys.readouterr().out
    assert "100 requests" in out and "40%" in out and "s of prefill" in out
    if "--png" in options:
        assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"


def test_speeds_of_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--requests", "30", "--sizes", "0.3", "--policy", "lru", "--processes", "1", "--json"]
    assert main(["bench", "tiered", *options, "--measure", "--block-bytes", "100000"]) == 0
    costs = json.loads(capsys.readouterr().out)["costs"]
    assert costs["host_gbs"] > 0 and costs["disk_gbs"] > 0 and costs["host_gbs"] != 25.0


@pytest.mark.parametrize(
    ("text", "options", "says"),
    [
        ('{"timestamp": 0}', [], "1 is no row of a Mooncake trace"),
        ('{"timestamp": 0, "input_length": 5, "output_length": 1}', [], "has no request with hash_ids"),
        (None, ["--tiers", "0.5,0.5"], "--tiers are three numbers"),
    ],
)
def test_wrong_calls(
    text: str | None, options: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        (tmp_path / "trace.jsonl").write_text(text)
        options = ["--trace", str(tmp_path / "trace.jsonl"), *options]
    assert main(["bench", "tiered", *options]) == 2
    assert says in capsys.readouterr().err


def test_a_trace_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "tiered", "--trace", "/no/such/trace"]) == 2
    assert "No such file" in capsys.readouterr().err

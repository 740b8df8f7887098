"""Files of tuning records: whatever is in them, nothing breaks; whoever writes them, nothing is lost."""

import json
import multiprocessing
import os
import warnings
from pathlib import Path
from typing import Any

import pytest

from sparsekern import cuda_model, model, plan, records
from sparsekern.device import Cpu, _name
from sparsekern.model import DEFAULT, KNOBS
from sparsekern.records import Record, RecordWarning, parse, read, write


def record(rows: int = 16, **more: Any) -> Record:
    key = {"op": "gemm", "n": 64, "k": 128, "rows": rows, "isa": "avx2"}
    fields = {
        "op": "gemm",
        "device": "amd-zen3",
        "key": key,
        "config": dict(DEFAULT.config),
        "source": "measured",
    }
    return Record(**{**fields, "version": model.VERSION, **more})


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "_warned", set())
    monkeypatch.setattr(records, "_cache", {})


def test_what_is_written_is_read(tmp_path: Path) -> None:
    tried = ({"config": dict(DEFAULT.config), "status": "crashed"},)
    one = record(gain=1.25, spread=0.03, tried=tried, env={"threads": 2}, created="2026-01-01T00:00:00+00:00")
    (path,) = write(tmp_path, [one])
    assert path == tmp_path / "amd-zen3" / "gemm.jsonl"
    assert read(path) == [one]
    write(tmp_path, [record(32), record(16, gain=1.5)])
    assert [(r.key["rows"], r.gain) for r in read(path)] == [(16, 1.5), (32, 1.0)]
    assert records.read_folder(tmp_path) == records.read_folder(path) == read(path)


def test_a_file_may_end_anywhere(tmp_path: Path) -> None:
    """Cut off at every byte: whole lines are kept, the torn one is left out, and nothing is raised."""
    lines = [record(rows).line().encode() for rows in (1, 2)]
    whole = b"".join(lines)
    path = tmp_path / "gemm.jsonl"
    for end in range(len(whole) + 1):
        path.write_bytes(whole[:end])
        records._warned.clear()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            found = [r.key["rows"] for r in read(path)]
        complete = [end >= len(lines[0]) - 1, end >= len(whole) - 1]
        assert found == [rows for rows, there in zip((1, 2), complete, strict=True) if there]
        torn = end not in (0, len(lines[0]) - 1, len(lines[0]), len(whole) - 1, len(whole))
        assert len(said) == torn, end


def changed(**more: Any) -> str:
    return json.dumps({**json.loads(record().line()), **more})


def without(name: str) -> str:
    fields = json.loads(record().line())
    del fields[name]
    return json.dumps(fields)


CONFIG = dict(DEFAULT.config)
ODD = {
    "empty object": "{}",
    "list": "[1, 2]",
    "number": "17",
    "text": "hello",
    "bytes": "\x00\x01\x02",
    "deep": "[" * 100000,
    "deep object": '{"a":' * 5000 + "1" + "}" * 5000,
    "nested env": changed(env={"a": {"b": {"c": {"d": {"e": {"f": {"g": {"h": 1}}}}}}}}),
    "later schema": changed(schema=2),
    "schema of another type": changed(schema=True),
    "no schema": without("schema"),
    "no op": without("op"),
    "no config": without("config"),
    "another field": changed(command="rm -rf /"),
    "op is a path": changed(op="../../etc/passwd"),
    "device is a path": changed(device="/root"),
    "op is a list": changed(op=["gemm"]),
    "unknown op": changed(op="rms_norm"),
    "unknown source": changed(source="guessed"),
    "huge rows": changed(config={**CONFIG, "item_rows": 10**12}),
    "negative": changed(config={**CONFIG, "prefetch": -1}),
    "value between": changed(config={**CONFIG, "item_rows": 100}),
    "value is text": changed(config={**CONFIG, "item_rows": "256"}),
    "value is true": changed(config={**CONFIG, "threads": True}),
    "value is a list": changed(config={**CONFIG, "threads": [1]}),
    "knob too few": changed(config={"item_rows": 256}),
    "knob too many": changed(config={**CONFIG, "exec": 1}),
    "config is a list": changed(config=[1, 2, 3, 4]),
    "key is a list": changed(key=[1]),
    "key has a list": changed(key={"n": [1]}),
    "key is huge": changed(key={"n": 10**40}),
    "gain is nan": changed().replace('"gain": 1.0', '"gain": NaN'),
    "gain is infinite": changed().replace('"gain": 1.0', '"gain": 1e999'),
    "gain is text": changed(gain="2"),
    "tried is text": changed(tried="all"),
    "env is text": changed(env="all"),
    "version is text": changed(version="1"),
    "too long": changed(created="x" * (1 << 17)),
}


@pytest.mark.parametrize("line", ODD.values(), ids=ODD)
def test_what_is_no_record_is_left_out(line: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        parse(line)
    path = tmp_path / "gemm.jsonl"
    path.write_text(f"{line}\n{record(8).line()}{line}\n")
    with pytest.warns(RecordWarning) as said:
        assert [r.key["rows"] for r in read(path)] == [8]
        read(path)
    assert len(said) == 1  # a file, not a line, and not a time
    assert str(path) in str(said[0].message)
    assert len(str(said[0].message)) < 600


def test_files_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(tmp_path / "nothing.jsonl") == []
    (tmp_path / "folder.jsonl").mkdir()
    assert read(tmp_path / "folder.jsonl") == []
    os.mkfifo(tmp_path / "pipe.jsonl")  # reading it would wait forever
    assert read(tmp_path / "pipe.jsonl") == []
    (tmp_path / "latin.jsonl").write_bytes(b"\xff\xfe\n")
    with pytest.warns(RecordWarning):
        assert read(tmp_path / "latin.jsonl") == []
    monkeypatch.setattr(records, "LARGEST_FILE", 10)
    (tmp_path / "large.jsonl").write_text(record().line())
    with pytest.warns(RecordWarning, match="larger than"):
        assert read(tmp_path / "large.jsonl") == []


def test_the_worst_file_only_costs_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call of an op whose file of records is rubbish."""
    import torch

    import sparsekern

    monkeypatch.setenv("SPARSEKERN_CACHE_DIR", str(tmp_path))
    folder = records.user_folder() / plan.cpu().name
    folder.mkdir(parents=True)
    (folder / "gemm.jsonl").write_text("\n".join(ODD.values()))
    a, b = torch.randn(5, 96).bfloat16(), torch.randn(80, 96).bfloat16()
    plan.reload()
    with pytest.warns(RecordWarning):
        y = sparsekern.gemm(a, b)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(sparsekern.gemm(torch.cat([a, a]), b)[:5], y)
    plan.reload()


def _write_many(folder: Path, start: int) -> None:
    for i in range(25):
        write(folder, [record(start + i)])


def test_two_writers_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_many, args=(tmp_path, start)) for start in (100, 200, 300)]
    for w in writers:
        w.start()
    path = tmp_path / "amd-zen3" / "gemm.jsonl"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a reader never sees half a file
        while any(w.is_alive() for w in writers):
            read(path)
    for w in writers:
        w.join()
        assert w.exitcode == 0
    assert sorted(r.key["rows"] for r in read(path)) == [*range(100, 125), *range(200, 225), *range(300, 325)]
    assert sorted(p.name for p in path.parent.iterdir()) == ["gemm.jsonl", "gemm.lock"]


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    write(tmp_path, [record(1)])
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path, [record(2)])
    monkeypatch.undo()
    folder = tmp_path / "amd-zen3"
    assert [r.key["rows"] for r in read(folder / "gemm.jsonl")] == [1]
    assert not list(folder.glob("*.tmp"))
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        write(tmp_path / "file", [record(2)])


@pytest.mark.parametrize(
    ("vendor", "family", "number", "name"),
    [
        ("AuthenticAMD", "25", "1", "amd-zen3"),
        ("AuthenticAMD", "25", "17", "amd-zen4"),
        ("AuthenticAMD", "26", "2", "amd-zen5"),
        ("AuthenticAMD", "99", "2", "amd-f99m2"),
        ("GenuineIntel", "6", "143", "intel-f6m143"),
        ("Brand New", "1", "1", "unknown"),
        ("AuthenticAMD", "x/../..", "1", "unknown"),
    ],
)
def test_devices_have_names(vendor: str, family: str, number: str, name: str) -> None:
    assert _name({"vendor_id": vendor, "cpu family": family, "model": number}) == name
    assert records._NAME.fullmatch(name)


def test_a_device_nobody_has_seen_is_modelled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert _name({}) == "unknown"
    monkeypatch.setenv("SPARSEKERN_CACHE_DIR", str(tmp_path))
    p = model.Problem("gemm", "bf16", "e4m3", True, 128, 2048, 7168, 1, 16, 2, "avx2")
    write(records.user_folder(), [record(key=p.key)])  # of another device
    monkeypatch.setattr(plan, "cpu", lambda: Cpu("unknown", 32 << 10, 512 << 10, 32 << 20))
    assert plan.planned(p) == model.choose(p)
    monkeypatch.setattr(plan, "cpu", lambda: Cpu("amd-zen3", 32 << 10, 512 << 10, 32 << 20))
    assert plan.planned(p).source == "measured"


def test_shipped_records_are_good() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shipped = records.read_folder(records.SHIPPED)
    assert {r.device for r in shipped} >= set(cuda_model.GPUS)
    for r in shipped:
        assert r.version == model.VERSION
        if r.device in cuda_model.GPUS:  # nobody has measured one
            assert r.source == "modelled"
            assert dict(r.config) in cuda_model.INSTANCES
        else:
            assert set(r.config) == set(KNOBS)
            assert r.source in ("measured", "default")
            assert r.env["commit"]
            assert r.tried


def test_records_of_other_meanings_are_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPARSEKERN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(records, "SHIPPED", tmp_path / "none")
    for version, usable in ((model.VERSION + 1, False), (model.VERSION, True)):
        r = record(version=version)
        write(records.user_folder(), [r])
        assert (records.find(r.op, r.device, r.key) == r) == usable

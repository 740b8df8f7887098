"""How work is cut: looked up once for a kind of call, never a matter of bits."""

import itertools
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import sparsekern
from sparsekern import _C, model, plan, records
from sparsekern.catalogue import OPS
from sparsekern.model import DEFAULT, KNOBS, Machine, Problem
from sparsekern.testing import assert_same_bits, cpu_isas, seeded

PROBLEM = Problem("gemm", "bf16", "e4m3", True, 128, 2048, 7168, 1, 16, 2, "avx2")
DEFAULT_MODELLED = model.Choice(DEFAULT.config, "modelled")
# Every knob at both ends, and all of them at once.
EXTREMES = [
    *(
        {**DEFAULT.config, name: value}
        for name, values in KNOBS.items()
        for value in (min(values), max(values))
    ),
    dict(zip(KNOBS, (32, 8, 0, 1), strict=True)),
    dict(zip(KNOBS, (32, 1024, 8192, 0), strict=True)),
]
CALLS = [
    ("gemm", {"M": 150, "N": 200, "K": 264, "a": 1, "b": 2}),
    ("gemm", {"M": 70, "N": 72, "K": 96, "a": 0, "b": 3}),
    ("gemm", {"M": 33, "N": 136, "K": 100, "a": 1, "b": 1}),
    ("grouped_gemm", {"P": 300, "N": 136, "K": 264, "E": 3, "a": 2, "b": 2}),
    ("grouped_gemm_masked", {"E": 3, "Mmax": 40, "N": 72, "K": 96, "a": 1, "b": 2}),
    ("fused_moe", {"T": 90, "H": 128, "I": 96, "E": 3, "top_k": 2, "w": 2}),
    ("fused_moe", {"T": 90, "H": 128, "I": 96, "E": 3, "top_k": 2, "w": 3, "w8a8": 1}),
]


@pytest.fixture
def own_records(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """No records but those that the test makes."""
    monkeypatch.setenv("SPARSEKERN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(records, "SHIPPED", tmp_path / "shipped")
    plan.reload()
    yield tmp_path
    monkeypatch.undo()
    plan.reload()


def record(**more: Any) -> records.Record:
    config = {**DEFAULT.config, "prefetch": 8192}
    fields = {"op": "gemm", "device": plan.cpu().name, "key": PROBLEM.key, "config": config}
    fields |= {"source": "measured", "version": model.VERSION}
    return records.Record(**{**fields, **more})


@pytest.mark.parametrize(("name", "dims"), CALLS, ids=lambda v: v if isinstance(v, str) else "")
@pytest.mark.parametrize("isa", cpu_isas())
def test_choices_never_change_bits(name: str, dims: dict[str, int], isa: str) -> None:
    op = OPS[name]
    x = op.inputs(dims, seeded(op, dims))
    weights = [w for w in ("b", "w13", "w2") if w in x]
    packed = dict(x)
    for w in weights:
        scale, block = packed.pop(f"{w}_scale", None), packed.pop(f"{w}_block", None)
        packed[w] = sparsekern.pack_weights(packed[w], scale, block=block)
    with sparsekern.config.using(isa=isa, threads=2):
        want = op.fn(**x)
        for config, call in itertools.product(EXTREMES, (x, packed)):
            with plan.using(config):
                assert_same_bits(op.fn(**call), want, f"{config}")


def test_calls_survive_any_numbers() -> None:
    x = OPS["gemm"].inputs(CALLS[0][1], torch.Generator().manual_seed(0))
    want = sparsekern.gemm(**x)
    try:
        for numbers in ((0, 0, 0, 0), (-1, -1, -1, -1), (1 << 60, 1 << 60, 1 << 60, 1 << 60)):
            _C.force_blocking(numbers)
            assert_same_bits(sparsekern.gemm(**x), want)
    finally:
        _C.force_blocking(None)
    with pytest.raises((TypeError, RuntimeError)):
        _C.force_blocking((1, 2))  # type: ignore[arg-type]


def test_a_kind_of_call_is_planned_once() -> None:
    asked: list[Any] = []

    def planner(*kind: Any) -> tuple[int, int, int, int]:
        asked.append(kind)
        return DEFAULT.numbers

    b = torch.randn(48, 64).bfloat16()
    try:
        _C.set_planner(planner)
        for rows in (1, 1, 2, 15, 16, 17, 22, 23, 1):
            sparsekern.gemm(torch.randn(rows, 64).bfloat16(), b)
        assert [kind[8] for kind in asked] == [1, 2, 16, 32]
        assert asked[0] == (
            "gemm",
            1,
            1,
            False,
            0,
            48,
            64,
            1,
            1,
            sparsekern.config.threads,
            sparsekern.config.isa,
        )
        with sparsekern.config.using(threads=1, isa="scalar"):
            sparsekern.gemm(torch.randn(1, 64).bfloat16(), b)
        assert asked[4][9:] == (1, "scalar")
        _C.forget_plans()
        sparsekern.gemm(torch.randn(1, 64).bfloat16(), b)
        assert len(asked) == 6
    finally:
        _C.set_planner(plan.choose)


def test_no_call_is_lost_for_want_of_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", said.append)
    a, b = torch.randn(3, 64).bfloat16(), torch.randn(48, 64).bfloat16()
    want = sparsekern.gemm(a, b)

    def planner(*kind: Any) -> tuple[int, int, int, int]:
        raise OSError("no disk")

    try:
        _C.set_planner(planner)
        assert_same_bits(sparsekern.gemm(a, b), want)
        assert_same_bits(sparsekern.gemm(a, b), want)
    finally:
        _C.set_planner(plan.choose)
    assert [str(s.exc_value) for s in said] == ["no disk"]


def test_the_nearest_record_is_taken(own_records: Path) -> None:
    assert plan.planned(PROBLEM).source == "modelled"
    user = records.user_folder()
    records.write(own_records / "shipped", [record(source="imported")])
    assert plan.planned(PROBLEM) == model.Choice({**DEFAULT.config, "prefetch": 8192}, "imported")
    config = {**DEFAULT.config, "prefetch": 4096}
    records.write(user, [record(config=config), record(key={**PROBLEM.key, "rows": 1})])
    assert plan.planned(PROBLEM) == model.Choice(config, "measured")

    def rows(count: int, **more: Any) -> model.Choice:
        return plan.planned(Problem(**{**vars(PROBLEM), "rows": count, **more}))

    assert rows(64).config["prefetch"] == 4096
    assert rows(2).config["prefetch"] == 8192
    assert rows(128).source == "modelled"
    assert rows(16, n=1024).source == "modelled"
    assert rows(16, threads=3).source == "modelled"
    tile = {name: values[0] for name, values in model.CUDA_KNOBS.items()}
    records.write(user, [record(config=tile, key={**PROBLEM.key, "n": 512})])
    assert rows(16, n=512).source == "modelled"  # a record, but not of this processor's knobs


def test_a_record_reaches_the_kernel(own_records: Path, caplog: pytest.LogCaptureFixture) -> None:
    a, b = torch.randn(4, 96).bfloat16(), torch.randn(64, 96).bfloat16()
    here = Problem(
        "gemm", "bf16", "bf16", False, 0, 64, 96, 1, 4, sparsekern.config.threads, sparsekern.config.isa
    )
    with caplog.at_level(logging.INFO, "sparsekern.plan"):
        sparsekern.gemm(a, b)
        records.write(records.user_folder(), [record(key=here.key)])
        plan.reload()
        sparsekern.gemm(a, b)
    assert [m.split(":")[0] for m in caplog.messages] == ["modelled", "measured"]


# --- the model ----------------------------------------------------------------------------------------------


def test_more_work_takes_longer() -> None:
    def time(**more: Any) -> float:
        return model.predict(Problem(**{**vars(PROBLEM), **more}), DEFAULT.config, Machine())

    rows = [time(rows=n) for n in (1, 8, 64, 512)]
    assert rows == sorted(rows)
    assert rows[3] / rows[2] == pytest.approx(8, rel=0.1)
    assert time(n=4096) > 1.8 * time()
    assert time(rows=512) > 1.9 * time(rows=512, threads=4)
    assert time(rows=1, weights="bf16") > 1.5 * time(rows=1)  # bytes
    assert time(rows=512, weights="bf16") == pytest.approx(time(rows=512), rel=0.1)  # products
    assert time(isa="scalar") > 3 * time()


def test_waves_are_counted() -> None:
    """Panels that do not fill the threads' last wave cost a whole one: smaller items fill it."""
    wide = Problem(**{**vars(PROBLEM), "rows": 512, "n": 64 * 33, "threads": 64})
    assert model.choose(wide, Machine()).config["item_rows"] < 256


def test_what_cannot_matter_is_not_tried() -> None:
    one = Problem(**{**vars(PROBLEM), "rows": 1, "threads": 1})
    kept, dropped = model.candidates(one)
    assert {len({c[name] for c in kept}) for name in ("item_rows", "decode_rows", "threads")} == {1}
    assert len(kept) == len(KNOBS["prefetch"])
    assert "a group has 1 rows" in dropped.values()
    bf16 = Problem(**{**vars(PROBLEM), "weights": "bf16", "rows": 512})
    assert {c["decode_rows"] for c in model.candidates(bf16)[0]} == {0}


@pytest.mark.parametrize("empty", [{"rows": 0}, {"n": 0}, {"k": 0}, {"groups": 0, "rows": 0}])
def test_calls_with_nothing_to_do_are_planned(empty: dict[str, int]) -> None:
    for op in model.TUNED:
        assert model.choose(Problem(**{**vars(PROBLEM), "op": op, **empty}), Machine()) == DEFAULT_MODELLED
    one = Problem(**{**vars(PROBLEM), "op": "fused_moe", "n": 1, "k": 1})  # its second GEMM has no columns
    assert model.predict(one, DEFAULT.config, Machine()) > 0


@pytest.mark.parametrize("rows", [1, 8, 64, 4096])
@pytest.mark.parametrize("op", model.TUNED)
def test_the_model_chooses_something_allowed(op: str, rows: int) -> None:
    for weights, isa, threads in itertools.product(model.BYTES, model.CORES, (1, 2, 64)):
        p = Problem(op, "bf16", weights, True, 32, 192, 512, 8, rows, threads, isa)
        choice = model.choose(p, Machine())
        assert model.allowed(op, choice.config) == ""
        assert model.predict(p, choice.config, Machine()) <= 1.01 * model.predict(
            p, DEFAULT.config, Machine()
        )
        assert DEFAULT.config in model.candidates(p)[0]


def test_bounds_of_knobs_are_those_of_the_library() -> None:
    """What `_C` would clamp cannot be chosen."""
    assert min(KNOBS["item_rows"]) >= 16
    assert max(KNOBS["item_rows"]) <= 1024
    assert max(KNOBS["prefetch"]) <= 1 << 16
    text = (Path(__file__).parents[1] / "csrc/gemm/blocking.h").read_text()
    for name, values in KNOBS.items():
        assert f"int64_t {name} = {values[0]};" in text

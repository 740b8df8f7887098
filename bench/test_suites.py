"""The suite of record through pytest-benchmark: its statistics, its files, its comparisons.

    pytest bench/ --benchmark-autosave                 then, later: --benchmark-compare
    --benchmark-compare-fail=... SPARSEKERN_SUITE=moe pytest bench/ -k T=16

It times one contender after the other: to say that one is faster than another, use `sparsekern bench`, which
times them in turns. Cases and contenders are the same.
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any

import pytest
import torch

from sparsekern.catalogue import OPS

from .baselines import peers
from .case import OURS, Case, Work
from .suites import SUITES, Choice

pytest.importorskip("pytest_benchmark")
CASES = list(SUITES[os.environ.get("SPARSEKERN_SUITE", "record")](Choice()))


def contenders() -> list[Any]:
    """Ours and each peer of every case."""
    return [
        pytest.param(i, name, id=f"{case.name}, {name}")
        for i, case in enumerate(CASES)
        for name in ([OURS, *peers(OPS[case.about["op"]])] if "op" in case.about else [])
    ]


@lru_cache(maxsize=1)
def prepared(i: int) -> Work:
    """A case's work, kept for its other contenders."""
    case: Case = CASES[i]
    return case.prepare()


@pytest.mark.parametrize(("case", "name"), contenders())
def test_speed(case: int, name: str, benchmark: Any) -> None:
    """Time one contender; what it returns is checked first, as `sparsekern bench` does."""
    work = prepared(case)
    if name not in work.contenders:
        pytest.skip(work.missing[name])
    benchmark.group = CASES[case].name
    benchmark.extra_info.update(CASES[case].about, dims=dict(CASES[case].dims), flops=CASES[case].flops)
    run = work.contenders[name]
    with torch.no_grad():
        if work.truth is not None:
            check = work.truth.judge(run(0), name.startswith(OURS))
            assert name in work.unlike or not check.complaint
        calls = iter(range(1 << 62))
        benchmark(lambda: run(next(calls)))

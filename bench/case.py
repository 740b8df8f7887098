"""One workload, and what is known of it once it has been timed."""

from __future__ import annotations

import datetime
import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sparsekern
from sparsekern.cli.info import machine
from sparsekern.config import config
from sparsekern.schema import as_tuple

from . import roofline
from .timing import Contender, Spread, Timings, measure


@dataclass(frozen=True)
class Case:
    """The same work for every contender; the first one is ours, and the others are compared with it."""

    suite: str
    name: str
    contenders: Mapping[str, Contender]
    dims: Mapping[str, int] = field(default_factory=dict)
    flops: float = 0.0
    bytes: Mapping[str, float] = field(default_factory=dict)  # that a contender must read or write at least
    missing: Mapping[str, str] = field(default_factory=dict)  # peers that cannot run here, and why
    derived: Callable[[Timings], Mapping[str, Spread]] = lambda _: {}  # more ratios of these timings


@dataclass(frozen=True)
class Row:
    """One contender of one case, timed."""

    contender: str
    seconds: Spread
    ratio: Spread  # to the case's first contender
    differs: float | None  # relative distance from the first contender's result
    of_read: float | None  # speed as a part of what a plain read reached beside it
    of_products: float | None  # ... of what products in registers reached


@dataclass(frozen=True)
class Outcome:
    """A case, timed."""

    case: Case
    rows: Sequence[Row]
    timings: Timings
    derived: Mapping[str, Spread]


def run(case: Case, **how: Any) -> Outcome:
    """Time a case; `how` goes to `measure`."""
    results = {name: contender(0) for name, contender in case.contenders.items()}
    want, *_ = results.values()
    differs = {name: _difference(got, want) for name, got in results.items()}
    limits = roofline.probes() if case.flops or case.bytes else {}
    t = measure({**case.contenders, **limits}, **how)
    first = next(iter(case.contenders))

    def part(work: float, name: str, limit: Callable[[Timings], list[float]]) -> float | None:
        if not work:
            return None
        rounds = zip(t.seconds[name], limit(t), strict=True)
        return statistics.median(work / seconds / best for seconds, best in rounds)

    rows = [
        Row(
            name,
            t.of(name),
            t.ratio(name, first),
            differs[name],
            part(case.bytes.get(name, 0.0), name, roofline.bytes_per_second),
            part(case.flops, name, roofline.flops_per_second),
        )
        for name in case.contenders
    ]
    return Outcome(case, rows, t, case.derived(t))


def _difference(got: Any, want: Any) -> float | None:
    """The distance of the first floating results, as a part of their size; None where there are none."""
    for a, b in zip(as_tuple(got), as_tuple(want), strict=False):
        if isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape and b.is_floating_point():
            x, y = a.double(), b.double()
            x, y = (t.where(x.isfinite() & y.isfinite(), 0.0) for t in (x, y))
            return float((x - y).norm() / y.norm().clamp_min(1e-300))
    return None


def as_json(outcome: Outcome, circumstances: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows as flat objects: a number never travels without its circumstances."""
    t = outcome.timings
    limits = {}
    if roofline.READ in t.seconds:
        limits = {
            "read_gb_per_s": round(statistics.median(roofline.bytes_per_second(t)) / 1e9, 2),
            "products_gflop_per_s": round(statistics.median(roofline.flops_per_second(t)) / 1e9, 1),
        }
    return [
        {
            "suite": outcome.case.suite,
            "case": outcome.case.name,
            "dims": dict(outcome.case.dims),
            "contender": row.contender,
            **{f"{name}_us": round(1e6 * value, 3) for name, value in vars(row.seconds).items()},
            "ratio": {name: round(value, 4) for name, value in vars(row.ratio).items()},
            "differs": row.differs,
            "of_read": row.of_read,
            "of_products": row.of_products,
            "derived": {k: {n: round(v, 4) for n, v in vars(s).items()} for k, s in outcome.derived.items()},
            **limits,
            "rounds": len(t.seconds[row.contender]),
            "waited_s": round(t.waited, 1),
            "busy": round(t.busy, 3),
            **circumstances,
        }
        for row in outcome.rows
    ]


def circumstances(command: str, versions: Mapping[str, str]) -> dict[str, Any]:
    """What holds for all rows of one run of the command."""
    return {
        "device": machine(),
        "threads": config.threads,
        "isa": config.isa,
        "commit": commit(),
        "versions": {"sparsekern": sparsekern.__version__, "torch": torch.__version__, **versions},
        "command": command,
        "date": datetime.date.today().isoformat(),
    }


def commit() -> str:
    """The commit of this checkout, "+" where files differ from it; the version where this is no checkout."""
    folder = Path(__file__).parent

    def git(*words: str) -> str:
        command = ["git", *words]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + "+" * bool(git("status", "--porcelain", "-uno"))
    except (OSError, subprocess.CalledProcessError):
        return sparsekern.__version__

"""What is drawn, as plain data: the page draws it as SVG, `--png` with matplotlib."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .case import OURS, RIGHT, UNLIKE, WRONG
from .report import Rows, seconds

Row = dict[str, Any]


@dataclass(frozen=True)
class Bar:
    """How many times as long a peer takes, in one case."""

    label: str
    value: float
    low: float
    high: float
    kind: str  # wrong, unlike, ours, or else faster or slower: how it is drawn
    text: str

    @property
    def mark(self) -> str:
        """What stands behind its number."""
        return {WRONG: " wrong", UNLIKE: " *"}.get(self.kind, "")


@dataclass(frozen=True)
class Bars:
    """The peers of one op, case by case."""

    title: str
    groups: Sequence[tuple[str, Sequence[Bar]]]


@dataclass(frozen=True)
class Point:
    """A contender of a case under the roof."""

    intensity: float  # operations a byte
    speed: float  # operations a second
    ours: bool
    verdict: str
    text: str


@dataclass(frozen=True)
class Roofline:
    """What the machine could do, and what was done."""

    title: str
    bandwidth: float  # bytes a second
    peaks: Sequence[tuple[str, float]]  # operations a second, the highest first
    points: Sequence[Point]


@dataclass(frozen=True)
class Line:
    """One case over the runs; None where a run does not have it."""

    label: str
    values: Sequence[float | None]
    spreads: Sequence[tuple[float, float] | None]


@dataclass(frozen=True)
class History:
    """Times as long as in the first run that has it, beside a peer of the same run where there is one."""

    title: str
    runs: Sequence[str]
    lines: Sequence[Line]


def ours_of(rows: Rows) -> dict[tuple[str, str], Row]:
    """The row that the others of its case are compared with: the first, ours."""
    first: dict[tuple[str, str], Row] = {}
    for row in rows:
        first.setdefault((row["suite"], row["case"]), row)
    return {key: row for key, row in first.items() if row["contender"].startswith(OURS)}


def bars(rows: Rows) -> list[Bars]:
    """A chart for each op."""
    charts: dict[str, dict[str, list[Bar]]] = {}
    base = ours_of(rows)
    for row in rows:
        first = base.get((row["suite"], row["case"]))
        if first is None or row is first:
            continue
        ratio, op = row["ratio"], str(row.get("op", row["suite"]))
        remark = f", {row['remark']}" if row.get("remark") else ""
        bar = Bar(
            row["contender"],
            ratio["median"],
            ratio["p10"],
            ratio["p90"],
            _kind(row),
            f"{row['contender']}: {ratio['median']:.2f} x [{ratio['p10']:.2f} .. {ratio['p90']:.2f}]{remark}",
        )
        charts.setdefault(op, {}).setdefault(row["case"], []).append(bar)
    return [Bars(op, list(cases.items())) for op, cases in charts.items()]


def _kind(row: Row) -> str:
    if row.get("verdict") in (WRONG, UNLIKE):
        return str(row["verdict"])
    if row["contender"].startswith(OURS):
        return "ours"
    return "faster" if row["ratio"]["median"] > 1 else "slower"


def roofline(rows: Rows) -> Roofline | None:
    """All cases that have operations and bytes; None if there are none."""
    placed = [r for r in rows if r.get("flops") and r.get("bytes") and r.get("read_gb_per_s")]
    if not placed:
        return None
    points = [
        Point(
            row["flops"] / row["bytes"],
            row["flops"] / seconds(row).median,
            row["contender"].startswith(OURS),
            row.get("verdict", RIGHT),
            f"{row['case']}: {row['contender']}, {row['flops'] / seconds(row).median / 1e9:.1f} GFLOP/s",
        )
        for row in placed
    ]
    peaks = {
        "bf16 products": "products_gflop_per_s",
        "f32 products": "f32_products_gflop_per_s",
        "int8 products": "int8_products_gflop_per_s",
    }
    found = [
        (name, 1e9 * statistics.median(r[key] for r in placed if r.get(key)))
        for name, key in peaks.items()
        if any(r.get(key) for r in placed)
    ]
    bandwidth = 1e9 * statistics.median(r["read_gb_per_s"] for r in placed)
    return Roofline("roofline", bandwidth, _together(sorted(found, key=lambda p: -p[1])), points)


def _together(peaks: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    """Peaks that lie within a quarter of each other under one name: their lines would hide each other."""
    joined: list[tuple[str, float]] = []
    for name, peak in peaks:
        if joined and peak > 0.75 * joined[-1][1]:
            joined[-1] = f"{joined[-1][0].removesuffix(' products')}, {name}", joined[-1][1]
        else:
            joined.append((name, peak))
    return joined


def history(runs: Sequence[Rows]) -> list[History]:
    """Our first contender of every case over the runs, a chart for each op; nothing of a single run."""
    dated = sorted(
        (rows for rows in runs if rows), key=lambda rows: str(rows[0].get("time", rows[0]["date"]))
    )
    if len(dated) < 2:
        return []
    names = [f"{rows[0]['commit']} {rows[0]['date']}" for rows in dated]
    costs = [_costs(rows) for rows in dated]
    charts: dict[str, list[Line]] = {}
    for key, row in ours_of(dated[-1]).items():
        series = [cost.get(key) for cost in costs]
        first = next((s for s in series if s), None)
        if first is None or sum(s is not None for s in series) < 2:
            continue
        line = Line(
            key[1],
            [s and s[0] / first[0] for s in series],
            [s and (s[1] / first[0], s[2] / first[0]) for s in series],
        )
        charts.setdefault(str(row.get("op", key[0])), []).append(line)
    return [History(op, names, lines) for op, lines in charts.items()]


def _costs(rows: Rows) -> dict[tuple[str, str], tuple[float, float, float]]:
    """What a case costs, [p10, p90] with it: as a part of the peer's time where there is a right one."""
    found = {}
    for key, row in ours_of(rows).items():
        peer = next(
            (r for r in rows if (r["suite"], r["case"]) == key and not r["contender"].startswith(OURS)
             and r.get("verdict") not in (WRONG, UNLIKE)), None
        )  # fmt: skip
        s = seconds(row)
        if peer is not None:
            ratio = peer["ratio"]
            found[key] = (1 / ratio["median"], 1 / ratio["p90"], 1 / ratio["p10"])
        else:
            found[key] = (s.median, s.p10, s.p90)
    return found


def summary(rows: Rows) -> list[tuple[str, int, int, float]]:
    """For every peer but wrong ones: cases, those where ours is faster, the geometric mean of the ratios."""
    ratios: dict[str, list[float]] = {}
    base = ours_of(rows)
    for row in rows:
        key = (row["suite"], row["case"])
        if key in base and not row["contender"].startswith(OURS) and row.get("verdict") != WRONG:
            ratios.setdefault(row["contender"], []).append(row["ratio"]["median"])
    return [
        (name, len(v), sum(r > 1 for r in v), math.exp(statistics.fmean(map(math.log, v))))
        for name, v in ratios.items()
    ]

"""Numbers and cases as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from . import roofline
from .case import RIGHT, UNCHECKED, UNLIKE, WRONG, Outcome, Row
from .timing import BUSY, Spread, Timings


def duration(s: Spread) -> str:
    """Seconds, with the unit that suits the median."""
    units = {1.0: "s ", 1e-3: "ms", 1e-6: "us"}
    unit = next((unit for unit in units if s.median >= unit), 1e-6)
    return f"{spread(s, unit)} {units[unit]}"


def spread(s: Spread, unit: float = 1.0) -> str:
    """Three figures of each."""
    median, p10, p90 = (digits(value / unit) for value in (s.median, s.p10, s.p90))
    return f"{median} [{p10} .. {p90}]"


def digits(value: float) -> str:
    """Three figures, or all of a larger integer part."""
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}".rstrip(".")


def heading(about: Mapping[str, Any]) -> str:
    """The circumstances, and how to read what follows."""
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return (
        f"{about['device']}, {about['threads']} threads, {about['isa']}\n"
        f"{versions}, commit {about['commit']}, {about['date']}\n"
        "median [p10 .. p90] of a call; x: times as long as the first, round by round"
    )


def table(outcome: Outcome) -> str:
    """A case for people: medians [p10 .. p90], and how many times as long as the first contender."""
    case, first = outcome.case, outcome.rows[0]
    cells = [
        (
            row.contender,
            duration(row.seconds),
            "" if row is first else f"{spread(row.ratio)} x",
            ", ".join(notes(row)),
        )
        for row in outcome.rows
    ]
    a, b, c = (max(len(row[i]) for row in cells) for i in range(3))
    lines = [", ".join(filter(None, [case.name, case.about.get("routing", "") and "synthetic routing"]))]
    lines += [
        f"  {name:<{a}}  {took:>{b}}  {ratio:>{c}}  {note}".rstrip() for name, took, ratio, note in cells
    ]
    lines += [f"  {name}: {spread(value)}" for name, value in outcome.derived.items()]
    by_reason: dict[str, list[str]] = {}
    for name, why in outcome.work.missing.items():
        by_reason.setdefault(why, []).append(name)
    lines += [f"  not here: {', '.join(names)} ({why})" for why, names in by_reason.items()]
    return "\n".join([*lines, *(f"  {line}" for line in weather(outcome.timings))])


def summary(peers: Sequence[tuple[str, int, int, float]]) -> str:
    """The answer, peer by peer; empty where there are none."""
    if not peers:
        return ""
    width = max(len(name) for name, *_ in peers)
    lines = [
        f"  {name:<{width}}  takes {digits(mean)} x as long (geometric mean); "
        f"sparsekern is faster in {faster} of {cases} cases"
        for name, cases, faster, mean in peers
    ]
    return "\n".join(["in short, wrong results left out:", *lines])


def notes(row: Row) -> list[str]:
    """The limit that the contender is nearer to, and what is to be said of its result."""
    found = []
    if row.of_read is not None:
        part, limit = max((row.of_read, "a read"), (row.of_products or 0.0, "products"))
        found.append(f"{100 * part:.0f} % of {limit}")
    if row.verdict == WRONG:
        found.append(f"WRONG: {row.remark}")
    elif row.verdict == UNLIKE:
        found.append(
            f"UNLIKE: {row.remark}" + (f" (off by {row.check.error:.1e})" if row.check.error else "")
        )
    elif row.verdict == UNCHECKED and row.remark:
        found.append(f"not checked: {row.remark}")
    elif row.verdict == RIGHT and row.check.error:
        found.append(f"off by {row.check.error:.1e}")
    return found


def weather(t: Timings) -> list[str]:
    """What the machine could do in the same rounds, and whether it was ours."""
    lines = []
    if roofline.READ in t.seconds:
        limits = [f"a read {spread(Spread.of(roofline.bytes_per_second(t)), 1e9)} GB/s"]
        for name, what in (
            (roofline.PRODUCTS, "products of bf16"),
            (roofline.FMA, "f32"),
            (roofline.INT8, "int8"),
        ):
            limits.append(f"{what} {digits(Spread.of(roofline.flops_per_second(t, name)).median / 1e9)}")
        lines.append(f"(beside it: {', '.join(limits)} GFLOP/s)")
    if t.busy > BUSY:
        lines.append(f"(others had up to {100 * t.busy:.0f} % of the machine: take care)")
    return lines

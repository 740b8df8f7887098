"""Figures as SVG, to stand inside a page: colours come from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from html import escape

from .case import WRONG
from .figures import Bars, History, Roofline
from .style import SERIES
from .text import digits

WIDTH, LABELS, VALUES = 900, 230, 60  # of a chart, of the names left of it, of the numbers right of it
ROW = 17
Scale = Callable[[float], float]


def log_scale(low: float, high: float, first: float, last: float) -> Scale:
    """Logarithmic from [low, high] to [first, last], ends included."""
    a, b = math.log(low), math.log(high)
    return lambda v: first + (math.log(min(max(v, low), high)) - a) / (b - a) * (last - first)


def ticks(low: float, high: float, most: int = 9, *, tens: bool = False) -> list[float]:
    """Powers of two, or of ten where those are too many."""
    for base, step in ((2.0, 1), (2.0, 2), (10.0, 1), (10.0, 2), (10.0, 3))[2 if tens else 0 :]:
        first, last = math.ceil(math.log(low, base) - 1e-9), math.floor(math.log(high, base) + 1e-9)
        values = [base**e for e in range(first, last + 1) if e % step == 0]
        if len(values) <= most:
            return values
    return values


def engineering(value: float) -> str:
    """As in 1.5 k, 3 M, 40 G."""
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:g} {unit}"
    return f"{value:g}"


def _text(x: float, y: float, text: str, css: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{css}" text-anchor="{anchor}">{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, css: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{css}"/>'


def _figure(height: float, parts: Iterator[str], title: str) -> str:
    body = "\n".join(parts)
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" role="img" aria-label="{escape(title)}">\n'
        f"{body}\n</svg>"
    )


# --- ratios -------------------------------------------------------------------------------------------------


def range_of(chart: Bars) -> tuple[float, float]:
    """The axis of a chart: one, every bar, and room."""
    values = [v for _, group in chart.groups for bar in group for v in (bar.value, bar.low, bar.high)]
    return min(0.5, *values) / 1.15, max(2.0, *values) * 1.15


def bars(chart: Bars) -> str:
    """A bar to the right of one: the peer takes longer; to the left: it is faster than ours."""
    low, high = range_of(chart)
    x = log_scale(low, high, LABELS, WIDTH - VALUES)
    height = 34 + sum(ROW * (len(group) + 1) + 8 for _, group in chart.groups)

    def parts() -> Iterator[str]:
        for value in ticks(low, high):
            css = "one" if value == 1 else "grid"
            yield _line(x(value), 20, x(value), height - 8, css)
            yield _text(x(value), 14, f"{value:g}", "tick", "middle")
        y = 28.0
        for case, group in chart.groups:
            yield _text(0, y + 12, case, "case")
            y += ROW
            for bar in group:
                yield f"<g><title>{escape(bar.text)}</title>"
                yield _text(LABELS - 8, y + 12, bar.label, "label", "end")
                left, right = sorted((x(1), x(bar.value)))
                yield (
                    f'<rect x="{left:.1f}" y="{y + 3:.1f}" width="{max(right - left, 1):.1f}" height="11" '
                    f'class="{bar.kind}"/>'
                )
                yield _line(x(bar.low), y + 8.5, x(bar.high), y + 8.5, "whisker")
                yield _text(WIDTH - VALUES + 6, y + 12, f"{digits(bar.value)} x{bar.mark}", "value")
                yield "</g>"
                y += ROW
            y += 8

    return _figure(height, parts(), f"{chart.title}: times as long as sparsekern")


# --- roofline -----------------------------------------------------------------------------------------------


def extent(chart: Roofline) -> tuple[float, float, float, float]:
    """The axes of a roofline: operations a byte, operations a second."""
    xs, ys = [p.intensity for p in chart.points], [p.speed for p in chart.points]
    knee = chart.peaks[0][1] / chart.bandwidth
    return (
        min([*xs, knee / 4]) / 1.5,
        max([*xs, 2 * knee]) * 1.5,
        min(ys) / 1.5,
        max([*ys, chart.peaks[0][1]]) * 1.6,
    )


def roofline(chart: Roofline) -> str:
    """Speed over intensity, both logarithmic, below what the probes reached."""
    x0, x1, y0, y1 = extent(chart)
    left, top, bottom, right = 74, 12, 420, WIDTH - 160
    x, y = log_scale(x0, x1, left, right), log_scale(y0, y1, bottom, top)

    def parts() -> Iterator[str]:
        for value in ticks(x0, x1):
            yield _line(x(value), top, x(value), bottom, "grid")
            yield _text(x(value), bottom + 16, f"{value:g}", "tick", "middle")
        for value in ticks(y0, y1, tens=True):
            yield _line(left, y(value), right, y(value), "grid")
            yield _text(left - 6, y(value) + 4, engineering(value), "tick", "end")
        yield _text(
            (left + right) / 2, bottom + 36, "operations per byte of traffic at least", "axis", "middle"
        )
        yield f'<g transform="rotate(-90 14 {(top + bottom) / 2})">'
        yield _text(14, (top + bottom) / 2, "operations a second", "axis", "middle") + "</g>"
        for name, peak in chart.peaks:
            knee = min(max(peak / chart.bandwidth, x0), x1)
            yield _line(x(knee), y(peak), right, y(peak), "roof")
            yield _text(right + 6, y(peak) + 4, name, "tick")
        highest = chart.peaks[0][1]
        start = max(x0, y0 / chart.bandwidth)
        yield _line(x(start), y(start * chart.bandwidth), x(highest / chart.bandwidth), y(highest), "roof")
        middle = math.sqrt(start * highest / chart.bandwidth)
        yield _text(x(middle) - 8, y(middle * chart.bandwidth) - 8, "one read of memory", "tick", "end")
        for point in sorted(chart.points, key=lambda p: p.ours):
            css = "ours" if point.ours else "wrong" if point.verdict == WRONG else "peer"
            radius = 5 if point.ours else 3.5
            yield (
                f'<circle cx="{x(point.intensity):.1f}" cy="{y(point.speed):.1f}" r="{radius}" class="{css}">'
                f"<title>{escape(point.text)}</title></circle>"
            )

    return _figure(bottom + 48, parts(), "roofline")


# --- history ------------------------------------------------------------------------------------------------


def history(chart: History) -> str:
    """Cost over the runs, the first being 1; down is faster."""
    values = [v for line in chart.lines for s in line.spreads if s for v in s]
    low, high = min(0.8, *values) / 1.05, max(1.25, *values) * 1.05
    left, right, top, bottom = 60, WIDTH - 330, 12, 220
    x = _positions(len(chart.runs), left + 10, right - 10)
    y = log_scale(low, high, bottom, top)

    def parts() -> Iterator[str]:
        for value in ticks(low, high, 7):
            yield _line(left, y(value), right, y(value), "one" if value == 1 else "grid")
            yield _text(left - 6, y(value) + 4, f"{value:g}", "tick", "end")
        for i, run in enumerate(chart.runs):
            if i % (1 + len(chart.runs) // 6) == 0:
                yield _text(x[i], bottom + 16, run.split()[0], "tick", "middle")
        for n, line in enumerate(chart.lines):
            css = f"s{n % len(SERIES)}"
            drawn = [(x[i], y(v)) for i, v in enumerate(line.values) if v]
            points = " ".join(f"{a:.1f},{b:.1f}" for a, b in drawn)
            yield f'<g class="{css}"><title>{escape(line.label)}</title><polyline points="{points}"/>'
            for i, spread in enumerate(line.spreads):
                if spread:
                    yield _line(x[i], y(spread[0]), x[i], y(spread[1]), "")
            yield "".join(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3"/>' for a, b in drawn) + "</g>"
            if n < 14:
                yield f'<g class="{css}">{_line(right + 14, 20 + 15 * n, right + 30, 20 + 15 * n, "")}</g>'
                yield _text(right + 36, 24 + 15 * n, line.label[:48], "tick")

    return _figure(
        max(bottom + 30, 34 + 15 * min(len(chart.lines), 14)), parts(), f"history of {chart.title}"
    )


def _positions(count: int, first: float, last: float) -> Sequence[float]:
    return [first + (last - first) * i / max(count - 1, 1) for i in range(count)]

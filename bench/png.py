"""The page's plots as pictures, with matplotlib: for slides, issues and chats that take no SVG."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import figures, svg
from .case import UNLIKE, WRONG
from .figures import Bars, History, Roofline
from .report import Rows
from .text import digits

COLOURS = {"ours": "#0b6bcb", "peer": "#9aa3b2", "faster": "#2a9d6f", "slower": "#d1495b", UNLIKE: "#b9a44c"}
SOFT = "#667085"


def write(rows: Rows, runs: Sequence[Rows], folder: Path) -> Iterator[Path]:
    """One picture a plot.

    Raises:
        ValueError: matplotlib is not installed.
    """
    plt = _pyplot()
    folder.mkdir(parents=True, exist_ok=True)
    roof = figures.roofline(rows)
    drawn: list[tuple[str, Callable[[Any, Any], Any], Any]] = [("roofline", _roofline, roof)] if roof else []
    drawn += [(f"ratios-{chart.title}", _bars, chart) for chart in figures.bars(rows)]
    drawn += [(f"history-{chart.title}", _history, chart) for chart in figures.history(runs)]
    for name, draw, chart in drawn:
        figure = draw(plt, chart)
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=110, bbox_inches="tight")
        plt.close(figure)
        yield path


def capacity(
    curves: Mapping[str, Sequence[tuple[float, float]]], tiered: Sequence[Mapping[str, Any]], path: Path
) -> None:
    """Hit rate over bytes of an untiered cache, a line a policy; points are tiered caches.

    Raises:
        ValueError: matplotlib is not installed.
    """
    plt = _pyplot()
    figure, axes = _axes(plt, 5.2, "Hit rate over device memory: lines untiered, points with tiers below")
    for name, line in curves.items():
        axes.plot([x / 1e9 for x, _ in line], [100 * y for _, y in line], marker=".", label=name)
    for policy in dict.fromkeys(row["policy"] for row in tiered):
        points = [row for row in tiered if row["policy"] == policy]
        x, y = ([row["device_bytes"] / 1e9 for row in points], [100 * row["hit_rate"] for row in points])
        axes.plot(x, y, linestyle="none", marker="D", label=f"{policy}, tiered")
    axes.set_xscale("log")
    axes.set_xlabel("GB on the device")
    axes.set_ylabel("% of blocks found")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)


def _pyplot() -> Any:
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("pictures need matplotlib: pip install matplotlib")
    importlib.import_module("matplotlib").use("Agg")
    return importlib.import_module("matplotlib.pyplot")


def _axes(plt: Any, height: float, title: str) -> tuple[Any, Any]:
    figure, axes = plt.subplots(figsize=(9, height))
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(color="#e3e6ec", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def _log_ticks(axis: Any, low: float, high: float, label: Any, tens: bool = False) -> None:
    values = svg.ticks(low, high, tens=tens)
    axis.set_major_locator(importlib.import_module("matplotlib.ticker").FixedLocator(values))
    axis.set_minor_locator(importlib.import_module("matplotlib.ticker").NullLocator())
    axis.set_ticklabels([label(v) for v in values])


def _bars(plt: Any, chart: Bars) -> Any:
    rows = sum(len(group) + 1 for _, group in chart.groups)
    figure, axes = _axes(plt, 0.9 + 0.24 * rows, f"{chart.title}: times as long as sparsekern")
    low, high = svg.range_of(chart)
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    _log_ticks(axes.xaxis, low, high, lambda v: f"{v:g}")
    y, places, labels = 0, [], []
    for case, group in chart.groups:
        places.append(y)
        labels.append(case)
        y -= 1
        for bar in group:
            style: dict[str, Any] = {"color": COLOURS.get(bar.kind)}
            if bar.kind == WRONG:
                style = {"facecolor": "none", "edgecolor": COLOURS["slower"], "linestyle": "--"}
            axes.barh(y, bar.value - 1, left=1, height=0.66, **style)
            axes.plot([bar.low, bar.high], [y, y], color="#1c2230", linewidth=0.8, alpha=0.6)
            where: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "va": "center"}
            axes.annotate(f"{digits(bar.value)} x{bar.mark}", (1.01, y), fontsize=8, color=SOFT, **where)
            places.append(y)
            labels.append(bar.label)
            y -= 1
    axes.axvline(1, color=SOFT, linewidth=1)
    axes.set_yticks(places, labels, fontsize=8)
    for label in axes.get_yticklabels():
        if label.get_text() in {case for case, _ in chart.groups}:
            label.set_fontweight("bold")
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.set_ylim(y + 0.4, 0.8)
    return figure


def _roofline(plt: Any, chart: Roofline) -> Any:
    figure, axes = _axes(plt, 5.2, "What the machine could do, and what was done")
    x0, x1, y0, y1 = svg.extent(chart)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(x0, x1)
    axes.set_ylim(y0, y1)
    _log_ticks(axes.xaxis, x0, x1, lambda v: f"{v:g}")
    _log_ticks(axes.yaxis, y0, y1, svg.engineering, tens=True)
    highest = chart.peaks[0][1]
    slope = [x0, highest / chart.bandwidth]
    axes.plot(slope, [v * chart.bandwidth for v in slope], color=SOFT, linewidth=1.4)
    middle = (max(x0, y0 / chart.bandwidth) * slope[1]) ** 0.5
    where: dict[str, Any] = {"xytext": (-6, 6), "textcoords": "offset points", "ha": "right"}
    axes.annotate("one read of memory", (middle, middle * chart.bandwidth), fontsize=8, color=SOFT, **where)
    for name, peak in chart.peaks:
        axes.plot([peak / chart.bandwidth, x1], [peak, peak], color=SOFT, linewidth=1.4)
        axes.annotate(
            name, (x1, peak), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8, color=SOFT
        )
    for ours in (False, True):
        points = [p for p in chart.points if p.ours is ours]
        wrong = [
            COLOURS["slower"] if p.verdict == WRONG else COLOURS["ours" if ours else "peer"] for p in points
        ]
        axes.scatter(
            [p.intensity for p in points],
            [p.speed for p in points],
            s=34 if ours else 18,
            c=wrong,
            zorder=3 + ours,
            label="sparsekern" if ours else "peers",
        )
    axes.set_xlabel("operations per byte of traffic at least")
    axes.set_ylabel("operations a second")
    axes.legend(loc="lower right", frameon=False)
    return figure


def _history(plt: Any, chart: History) -> Any:
    figure, axes = _axes(plt, 3.6, f"{chart.title}: cost over the runs (first run 1, down is faster)")
    axes.set_yscale("log")
    places = range(len(chart.runs))
    values = [v for line in chart.lines for s in line.spreads if s for v in s]
    low, high = min(0.8, *values) / 1.05, max(1.25, *values) * 1.05
    axes.set_ylim(low, high)
    _log_ticks(axes.yaxis, low, high, lambda v: f"{v:g}")
    for line in chart.lines:
        shown = [(i, v, s) for i, (v, s) in enumerate(zip(line.values, line.spreads, strict=True)) if v and s]
        x, y = [i for i, _, _ in shown], [v for _, v, _ in shown]
        errors = [[v - s[0] for _, v, s in shown], [s[1] - v for _, v, s in shown]]
        axes.errorbar(x, y, yerr=errors, marker="o", markersize=4, linewidth=1.4, capsize=2, label=line.label)
    axes.axhline(1, color=SOFT, linewidth=1)
    axes.set_xticks(list(places), [run.split()[0] for run in chart.runs], rotation=30, fontsize=8)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=8)
    return figure

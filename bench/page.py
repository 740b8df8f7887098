"""`--html`: everything a run says on one page that needs no other file, no network and no script."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from . import figures, svg
from .case import OURS, RIGHT, UNLIKE, WRONG
from .report import Rows, seconds
from .style import STYLE
from .text import digits, duration, spread
from .timing import BUSY, Spread

HOW = """All contenders run in one process, on the same threads, in turns; what is compared is compared
within rounds, and every result is checked against a reference first. Medians, and where the middle four
fifths lie."""
ROOF = """The roof is what a plain read of memory and products in registers reached in the same rounds.
<span style="color:var(--ours)">●</span> sparsekern, <span style="color:var(--peer)">●</span> peers. Above the
slope: data came from a cache."""
RATIOS = """Right of 1: the peer takes longer. The thin line holds the middle four fifths of the rounds.
Dashed: its result is wrong. *: it does other or less work, see the table."""
HISTORY = """The first run that has a case is 1, down is faster: our time as a part of the first right peer's
in the same run, so that another day on the machine is no change."""


def write(rows: Rows, earlier: Sequence[Rows], html: Path | None, png: Path | None) -> Iterator[Path]:
    """Write the page and the pictures that were asked for.

    Raises:
        ValueError: there are no rows, or pictures are wanted and matplotlib is missing.
    """
    if not rows:
        raise ValueError("there are no rows to draw")
    runs = [*earlier, rows]
    if html:
        html.parent.mkdir(parents=True, exist_ok=True)
        html.write_text(page(rows, runs))
        yield html
    if png:
        from . import png as pictures

        yield from pictures.write(rows, runs, png)


def page(rows: Rows, runs: Sequence[Rows]) -> str:
    """The whole page."""
    body = "\n".join(_body(rows, runs))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>sparsekern bench, {escape(rows[0]['device'])}</title>\n<style>\n{STYLE}\n</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _body(rows: Rows, runs: Sequence[Rows]) -> Iterator[str]:
    about = rows[0]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    yield "<h1>sparsekern bench</h1>"
    yield (
        f"<p>{escape(about['device'])}, {about['threads']} threads, {about['isa']}<br>"
        f'<span class="soft">{escape(versions)}; commit {escape(about["commit"])}, {about["date"]}; '
        f"<code>{escape(about['command'])}</code></span></p>"
    )
    yield from _warnings(rows)
    yield from _cards(rows)
    yield _note(HOW)
    roof = figures.roofline(rows)
    if roof is not None:
        yield f"<h2>What the machine could do, and what was done</h2>\n{_note(ROOF)}\n{svg.roofline(roof)}"
    charts = figures.bars(rows)
    if charts:
        yield f"<h2>Times as long as sparsekern</h2>\n{_note(RATIOS)}"
    yield from (f"<h3>{escape(chart.title)}</h3>\n{svg.bars(chart)}" for chart in charts)
    lines = figures.history(runs)
    if lines:
        yield f"<h2>Over the runs</h2>\n{_note(HISTORY)}"
    yield from (f"<h3>{escape(chart.title)}</h3>\n{svg.history(chart)}" for chart in lines)
    yield "<h2>All numbers</h2>"
    yield from _table(rows)


def _note(text: str) -> str:
    return f'<p class="soft">{text}</p>'


def _warnings(rows: Rows) -> Iterator[str]:
    wrong = [r for r in rows if r.get("verdict") == WRONG and r["contender"].startswith(OURS)]
    for row in wrong:
        what = f"{row['case']}, {row['contender']}: {row['remark']}"
        yield f'<p class="bad"><b>Wrong:</b> {escape(what)}</p>'
    busiest = max(row.get("busy", 0.0) for row in rows)
    if busiest > BUSY:
        part = f"up to {100 * busiest:.0f} % of the machine"
        yield f'<p class="bad">Others had {part} while this was measured: take care.</p>'


def _cards(rows: Rows) -> Iterator[str]:
    cards = []
    for name, cases, faster, mean in figures.summary(rows):
        cards.append(
            (
                f"{digits(mean)} x",
                f"as long takes {name}, geometric mean; slower in {faster} of {cases} cases",
            )
        )
    checked = [r for r in rows if r.get("verdict") == RIGHT and r["contender"].startswith(OURS)]
    ours = [r for r in rows if r["contender"].startswith(OURS)]
    cards.append((f"{len(checked)} of {len(ours)}", "of our results checked, and right"))
    yield '<div class="cards">'
    for big, small in cards:
        yield f'<div class="card"><b>{escape(big)}</b><span>{escape(small)}</span></div>'
    yield "</div>"


def _table(rows: Rows) -> Iterator[str]:
    yield (
        "<table><tr><th>contender</th><th>a call</th><th>times as long</th><th>of a read</th>"
        '<th>of products</th><th class="text">result</th></tr>'
    )
    case = None
    for row in rows:
        if (row["suite"], row["case"]) != case:
            case = (row["suite"], row["case"])
            yield f'<tr class="case"><td colspan="6">{escape(row["case"])}</td></tr>'
        css = ' class="ours"' if row["contender"].startswith(OURS) else ""
        cells = [
            f"<td>{escape(row['contender'])}</td>",
            f"<td>{duration(seconds(row))}</td>",
            f"<td>{spread(Spread(**row['ratio']))}</td>",
            *(f"<td>{_percent(row.get(key))}</td>" for key in ("of_read", "of_products")),
            f'<td class="text">{_result(row)}</td>',
        ]
        yield f"<tr{css}>{''.join(cells)}</tr>"
    yield "</table>"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f} %"


def _result(row: dict[str, Any]) -> str:
    verdict, remark, error = row.get("verdict", ""), row.get("remark", ""), row.get("error")
    off = f"off by {error:.1e}" if error else ""
    if verdict == WRONG:
        return f'<b class="bad">wrong</b>: {escape(remark)}'
    if verdict == UNLIKE:
        return escape("; ".join(filter(None, [remark, off])))
    return escape(off or ("right" if verdict == RIGHT else remark or "not checked"))

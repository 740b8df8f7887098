"""What recorded rows say: the table in the README."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .text import duration, spread
from .timing import Spread

Rows = Sequence[dict[str, Any]]
BEGIN, END = "<!-- measured -->\n", "<!-- end -->\n"
NOTHING = "Nothing is recorded yet: `sparsekern bench moe linear --json bench/results/NAME.jsonl` does it.\n"


def read(path: Path) -> Rows:
    """The rows of one run."""
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def seconds(row: Mapping[str, Any]) -> Spread:
    """Of one call."""
    return Spread(*(row[f"{name}_us"] / 1e6 for name in ("median", "p10", "p90")))


def fill(text: str, folder: Path) -> str:
    """The README with its table made anew from all runs in a folder."""
    runs = [read(path) for path in sorted(folder.glob("*.jsonl"))]
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}{''.join(map(markdown, runs)) or NOTHING}{END}{rest.partition(END)[2]}"


def markdown(rows: Rows) -> str:
    """One run: a line of circumstances, then a table for each suite with a column for each contender."""
    about = rows[0]
    versions = ", ".join(f"{k} {v}" for k, v in about["versions"].items() if k != "sparsekern")
    text = (
        f"{about['device']}, {about['threads']} threads, {about['isa']}; {versions}; "
        f"commit {about['commit']}, {about['date']}, `{about['command']}`.\n"
        "First a call's median [p10 .. p90], then how many times as long the others take, round by round.\n"
    )
    for suite in dict.fromkeys(row["suite"] for row in rows):
        text += "\n" + _pivot([row for row in rows if row["suite"] == suite])
    return text + "\n"


def _pivot(rows: Rows) -> str:
    contenders = list(dict.fromkeys(row["contender"] for row in rows))
    head = [f"| {rows[0]['suite']} | {' | '.join(contenders)} |", "|---|" + "---:|" * len(contenders)]
    lines = [f"{rows[0]['about']}\n", *head]
    for case in dict.fromkeys(row["case"] for row in rows):
        by_name = {row["contender"]: row for row in rows if row["case"] == case}
        cells = (_cell(by_name.get(name), name == contenders[0]) for name in contenders)
        lines.append(f"| {case} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(row: dict[str, Any] | None, first: bool) -> str:
    if row is None:
        return ""
    return duration(seconds(row)) if first else f"{spread(Spread(**row['ratio']))} x"

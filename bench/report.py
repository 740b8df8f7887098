"""What recorded rows say: the table in the README."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .case import OURS, UNLIKE, WRONG
from .text import duration, spread
from .timing import BUSY, Spread

Rows = Sequence[dict[str, Any]]
BEGIN, END = "<!-- measured -->\n", "<!-- end -->\n"
LIMITS = {"of_read": "a read", "of_products": "products"}
NOTHING = "Nothing is recorded yet: `sparsekern bench record --json bench/results/NAME.jsonl` does it.\n"


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
        "A call's median [p10 .. p90], and what part of the nearer limit it reached, one read of its bytes\n"
        "or products in registers, in the same rounds; then how many times as long the peers take, round by\n"
        "round. *: other or less work.\n"
    )
    busiest = max(row["busy"] for row in rows)
    if busiest > BUSY:
        text += f"Others had up to {100 * busiest:.0f} % of the machine meanwhile: take care.\n"
    for suite in dict.fromkeys(row["suite"] for row in rows):
        text += "\n" + _table([row for row in rows if row["suite"] == suite])
    return text + "\n"


def _table(rows: Rows) -> str:
    """A line for each case: ours, and how many times as long the others take."""
    lines = [f"{rows[0]['about']}\n", "| case | sparsekern | peers take |", "|---|---:|---|"]
    for case in dict.fromkeys(row["case"] for row in rows):
        first, *others = (row for row in rows if row["case"] == case)
        peers = [_peer(row) for row in others if not row["contender"].startswith(OURS)]
        limit = max(((row_of(first, k), what) for k, what in LIMITS.items()), default=(0.0, ""))
        part = f", {100 * limit[0]:.0f} % of {limit[1]}" if limit[0] else ""
        lines.append(f"| {case} | {duration(seconds(first))}{part} | {'; '.join(peers)} |")
    return "\n".join(lines) + "\n"


def row_of(row: Mapping[str, Any], name: str) -> float:
    """A number of a row; 0 where it has none."""
    return float(row.get(name) or 0.0)


def _peer(row: Mapping[str, Any]) -> str:
    mark = {WRONG: ", wrong", UNLIKE: " *"}.get(str(row.get("verdict")), "")
    return f"{row['contender']} {spread(Spread(**row['ratio']))} x{mark}"

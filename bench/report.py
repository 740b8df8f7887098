"""What recorded rows say: the table in the README."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .case import OURS, RIGHT, UNLIKE, WRONG
from .text import duration, spread
from .timing import BUSY, Spread

Rows = Sequence[dict[str, Any]]
BEGIN, END = "<!-- measured -->\n", "<!-- end -->\n"
MARKS = {RIGHT: "", UNLIKE: " *", WRONG: ", wrong"}
LIMITS = {"of_read": "a read", "of_products": "products"}
RECORD = "record"  # the suite
HEADLINES = (  # words, an op of the suite of record, and which of its cases: the first or the last
    ("an expert layer", "fused_moe", 0),
    ("the same, more tokens", "fused_moe", -1),
    ("routing", "route_topk", -1),
    ("routing, rows laid out and quantised", "router_gather", -1),
    ("the indexer with its top-k", "indexer_topk_paged", 0),
    ("top-k of long rows", "topk_per_row", 0),
    ("sparse attention, decode", "sparse_mla_decode", 0),
    ("sparse attention, prompt", "sparse_mla_prefill", -1),
    ("hyper-connections", "mhc_post_pre", -1),
    ("writing the KV cache", "kv_write", -1),
    ("FP8 quantisation", "quantize_fp8", -1),
)
NOTHING = "Nothing is recorded yet: `sparsekern bench record --json bench/results/NAME.jsonl` does it.\n"


def read(path: Path) -> Rows:
    """The rows of one run."""
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def seconds(row: Mapping[str, Any]) -> Spread:
    """Of one call."""
    return Spread(*(row[f"{name}_us"] / 1e6 for name in ("median", "p10", "p90")))


def fill(text: str, folder: Path) -> str:
    """The README with its table made anew: of the latest suite of record in a folder."""
    runs = [(read(path), path.with_suffix(".demo.json")) for path in folder.glob("*.jsonl")]
    found = [(rows, demo) for rows, demo in runs if any(row["suite"] == RECORD for row in rows)]
    table = NOTHING
    if found:
        rows, demo = max(found, key=lambda run: str(run[0][-1]["time"]))
        table = markdown(rows, json.loads(demo.read_text()) if demo.exists() else None)
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}{table}{END}{rest.partition(END)[2]}"


def markdown(rows: Rows, demo: Mapping[str, Any] | None = None) -> str:
    """One run: the circumstances, then a table of its headlines."""
    rows = [row for row in rows if row["suite"] == RECORD]
    about = rows[0]
    versions = ", ".join(f"{k} {v}" for k, v in about["versions"].items() if k in ("torch", "python"))
    text = (
        f"{about['device']}, {about['threads']} threads, {about['isa']}; {versions}; "
        f"commit {about['commit']}, {about['date']}. `sparsekern bench record` runs all of it.\n\n"
        "A call's median [p10 .. p90], and what part of the nearer limit it reached, one read of its bytes\n"
        "or products in registers, in the same rounds; then how many times as long torch takes, and the\n"
        "fastest other peer whose result is right. *: other or less work.\n"
    )
    busiest = max(row["busy"] for row in rows)
    if busiest > BUSY:
        text += f"Others had up to {100 * busiest:.0f} % of the machine meanwhile: take care.\n"
    lines = ["| what | sparsekern | peers take |", "|---|---:|---|"]
    for words, op, which in HEADLINES:
        cases = list(dict.fromkeys(row["case"] for row in rows if row["op"] == op))
        if cases:
            first, *others = (row for row in rows if row["case"] == cases[which])
            lines.append(f"| {words}: `{first['case']}` | {_ours(first)} | {_peers(others)} |")
    if demo is not None:
        ratios = " and ".join(f"{phase} {ratio:.2f} x" for phase, ratio in demo["speedup"].items())
        speeds = " and ".join(
            f"{demo['sparsekern'][f'{phase}_tokens_per_s']:.0f}" for phase in demo["speedup"]
        )
        lines.append(
            f"| a small DeepSeek-V4: `sparsekern demo` | {speeds} tokens/s | transformers: {ratios} |"
        )
    return "\n".join([text, *lines]) + "\n\n"


def _ours(row: Mapping[str, Any]) -> str:
    limit = max(((row_of(row, k), what) for k, what in LIMITS.items()), default=(0.0, ""))
    part = f", {100 * limit[0]:.0f} % of {limit[1]}" if limit[0] else ""
    return f"{duration(seconds(row))}{part}"


def _peers(others: Sequence[Mapping[str, Any]]) -> str:
    """Torch's own way, and whoever does the same work fastest; if nobody does, who does nearly the same."""
    peers = sorted(others, key=lambda r: float(r["ratio"]["median"]))
    of = {
        v: [r for r in peers if r.get("verdict") == v and not r["contender"].startswith(OURS)] for v in MARKS
    }
    best = (of[RIGHT] or of[UNLIKE])[:1]
    torch = [r for r in others if r["contender"] == "torch" and r not in best]
    return "; ".join(map(_peer, [*torch, *best])) or "nobody here does the same"


def row_of(row: Mapping[str, Any], name: str) -> float:
    """A number of a row; 0 where it has none."""
    return float(row.get(name) or 0.0)


def _peer(row: Mapping[str, Any]) -> str:
    mark = MARKS.get(str(row.get("verdict")), "")
    return f"{row['contender']} {spread(Spread(**row['ratio']))} x{mark}"

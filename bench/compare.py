"""Two runs of the same cases: what became slower, beyond the noise?

    sparsekern bench --compare BEFORE AFTER        (or python -m bench.compare BEFORE AFTER)

Both files hold rows as `--json` writes them. The machine between the runs is not the same machine, even if
it has the same name; so three things are compared, and only what is slower by all of them is called slower:
the time, the time beside the probes that ran in the same rounds, and the time beside the first peer that is
in both runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .case import OURS, WRONG
from .report import Rows, read, seconds
from .text import digits

NOISE = 0.05  # at least: what two runs of the same code differ by here anyway
Key = tuple[str, str, str]


@dataclass(frozen=True)
class Change:
    """One contender of ours in both runs."""

    key: Key
    before: float  # seconds
    after: float
    slower: float  # times, by the most favourable comparison
    faster: float  # times, by the least favourable one
    noise: float

    @property
    def verdict(self) -> str:
        """What it became, beyond the noise: slower, faster or neither."""
        if self.slower > 1 + self.noise:
            return "slower"
        return "faster" if self.faster > 1 + self.noise else ""


def changes(before: Rows, after: Rows) -> Iterator[Change]:
    """Of every contender of ours that both runs have."""
    old, new = ({_key(row): row for row in rows} for rows in (before, after))
    for key, row in new.items():
        if key in old and key[2].startswith(OURS):
            earlier = old[key]
            ratios = [a / b for a, b in _costs(earlier, row, old, new) if b > 0]
            noise = max(NOISE, sum(_half_width(r) ** 2 for r in (earlier, row)) ** 0.5)
            yield Change(
                key,
                seconds(earlier).median,
                seconds(row).median,
                slower=1 / max(ratios),
                faster=min(ratios),
                noise=noise,
            )


def _costs(
    a: Mapping[str, Any], b: Mapping[str, Any], old: Mapping[Key, Any], new: Mapping[Key, Any]
) -> Iterator[tuple[float, float]]:
    """What the call costs, before and after, by every measure that both rows have."""
    yield seconds(a).median, seconds(b).median
    best = "of_read" if (a.get("of_read") or 0) >= (a.get("of_products") or 0) else "of_products"
    if a.get(best) and b.get(best):
        yield 1 / a[best], 1 / b[best]
    suite, case, _ = _key(a)
    for key, peer in new.items():
        if (
            key[:2] == (suite, case)
            and key in old
            and not key[2].startswith(OURS)
            and peer.get("verdict") != WRONG
        ):
            yield (
                seconds(a).median / seconds(old[key]).median,
                seconds(b).median / seconds(peer).median,
            )
            return


def _key(row: Mapping[str, Any]) -> Key:
    return row["suite"], row["case"], row["contender"]


def _half_width(row: Mapping[str, Any]) -> float:
    s = seconds(row)
    return (s.p90 - s.p10) / 2 / s.median if s.median else 0.0


def report(before: Path, after: Path) -> int:
    """Print the changes; 1 if anything became slower or wrong, 2 if there is nothing to compare."""
    old, new = read(before), read(after)
    found = sorted(changes(old, new), key=lambda c: c.slower, reverse=True)
    if not found:
        print(f"{before} and {after} have no case in common", file=sys.stderr)
        return 2
    for c in found:
        mark = {"slower": "!", "faster": "*", "": " "}[c.verdict]
        times = f"{digits(1e6 * c.before)} -> {digits(1e6 * c.after)} us"
        what, noise = ": ".join(c.key), f"noise {100 * c.noise:.0f} %"
        print(f"{mark} {c.after / c.before:5.2f} x  {times:<24}  {what}  ({noise})")
    wrong = [row for row in new if row.get("verdict") == WRONG and row["contender"].startswith(OURS)]
    for row in wrong:
        print(f"! wrong: {': '.join(_key(row))}: {row['remark']}")
    counts = {v: sum(c.verdict == v for c in found) for v in ("slower", "faster", "")}
    print(f"{counts['slower']} slower, {counts['faster']} faster, {counts['']} within the noise")
    return int(bool(counts["slower"] or wrong))


def main(argv: Sequence[str] | None = None) -> int:
    """The command line of this module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    args = parser.parse_args(argv)
    return report(args.before, args.after)


if __name__ == "__main__":
    sys.exit(main())

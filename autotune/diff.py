"""Do two tunes say the same?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from sparsekern.records import Key, Record

from .tune import MARGIN

AGREE, WITHIN, DIFFER, ONLY_A, ONLY_B = "agree", "within_noise", "differ", "only_a", "only_b"


def compare(a: Iterable[Record], b: Iterable[Record]) -> list[tuple[str, Record]]:
    """Every key of either, and how the two choices for it are related: each in one way."""
    first, second = ({_at(r): r for r in found} for found in (a, b))
    found = []
    for key, r in first.items():
        other = second.get(key)
        if other is None:
            found.append((ONLY_A, r))
        elif dict(r.config) == dict(other.config):
            found.append((AGREE, r))
        else:
            found.append((WITHIN if _as_good(r, other) and _as_good(other, r) else DIFFER, r))
    return found + [(ONLY_B, r) for key, r in second.items() if key not in first]


def counts(related: Iterable[tuple[str, Record]]) -> dict[str, int]:
    """How many of each, and of all."""
    found = dict.fromkeys((AGREE, WITHIN, DIFFER, ONLY_A, ONLY_B), 0)
    for relation, _ in related:
        found[relation] += 1
    return {"entries": sum(found.values()), **found}


def _at(r: Record) -> tuple[str, str, Key]:
    return r.device, r.op, r.at


def _as_good(r: Record, other: Record) -> bool:
    """Whether one tune finds the other's choice as good as its own but for a win's margin or the noise."""
    there = next((t for t in r.tried if t.get("config") == dict(other.config)), None)
    median, p10, p90 = (_number(there, name) for name in ("median", "p10", "p90"))
    if median is None or p10 is None or p90 is None:
        return False
    half, rounds = (p90 - p10) / 2, float(_number(there, "rounds") or 1)
    return median <= 1 + max(MARGIN, max(half, r.spread) * min(1.0, 3 / math.sqrt(rounds)))


def _number(tried: Mapping[str, Any] | None, name: str) -> float | None:
    value = None if tried is None else tried.get(name)
    return float(value) if isinstance(value, (int, float)) else None

"""What a tune was worth: its choices beside the default's, and beside what the model chooses alone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparsekern import model
from sparsekern.device import cpu
from sparsekern.model import DEFAULT
from sparsekern.records import Key, Record, as_key

NEAR = 1.10  # times as long as the fastest: the model chose well


@dataclass(frozen=True)
class Worth:
    """What one record's measurements say."""

    over_default: float  # times as fast as the default
    over_model: float  # times as fast as what the model would have chosen
    of_best: float  # times as long as the fastest that the model's choice takes


def of(r: Record) -> Worth | None:
    """None where it was not measured here, or not what the model now chooses."""
    if r.device != cpu().name or set(r.config) != set(model.KNOBS):
        return None
    try:
        modelled = dict(model.choose(model.Problem(**r.key)).config)  # type: ignore[arg-type]
    except TypeError:
        return None
    took = _took(r)
    default, alone = took.get(as_key(DEFAULT.config)), took.get(as_key(modelled))
    if default is None or alone is None:
        return None
    return Worth(default, alone, alone / min(took.values()))


def summary(found: Iterable[Record]) -> dict[str, Any]:
    """Of all that can be judged: geometric means, the worst, and how often the model alone is good enough."""
    judged = [w for w in map(of, found) if w is not None]
    if not judged:
        return {"entries": 0}
    return {
        "entries": len(judged),
        "over_default": mean([w.over_default for w in judged]),
        "slowest_over_default": round(min(w.over_default for w in judged), 4),
        "over_model": mean([w.over_model for w in judged]),
        "model_within_10_percent": sum(w.of_best <= NEAR for w in judged),
        "model_worst": round(max(w.of_best for w in judged), 4),
    }


def text(s: Mapping[str, Any]) -> str:
    """The summary for people."""
    if not s["entries"]:
        return "no record that says what the default and the model's choice take here"
    near = s["model_within_10_percent"]
    return (
        f"{s['entries']} sizes: {s['over_default']:.3f} x as fast as the default (geometric mean; slowest "
        f"{s['slowest_over_default']:.3f} x), {s['over_model']:.3f} x as the model's choice,\n"
        f"which is within 10 % of the fastest in {near} of them, {100 * near / s['entries']:.0f} % "
        f"(worst {s['model_worst']:.2f} x)"
    )


def crossed(choices: Iterable[Record], judges: Iterable[Record]) -> list[float]:
    """How many times as fast as the default one tune's choices are by another's measurements."""
    seen = {(r.device, r.op, r.at): r for r in judges}
    found = []
    for r in choices:
        judge = seen.get((r.device, r.op, r.at))
        took = _took(judge) if judge else {}
        default, chosen = took.get(as_key(DEFAULT.config)), took.get(as_key(r.config))
        if default and chosen:
            found.append(default / chosen)
    return found


def _took(r: Record) -> dict[Key, float]:
    """How many times as long as the choice each configuration took."""
    pairs = ((t.get("config"), t.get("median")) for t in r.tried)
    return {
        as_key(c): float(m) for c, m in pairs if isinstance(c, dict) and isinstance(m, (int, float)) and m > 0
    }


def mean(ratios: Sequence[float]) -> float:
    """The geometric one."""
    return round(math.exp(statistics.fmean(math.log(max(r, 1e-3)) for r in ratios)), 4)

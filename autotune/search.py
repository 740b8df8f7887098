"""Which configurations are worth a measurement: enumerate, leave out with a reason, order by the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sparsekern import model
from sparsekern.model import DEFAULT, Machine, Problem

WORTH = 1.25  # times the best prediction: what is said to be slower is not tried
Config = dict[str, int]


@dataclass(frozen=True)
class Search:
    """What to try, the most promising first, and why the rest is not tried."""

    configs: list[Config]
    dropped: dict[str, str]


def search(
    p: Problem, always: Sequence[Mapping[str, int]], most: int, machine: Machine | None = None
) -> Search:
    """Some configurations that are always tried, the default, and at most that many others."""
    m = machine or Machine.here()
    found, dropped = model.candidates(p)
    cost = {_key(c): model.predict(p, c, m) for c in found}
    least = min(cost.values())
    ranked = sorted(found, key=lambda c: (cost[_key(c)], model.changes(c), _key(c)))
    worth = [c for c in ranked if cost[_key(c)] <= WORTH * least]
    if len(worth) < len(ranked):
        dropped[f"{len(ranked) - len(worth)} configurations"] = (
            f"predicted to take {WORTH} times the best or more"
        )
    kept = _spread_out(worth, most)
    if len(kept) < len(worth):
        dropped[f"{len(worth) - len(kept)} configurations"] = f"near to one of the {len(kept)} that are tried"
    tried: list[Config] = []
    for config in (*always, DEFAULT.config, *kept):
        if dict(config) not in tried:
            tried.append(dict(config))
    return Search(tried, dropped)


def _key(config: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(config.values())


def _spread_out(ranked: list[Config], most: int) -> list[Config]:
    """The best, then for each knob the best with each other value, then the next best."""
    if len(ranked) <= most:
        return ranked
    kept = ranked[:1]
    for name in DEFAULT.config:
        for value in dict.fromkeys(c[name] for c in ranked):
            if len(kept) < most and all(c[name] != value for c in kept):
                kept.append(next(c for c in ranked if c[name] == value))
    kept += [c for c in ranked if c not in kept][: most - len(kept)]
    return kept

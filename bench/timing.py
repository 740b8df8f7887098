"""Timing of several contenders side by side, on a machine that others use too.

Rounds go through all contenders, so that a slow minute slows all of them; what is compared is compared within
rounds. Before a round the machine should be idle: others' load is waited out, up to a limit, and reported.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Runs the work once; the argument counts the calls, to walk through copies of the data.
Contender = Callable[[int], Any]
BUSY = 0.2  # of the machine, used by others: more is not idle
LEAST = 3  # rounds, however long they take


@dataclass(frozen=True)
class Spread:
    """The middle of some measurements, and where the middle four fifths of them lie."""

    median: float
    p10: float
    p90: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one measurement."""
        v, last = sorted(values), len(values) - 1
        return cls(statistics.median(v), v[round(0.1 * last)], v[round(0.9 * last)])


@dataclass(frozen=True)
class Timings:
    """Seconds a call took, on average, in each round."""

    seconds: Mapping[str, Sequence[float]]
    calls: Mapping[str, int]  # that one round averages over
    waited: float  # seconds spent waiting for an idle machine
    busy: float  # the largest part of the machine that others had when a round began

    def of(self, name: str) -> Spread:
        """Seconds a call."""
        return Spread.of(self.seconds[name])

    def ratio(self, name: str, base: str) -> Spread:
        """How many times as long as `base` it takes, round by round."""
        return Spread.of([a / b for a, b in zip(self.seconds[name], self.seconds[base], strict=True)])


def measure(
    contenders: Mapping[str, Contender],
    *,
    probes: Mapping[str, Contender] | None = None,
    rounds: int = 15,
    round_seconds: float = 0.1,
    patience: float = 20.0,
    limit: float = math.inf,
    progress: Callable[[str, float], None] = lambda _, __: None,
) -> Timings:
    """Time every contender in every round, for about `round_seconds` each, once warm; probes run once.

    After `limit` seconds no round begins, but for the first three.
    """
    end = time.perf_counter() + limit
    calls = {name: _calls_for(run, round_seconds) for name, run in contenders.items()}
    everyone = {**contenders, **(probes or {})}
    calls |= dict.fromkeys(probes or (), 1)
    seconds: dict[str, list[float]] = {name: [] for name in everyone}
    order, waited, busiest = list(everyone), 0.0, 0.0
    for r in range(rounds):
        if r >= LEAST and time.perf_counter() > end:
            break
        progress(f"round {r + 1} of {rounds}", r / rounds)
        busy, took = wait_until_idle(patience - waited)
        waited, busiest = waited + took, max(busiest, busy)
        for name in order:
            run, n = everyone[name], calls[name]
            start = time.perf_counter()
            for i in range(r, r + n):
                run(i)
            seconds[name].append((time.perf_counter() - start) / n)
        order.append(order.pop(0))  # nobody always runs after the same neighbour
    return Timings(seconds, calls, waited, busiest)


def _calls_for(run: Contender, seconds: float) -> int:
    once = math.inf
    for i in range(2):
        start = time.perf_counter()
        run(i)
        once = min(once, time.perf_counter() - start)
        if once > (10, 1)[i] * seconds:
            return 1
    few = max(1, int(0.2 * seconds / max(once, 1e-7)))
    start = time.perf_counter()
    for i in range(few):
        run(i)
    return max(1, round(seconds * few / (time.perf_counter() - start)))


def wait_until_idle(patience: float) -> tuple[float, float]:
    """Wait while others use the machine; the part they still have, and the seconds it took."""
    start = time.perf_counter()
    while (busy := load()) > BUSY and time.perf_counter() - start < patience:
        time.sleep(0.2)
    return busy, time.perf_counter() - start


def load(seconds: float = 0.05) -> float:
    """The part of all processors' time that is used while this process sleeps; 0 where nobody can say."""
    before = cpu_times()
    time.sleep(seconds)
    return others(before, cpu_times(), 0.0)


def others(before: tuple[float, float], after: tuple[float, float], own: float) -> float:
    """The part of all processors' time between two readings that others used, own seconds being ours."""
    total = after[0] - before[0]
    return max(0.0, after[1] - before[1] - own) / total if total else 0.0


def cpu_times() -> tuple[float, float]:
    """Seconds of all processors since the start, and those not idle: in steps of some milliseconds."""
    try:
        with Path("/proc/stat").open() as f:
            ticks = [int(word) / os.sysconf("SC_CLK_TCK") for word in f.readline().split()[1:9]]
    except OSError:
        return 0.0, 0.0
    return sum(ticks), sum(ticks) - ticks[3] - ticks[4]

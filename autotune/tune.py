"""Tuning of one task: try the candidates, time those that survive beside the incumbent, decide."""

from __future__ import annotations

import datetime
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparsekern import model, records
from sparsekern.cli import load
from sparsekern.device import cpu
from sparsekern.model import Problem
from sparsekern.records import Record

from .child import Child, Trouble
from .search import Config, search
from .task import Task

machine, timing = load("sparsekern._bench.machine"), load("sparsekern._bench.timing")

MARGIN = 0.03  # by which a choice must beat the incumbent
TIE = 0.02  # within which two winners are the same, and the simpler one is taken
NOISY = 0.10  # of the incumbent beside itself: such measurements are not recorded
TIMED, WRONG, WORSE = "timed", "wrong", "worse"
WON, KEPT, REFUSED, FAILED = "won", "kept", "refused", "failed"


@dataclass(frozen=True)
class Effort:
    """How much to measure."""

    candidates: int = 10
    rounds: int = 15  # at most
    least_rounds: int = 5
    round_seconds: float = 0.03  # of a configuration in a round
    patience: float = 20.0  # seconds to wait for an idle machine, a task
    try_seconds: float = 10.0  # for one call, at least
    prepare_seconds: float = 120.0
    force: bool = False  # record on a busy machine too
    deadline: float = math.inf  # on time.monotonic's clock: stop measuring


@dataclass
class Tried:
    """A configuration and what became of it."""

    config: Config
    status: str = TIMED
    detail: str = ""
    predicted: float = 0.0  # seconds
    calls: int = 1
    ratios: list[float] = field(default_factory=list)  # to the incumbent, round by round
    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Of the ratios."""
        return statistics.median(self.ratios)

    @property
    def error(self) -> float:
        """Of the median."""
        s = timing.Spread.of(self.ratios)
        return float((s.p90 - s.p10) / 2 / len(self.ratios) ** 0.5)

    def as_json(self, of: float) -> dict[str, Any]:
        """For a record: ratios to the choice, whose ratio to the incumbent is `of`."""
        found: dict[str, Any] = {"config": self.config, "status": self.status}
        if self.detail:
            found["detail"] = self.detail[:120]
        if self.ratios:
            s = timing.Spread.of(self.ratios)
            found |= {name: round(value / of, 4) for name, value in vars(s).items()}
            found |= {
                "median_us": round(1e6 * statistics.median(self.seconds), 2),
                "rounds": len(self.ratios),
            }
        return found


@dataclass(frozen=True)
class Outcome:
    """What came of a task."""

    task: Task
    status: str
    reason: str = ""
    record: Record | None = None
    tried: tuple[Tried, ...] = ()
    dropped: Mapping[str, str] = field(default_factory=dict)
    over_model: float = 1.0  # times as fast as what the model would have chosen
    of_best: float = 1.0  # times as long as the fastest that the model's choice takes


def tune(
    task: Task,
    effort: Effort,
    folder: Path | None = None,
    progress: Callable[[str, float], None] = lambda _, __: None,
) -> Outcome:
    """Find the best configuration; the incumbent is the folder's record, else what would run anyway."""
    progress("waiting for an idle machine", 0.0)
    busy, _ = timing.wait_until_idle(effort.patience)
    if busy > timing.BUSY and not effort.force:
        return Outcome(task, REFUSED, f"others use {100 * busy:.0f} % of the machine")
    progress("preparing", 0.0)
    with Child(task, effort.prepare_seconds) as child:
        try:
            ready = child.prepare()
        except Trouble as trouble:
            return Outcome(task, FAILED, f"it {trouble.kind} with the default: {trouble}")
        if ready["complaint"]:
            return Outcome(task, FAILED, f"the default's result is wrong: {ready['complaint']}")
        problem = Problem(**ready["problem"])
        untuned = dict(model.choose(problem).config)
        incumbent = _recorded(problem, folder) or untuned
        found = search(problem, [incumbent, untuned], effort.candidates)
        tried = [Tried(config, predicted=_predict(problem, config)) for config in found.configs]
        _try_all(child, tried, ready["digest"], effort, progress)
        tried.sort(key=lambda t: t.status != TIMED)  # in trouble, an incumbent is none
        if tried[0].status != TIMED:
            return Outcome(
                task, FAILED, f"every one is {tried[0].status}: {tried[0].detail}", tried=tuple(tried)
            )
        apart = _time_all(child, tried, effort, progress)
    if len(apart) < 3:
        return Outcome(
            task, REFUSED, "there was no time to measure", tried=tuple(tried), dropped=found.dropped
        )
    spread = timing.Spread.of(apart)
    noise = max(abs(spread.median - 1), (spread.p90 - spread.p10) / 2)
    if noise > NOISY and not effort.force:
        reason = f"the same call beside itself differs by {100 * noise:.0f} %"
        return Outcome(task, REFUSED, reason, tried=tuple(tried), dropped=found.dropped)
    best = _decide(tried)
    fastest = min(t.median for t in tried if t.status in (TIMED, WORSE) and t.ratios)
    modelled = _timed(tried, untuned).median
    return Outcome(
        task,
        KEPT if best is tried[0] else WON,
        record=_record(task, problem, best, tried, noise, busy),
        tried=tuple(tried),
        dropped=found.dropped,
        over_model=modelled / best.median,
        of_best=modelled / min(fastest, best.median),
    )


def _timed(tried: list[Tried], config: Mapping[str, int]) -> Tried:
    """That configuration, or the incumbent where it was in trouble."""
    return next((t for t in tried if t.config == config and t.ratios), tried[0])


def _recorded(problem: Problem, folder: Path | None) -> Config | None:
    """What an earlier run chose."""
    if folder is not None:
        for record in records.read(folder / cpu().name / f"{problem.op}.jsonl"):
            if record.at == records.as_key(problem.key) and set(record.config) == set(model.KNOBS):
                return dict(record.config)
    return None


def _predict(problem: Problem, config: Config) -> float:
    return model.predict(problem, config, model.Machine.here())


def _try_all(child: Child, tried: list[Tried], digest: str, effort: Effort, progress: Any) -> None:
    """Call every configuration once: one that crashes, hangs or returns other bits is not timed."""
    slowest = effort.try_seconds
    for i, t in enumerate(tried):
        progress(f"trying {i + 1} of {len(tried)}", 0.1 + 0.2 * i / len(tried))
        try:
            answer = child.ask({"do": "try", "config": t.config}, slowest)
        except Trouble as trouble:
            t.status, t.detail = trouble.kind, str(trouble)
            continue
        if answer["digest"] != digest:
            t.status, t.detail = WRONG, answer["complaint"] or "other bits than the default's result"
        t.calls = max(1, round(effort.round_seconds / max(answer["seconds"], 1e-7)))
        if i == 0:
            slowest = max(slowest, 50 * answer["seconds"])


def _time_all(child: Child, tried: list[Tried], effort: Effort, progress: Any) -> list[float]:
    """Rounds through the incumbent, itself again and the others, until the winner is clear.

    Returns how many times as long as itself the incumbent took, round by round.
    """
    apart: list[float] = []
    first = tried[0]
    for r in range(effort.rounds):
        alive = [t for t in tried[1:] if t.status == TIMED]
        if (not alive and r >= effort.least_rounds) or time.monotonic() > effort.deadline:
            break
        progress(f"round {r + 1}, {len(alive)} left", 0.3 + 0.7 * r / effort.rounds)
        seconds = _round(child, [first, first, *alive], r, effort)
        if seconds is None:
            continue
        base = (seconds[0] + seconds[1]) / 2
        apart.append(seconds[1] / seconds[0])
        for t, s in zip([first, *alive], [base, *seconds[2:]], strict=True):
            t.seconds.append(s)
            t.ratios.append(s / base)
        if len(apart) >= effort.least_rounds and _clear(tried):
            break
    return apart


def _round(child: Child, lot: list[Tried], r: int, effort: Effort) -> list[float] | None:
    """Seconds of a call of each, in a rotating order; None if one of them was in trouble, which is noted."""
    turn = [(i + r) % len(lot) for i in range(len(lot))]
    question = {
        "do": "time",
        "configs": [lot[i].config for i in turn],
        "calls": [lot[i].calls for i in turn],
        "first": r,
    }
    longest = max(effort.try_seconds, 100 * effort.round_seconds)
    try:
        answer = child.ask(question, longest)["seconds"]
    except Trouble as trouble:
        culprit = lot[turn[trouble.at]] if trouble.at is not None else lot[0]
        culprit.status, culprit.detail = trouble.kind, f"{trouble}, in round {r + 1}"
        if culprit is lot[0]:
            raise
        return None
    return [answer[turn.index(i)] for i in range(len(lot))]


def _clear(tried: list[Tried]) -> bool:
    """Put aside what cannot win any more; whether nothing is left to find out."""
    for t in tried[1:]:
        if t.status == TIMED and t.median - 2 * t.error > 1 - MARGIN:
            t.status = WORSE
    alive = [t for t in tried[1:] if t.status == TIMED]
    if not alive:
        return True
    best = min(alive, key=lambda t: t.median)
    beaten = best.median + 2 * best.error
    for t in alive:
        if t is not best and t.median - 2 * t.error > beaten:
            t.status = WORSE
    rivals = [t for t in alive if t is not best and t.status == TIMED]
    return beaten < 1 - MARGIN and all(t.median < best.median * (1 + TIE) for t in rivals)


def _decide(tried: list[Tried]) -> Tried:
    """The simplest of those that beat the incumbent beyond the margin and are as good as the best."""
    winners = [t for t in tried[1:] if t.status == TIMED and t.ratios and t.median + t.error < 1 - MARGIN]
    if not winners:
        return tried[0]
    least = min(t.median for t in winners)
    good = [t for t in winners if t.median <= least * (1 + TIE)]
    return min(good, key=lambda t: (model.changes(t.config), t.predicted, tuple(t.config.values())))


def _record(
    task: Task, problem: Problem, best: Tried, tried: list[Tried], noise: float, busy: float
) -> Record:
    default = dict(model.DEFAULT.config)
    env = {"size": task.name, **machine.circumstances("sparsekern tune", {})}
    gone = ("about", "command", "date", "time")
    return Record(
        op=problem.op,
        device=cpu().name,
        key=problem.key,
        config=best.config,
        source="default" if best.config == default else "measured",
        version=model.VERSION,
        gain=round(_timed(tried, default).median / best.median, 4),
        spread=round(noise, 4),
        tried=tuple(t.as_json(best.median) for t in tried),
        env={**{k: v for k, v in env.items() if k not in gone}, "busy": round(busy, 3), "same_bits": True},
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )


def tune_safely(task: Task, effort: Effort, folder: Path | None, progress: Any) -> Outcome:
    """`tune`, with an incumbent that fails in the middle reported like any other failure."""
    try:
        return tune(task, effort, folder, progress)
    except Trouble as trouble:
        return Outcome(task, FAILED, f"the incumbent {trouble.kind} while it was timed: {trouble}")

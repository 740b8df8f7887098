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
from sparsekern.model import DEFAULT, Problem
from sparsekern.records import Record

from .child import Child, Trouble
from .search import Config, search
from .task import Task

machine, timing = load("sparsekern._bench.machine"), load("sparsekern._bench.timing")

MARGIN = 0.03  # by which a choice must beat the default, and what an incumbent may be behind the best
TIE = 0.02  # within which two winners are the same, and the simpler one is taken
NOISY = MARGIN  # where the default cannot be told from itself any better, nothing is recorded
SHORTEST = 0.1  # seconds of a round about which the system's clock of processors can say something
TIMED, WRONG, WORSE = "timed", "wrong", "worse"
WON, KEPT, REFUSED, FAILED = "won", "kept", "refused", "failed"


@dataclass(frozen=True)
class Effort:
    """How much to measure."""

    candidates: int = 10
    rounds: int = 60  # at most
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
    ratios: list[float] = field(default_factory=list)  # to the default, round by round
    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Of the ratios."""
        return statistics.median(self.ratios)

    @property
    def error(self) -> float:
        """Of the median."""
        return _error(self.ratios)

    def as_json(self, of: float) -> dict[str, Any]:
        """For a record: ratios to the choice, whose ratio to the default is `of`."""
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


def tune(
    task: Task,
    effort: Effort,
    folder: Path | None = None,
    progress: Callable[[str, float], None] = lambda _, __: None,
) -> Outcome:
    """Find the best configuration; the incumbent is the folder's record, else what would run anyway.

    Everything is compared with the default, which runs twice in each round: how much it differs from itself
    is the noise. Rounds in which others used the machine do not count.
    """
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
        found = search(problem, [DEFAULT.config, incumbent, untuned], effort.candidates)
        tried = [Tried(config, predicted=_predict(problem, config)) for config in found.configs]
        _try_all(child, tried, ready["digest"], effort, progress)
        if tried[0].status != TIMED:
            return Outcome(task, FAILED, f"the default {tried[0].status}: {tried[0].detail}")
        rounds = _time_all(child, tried, effort, progress)
    apart = [r.apart for r in rounds if r.counts]
    reason = ""
    if len(apart) < effort.least_rounds and len(apart) < len(rounds):
        reason = f"others used it in {len(rounds) - len(apart)} of {len(rounds)} rounds"
    elif len(apart) < 3:
        reason = "there was no time to measure"
    elif _doubt(apart) > NOISY and not effort.force:
        reason = f"the same call beside itself differs by {100 * _noise(apart):.0f} %"
    if reason:
        return Outcome(task, REFUSED, reason, tried=tuple(tried), dropped=found.dropped)
    best = _decide(tried, incumbent)
    busy = max(r.others for r in rounds if r.counts)
    return Outcome(
        task,
        KEPT if best is tried[0] else WON,
        record=_record(task, problem, best, tried, _noise(apart), busy),
        tried=tuple(tried),
        dropped=found.dropped,
    )


def _noise(apart: list[float]) -> float:
    """How much one call differs from itself, by its ratios to itself, in a round."""
    s = timing.Spread.of(apart)
    return float(max(abs(s.median - 1), (s.p90 - s.p10) / 2))


def _error(ratios: list[float]) -> float:
    """Of the median of some ratios."""
    s = timing.Spread.of(ratios)
    return float((s.p90 - s.p10) / 2 / math.sqrt(len(ratios)))


def _doubt(apart: list[float]) -> float:
    """What remains of the noise after so many rounds."""
    return max(_error(apart), abs(statistics.median(apart) - 1) - _error(apart))


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


@dataclass(frozen=True)
class Round:
    """One turn through all that are timed."""

    seconds: list[float]  # of a call of each
    others: float  # the part of the machine that others used meanwhile
    counts: bool = True

    @property
    def apart(self) -> float:
        """How many times as long as itself the default took."""
        return self.seconds[1] / self.seconds[0]


def _time_all(child: Child, tried: list[Tried], effort: Effort, progress: Any) -> list[Round]:
    """Rounds through the default, itself again and the others, until the winner is clear.

    Those in which others used the machine are made again, as long as there is patience.
    """
    rounds: list[Round] = []
    first, patience = tried[0], effort.patience
    while (counted := sum(r.counts for r in rounds)) < effort.rounds:
        alive = [t for t in tried[1:] if t.status == TIMED]
        if (not alive and counted >= effort.least_rounds) or time.monotonic() > effort.deadline:
            break
        progress(f"round {counted + 1}, {len(alive)} left", 0.3 + 0.7 * counted / effort.rounds)
        start = time.monotonic()
        done = _round(child, [first, first, *alive], len(rounds), effort)
        if done is None:
            continue
        rounds.append(done)
        if not done.counts:
            timing.wait_until_idle(patience)
            patience -= time.monotonic() - start
            if patience <= 0:
                break
            continue
        base = (done.seconds[0] + done.seconds[1]) / 2
        for t, s in zip([first, *alive], [base, *done.seconds[2:]], strict=True):
            t.seconds.append(s)
            t.ratios.append(s / base)
        apart = [r.apart for r in rounds if r.counts]
        if len(apart) >= effort.least_rounds and _clear(tried) and _doubt(apart) < NOISY / 2:
            break
    return rounds


def _round(child: Child, lot: list[Tried], r: int, effort: Effort) -> Round | None:
    """A call of each, in a rotating order; None if one of them was in trouble, which is noted."""
    turn = [(i + r) % len(lot) for i in range(len(lot))]
    question = {
        "do": "time",
        "configs": [lot[i].config for i in turn],
        "calls": [lot[i].calls for i in turn],
        "first": r,
    }
    longest = max(effort.try_seconds, 100 * effort.round_seconds)
    before, start = timing.cpu_times(), time.monotonic()
    try:
        answer = child.ask(question, longest)
    except Trouble as trouble:
        culprit = lot[turn[trouble.at]] if trouble.at is not None else lot[0]
        culprit.status, culprit.detail = trouble.kind, f"{trouble}, in round {r + 1}"
        if culprit is lot[0]:
            raise
        return None
    seconds = [answer["seconds"][turn.index(i)] for i in range(len(lot))]
    took = time.monotonic() - start
    others = timing.others(before, timing.cpu_times(), answer["spent"]) if took > SHORTEST else 0.0
    return Round(seconds, round(others, 3), effort.force or others <= timing.BUSY)


def _clear(tried: list[Tried]) -> bool:
    """Put aside what cannot be chosen any more; whether nothing is left to find out."""
    for t in tried[1:]:
        if t.status == TIMED and t.median - 2 * t.error > 1 - MARGIN:
            t.status = WORSE
    alive = [t for t in tried[1:] if t.status == TIMED]
    if not alive:
        return True
    best = min(alive, key=lambda t: t.median)
    beaten = best.median + 2 * best.error
    for t in alive:
        if t is not best and t.median - 2 * t.error > beaten * (1 + MARGIN):
            t.status = WORSE
    rivals = [t for t in alive if t is not best and t.status == TIMED]
    return beaten < 1 - MARGIN and all(t.median < best.median * (1 + TIE) for t in rivals)


def _decide(tried: list[Tried], incumbent: Config) -> Tried:
    """The default, unless others beat it beyond the margin and what chance may do.

    Of those the incumbent, if the best one is hardly better; else the simplest that is as good as the best.
    """
    winners = [t for t in tried[1:] if t.status == TIMED and t.ratios and t.median + t.error < 1 - MARGIN]
    if not winners:
        return tried[0]
    least = min(t.median for t in winners)
    for t in winners:
        if t.config == incumbent and t.median <= least * (1 + MARGIN):
            return t
    good = [t for t in winners if t.median <= least * (1 + TIE)]
    return min(good, key=lambda t: (model.changes(t.config), t.predicted, tuple(t.config.values())))


def _record(
    task: Task, problem: Problem, best: Tried, tried: list[Tried], noise: float, busy: float
) -> Record:
    env = {"size": task.name, **machine.circumstances("sparsekern tune", {})}
    gone = ("about", "command", "date", "time")
    return Record(
        op=problem.op,
        device=cpu().name,
        key=problem.key,
        config=best.config,
        source="default" if best is tried[0] else "measured",
        version=model.VERSION,
        gain=round(tried[0].median / best.median, 4),
        spread=round(noise, 4),
        tried=tuple(t.as_json(best.median) for t in tried),
        env={**{k: v for k, v in env.items() if k not in gone}, "busy": round(busy, 3), "same_bits": True},
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )


def tune_safely(task: Task, effort: Effort, folder: Path | None, progress: Any) -> Outcome:
    """`tune`, with a default that fails in the middle reported like any other failure."""
    try:
        return tune(task, effort, folder, progress)
    except Trouble as trouble:
        return Outcome(task, FAILED, f"the default {trouble.kind} while it was timed: {trouble}")

"""One workload, and what is known of it once it has been timed."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from . import roofline
from .check import Judgement, Truth
from .missing import Missing, attempt
from .timing import Contender, Spread, Timings, measure

# What a row says of its result.
RIGHT, WRONG, UNLIKE, UNCHECKED = "right", "wrong", "unlike", "unchecked"
OURS = "sparsekern"  # how our contenders' names begin
HOPELESS = 2.0  # seconds of a first call, and 50 times the fastest one: such a peer is not timed


@dataclass(frozen=True)
class Work:
    """The same work for every contender; the first one is ours, and the others are compared with it."""

    contenders: Mapping[str, Contender]
    bytes: Mapping[str, float] = field(default_factory=dict)  # that a contender must read or write at least
    limit: Mapping[str, str] = field(default_factory=dict)  # the probe of products that bounds it
    missing: Mapping[str, str] = field(default_factory=dict)  # peers that cannot run here, and why
    unlike: Mapping[str, str] = field(default_factory=dict)  # contenders that do other or less work, and what
    truth: Truth | None = None
    call: tuple[Any, Mapping[str, Any]] | None = None  # the op and its arguments
    derived: Callable[[Timings], Mapping[str, Spread]] = lambda _: {}  # more ratios of these timings


@dataclass(frozen=True)
class Case:
    """A workload that has not been made yet: whole suites are listed before any memory is taken."""

    suite: str
    name: str
    prepare: Callable[[], Work]
    dims: Mapping[str, int] = field(default_factory=dict)
    flops: float = 0.0
    about: Mapping[str, Any] = field(default_factory=dict)  # model, format, cache, routing ...


@dataclass(frozen=True)
class Row:
    """One contender of one case, timed."""

    contender: str
    seconds: Spread
    ratio: Spread  # to the case's first contender
    check: Judgement  # beside the reference
    verdict: str
    remark: str  # what it does differently, or what is wrong
    bytes: float
    of_read: float | None  # speed as a part of what a plain read reached beside it
    of_products: float | None  # ... of what products in registers reached


@dataclass(frozen=True)
class Outcome:
    """A case, timed."""

    case: Case
    work: Work
    rows: Sequence[Row]
    timings: Timings
    derived: Mapping[str, Spread]

    @property
    def wrong(self) -> list[str]:
        """Those of our own contenders whose results are wrong."""
        return [r.contender for r in self.rows if r.verdict == WRONG and r.contender.startswith(OURS)]


def run(case: Case, **how: Any) -> Outcome:
    """Make a case, check the results and time it; `how` goes to `measure`."""
    work, verdicts = _first_calls(case.prepare())
    probes = roofline.probes() if case.flops or work.bytes else {}
    t = measure(work.contenders, probes=probes, **how)
    first = next(iter(work.contenders))

    def part(amount: float, name: str, limit: list[float]) -> float | None:
        if not amount:
            return None
        rounds = zip(t.seconds[name], limit, strict=True)
        return statistics.median(amount / seconds / best for seconds, best in rounds)

    rows = []
    for name in work.contenders:
        traffic, products = work.bytes.get(name, 0.0), work.limit.get(name, roofline.PRODUCTS)
        check, verdict, remark = verdicts[name]
        of_read = part(traffic, name, roofline.bytes_per_second(t)) if probes else None
        of_products = part(case.flops, name, roofline.flops_per_second(t, products)) if probes else None
        rows.append(
            Row(name, t.of(name), t.ratio(name, first), check, verdict, remark, traffic, of_read, of_products)
        )
    return Outcome(case, work, rows, t, work.derived(t))


def _first_calls(work: Work) -> tuple[Work, dict[str, tuple[Judgement, str, str]]]:
    """Call everyone once and look at the result; a peer that cannot do this size leaves, with its reason."""
    verdicts, missing, fastest = {}, dict(work.missing), math.inf
    for name, contender in work.contenders.items():
        ours = name.startswith(OURS)
        start = time.perf_counter()
        result = contender(0) if ours else attempt(contender, 0)
        took = time.perf_counter() - start
        fastest = min(fastest, took)
        if isinstance(result, Missing):
            missing[name] = str(result)
        elif took > max(HOPELESS, 50 * fastest) and not ours:
            missing[name] = f"too slow to time: a call took {took:.0f} s"
        else:
            verdicts[name] = _verdict(work, name, result)
    left = {name: work.contenders[name] for name in verdicts}
    return dataclasses.replace(work, contenders=left, missing=missing), verdicts


def _verdict(work: Work, name: str, result: Any) -> tuple[Judgement, str, str]:
    """What the reference says of one contender's result, the verdict, and a remark."""
    unlike = work.unlike.get(name, "")
    if work.truth is None:
        return Judgement(None, ""), UNLIKE if unlike else UNCHECKED, unlike
    check = work.truth.judge(result, name.startswith(OURS))
    if unlike:
        return check, UNLIKE, unlike
    if check.error is None:
        return check, UNCHECKED, check.complaint
    return check, WRONG if check.complaint else RIGHT, check.complaint


def as_json(outcome: Outcome, circumstances: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows as flat objects: a number never travels without its circumstances."""
    t, case = outcome.timings, outcome.case
    limits = roofline.summary(t)
    return [
        {
            "suite": case.suite,
            "case": case.name,
            "dims": dict(case.dims),
            **case.about,
            "contender": row.contender,
            **{f"{name}_us": round(1e6 * value, 3) for name, value in vars(row.seconds).items()},
            "ratio": {name: round(value, 4) for name, value in vars(row.ratio).items()},
            "error": row.check.error,
            "max_abs": row.check.largest,
            "max_rel": row.check.relative,
            "verdict": row.verdict,
            "remark": row.remark,
            "flops": case.flops,
            "bytes": row.bytes,
            "of_read": row.of_read,
            "of_products": row.of_products,
            "derived": {k: {n: round(v, 4) for n, v in vars(s).items()} for k, s in outcome.derived.items()},
            **limits,
            "rounds": len(t.seconds[row.contender]),
            "calls": t.calls[row.contender],
            "waited_s": round(t.waited, 1),
            "busy": round(t.busy, 3),
            **circumstances,
        }
        for row in outcome.rows
    ]

"""`sparsekern bench`: time suites, print tables, write rows, pages and traces."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from sparsekern.catalogue import OPS
from sparsekern.config import ISAS, config

from . import baselines, compare, figures, flashinfer, page
from .case import as_json
from .case import run as run_case
from .loads import ROUTINGS
from .machine import circumstances
from .models import FAMILIES, FORMATS, MODELS, At, called
from .opcase import COLD, WARM
from .report import read
from .suites import SUITES, Choice
from .text import heading, summary, table

TRACES = "flashinfer-trace"
RECORD = 600.0  # seconds that the suite of record may take


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "\n".join(
        ["suites:", *(f"  {name:<12}  {suite.__doc__}" for name, suite in SUITES.items()), "", _EXAMPLES]
    )
    parser.add_argument(
        "suites", nargs="*", metavar="SUITE", help="what to run (record; ops where something is chosen)"
    )
    what = parser.add_argument_group("what to measure").add_argument
    what("--op", nargs="+", default=[], choices=list(OPS), metavar="NAME", help="only these ops of the suite")
    what("--model", nargs="+", default=[], metavar="NAME", help=", ".join((*MODELS, *FAMILIES)))
    what("--tokens", nargs="+", type=int, default=[], metavar="N", help="tokens at once (1 16 512)")
    what(
        "--shape",
        nargs="+",
        type=size,
        default=[],
        metavar="K=V",
        help="sizes instead of the first recorded ones",
    )
    what("--weights", nargs="+", default=[], choices=list(FORMATS), metavar="FORMAT", help=", ".join(FORMATS))
    what(
        "--cache",
        nargs="+",
        default=[COLD],
        choices=[COLD, WARM],
        help="weights from memory, or as left by the last call (cold)",
    )
    what(
        "--routing",
        nargs="+",
        default=[],
        choices=list(ROUTINGS),
        help="where tokens go, where an op has experts (as recorded)",
    )
    what("--context", type=int, default=32768, metavar="N", help="tokens that a model has cached (32768)")
    what(
        "--memory",
        type=float,
        default=2.0,
        metavar="GB",
        help="of a model's experts as bf16: fewer of them where all are more (2)",
    )
    what("--list", action="store_true", help="only say which cases there are")
    how = parser.add_argument_group("how").add_argument
    how("--threads", type=int, metavar="N", help="threads of torch and of sparsekern")
    how("--isa", choices=ISAS, help="the instruction set that sparsekern may use at most")
    how("--compile", action="store_true", help="time torch.compile too; it needs a C++ compiler and patience")
    how("--rounds", type=int, default=15, metavar="N", help="rounds through all contenders (15)")
    how("--seconds", type=float, default=0.1, metavar="S", help="of a contender in a round (0.1)")
    how("--patience", type=float, default=20.0, metavar="S", help="to wait for an idle machine, a case (20)")
    how(
        "--budget",
        type=float,
        metavar="S",
        help=f"for everything: fewer rounds, cases left out at the end (record: {RECORD:.0f})",
    )
    out = parser.add_argument_group("results").add_argument
    out("--json", type=Path, metavar="FILE", help="write every row to a file, one JSON object a line")
    out(
        "--resume",
        action="store_true",
        help="add to the file the cases that it does not have, each as long as without a budget",
    )
    out("--html", type=Path, metavar="FILE", help="write one page: rooflines, ratios, history")
    out("--png", type=Path, metavar="DIR", help="write the page's plots as pictures (needs matplotlib)")
    out(
        "--format",
        choices=["table", TRACES],
        default="table",
        help="flashinfer-trace: also write what FlashInfer-Bench reads",
    )
    out(
        "--out",
        type=Path,
        default=Path("flashinfer-trace"),
        metavar="DIR",
        help="where to (flashinfer-trace)",
    )
    out(
        "--history",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="earlier runs, or folders of them, for the page",
    )
    out(
        "--from",
        type=Path,
        nargs="+",
        dest="recorded",
        metavar="FILE",
        help="make the page of recorded rows; measure nothing",
    )
    out(
        "--compare",
        nargs=2,
        type=Path,
        metavar="FILE",
        help="say how a run differs from an earlier one; 1 if slower",
    )


_EXAMPLES = """\
examples:
  sparsekern bench --html here.html                       is it faster than torch here? ten minutes, one page
  sparsekern bench moe --html moe.html                    the same of expert layers alone
  sparsekern bench --op gemm --model V3.2 --tokens 1 16   the dense layers of DeepSeek-V3.2
  sparsekern bench --op fused_moe --shape T=4 H=2880 I=2880 E=32 top_k=4 --weights fp4
  sparsekern bench record --json after.jsonl && sparsekern bench --compare before.jsonl after.jsonl"""


def size(text: str) -> tuple[str, int]:
    """Read NAME=NUMBER.

    Raises:
        ArgumentTypeError: it is not that.
    """
    name, _, value = text.partition("=")
    if not name or not value.lstrip("-").isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=NUMBER")
    return name, int(value)


def run(args: argparse.Namespace) -> int:
    """Run the suites; 2 for a wrong call, 1 where one of our results is wrong or has become slower."""
    unknown = [name for name in args.suites if name not in SUITES]
    if unknown:
        known = ", ".join(SUITES)
        print(f"sparsekern bench: no suite is called {unknown[0]!r}, choose from {known}", file=sys.stderr)
        return 2
    if args.compare:
        return compare.report(*args.compare)
    if args.recorded:
        rows = [row for path in args.recorded for row in read(path)]
        return _write_page(args, rows)
    if args.threads:
        torch.set_num_threads(args.threads)
    chosen = args.op or args.model or args.tokens or args.shape or args.weights or args.routing
    args.suites = args.suites or ["ops" if chosen else "record"]
    if args.suites == ["record"] and args.budget is None and not args.resume:
        args.budget = RECORD
    try:
        with config.using(**({"isa": args.isa} if args.isa else {})):
            return _measure(args)
    except ValueError as error:
        print(f"sparsekern bench: {error}", file=sys.stderr)
        return 2


def _measure(args: argparse.Namespace) -> int:
    choice = Choice(
        tuple(args.op),
        called(args.model),
        tuple(args.tokens),
        dict(args.shape),
        tuple(args.weights),
        tuple(args.cache),
        tuple(args.routing),
        At(context=args.context, memory=args.memory * 1e9),
        args.compile,
    )
    cases = [case for name in args.suites for case in SUITES[name](choice)]
    if args.list:
        print("\n".join(f"{case.suite}: {case.name}" for case in cases))
        return 0
    about = circumstances(f"sparsekern {' '.join(sys.argv[1:])}", baselines.versions())
    rows, wrong = _earlier(args, about), []
    known = {(row["suite"], row["case"]) for row in rows}
    cases = [case for case in cases if (case.suite, case.name) not in known]
    print(heading(about))
    progress = Progress(len(cases), args.budget)
    with ExitStack() as files, torch.no_grad():
        sink = files.enter_context(args.json.open("a" if rows else "w")) if args.json else None
        traces = flashinfer.Traces(args.out) if args.format == TRACES else None
        for i, case in enumerate(cases):
            if progress.late(i):
                print(f"\n{len(cases) - i} cases left out: {args.budget:.0f} seconds are over")
                break
            if i == 0 or case.suite != cases[i - 1].suite:
                about["about"] = SUITES[case.suite].__doc__
                progress.clear()
                print(f"\n{case.suite}: {about['about']}")
            outcome = run_case(case, **_effort(args, progress, i), progress=progress.of(i, case))
            progress.clear()
            print(f"\n{table(outcome)}", flush=True)
            wrong += [f"{case.name}: {name}" for name in outcome.wrong]
            for row in as_json(outcome, about):
                rows.append(row)
                if sink:
                    print(json.dumps(row), file=sink, flush=True)
            if traces:
                traces.add(outcome, about)
    answer = summary(figures.summary(rows))
    if answer:
        print(f"\n{answer}")
    if wrong:
        print("\nWRONG results of sparsekern, please report them:\n  " + "\n  ".join(wrong), file=sys.stderr)
    return max(_write_page(args, rows), bool(wrong))


def _earlier(args: argparse.Namespace, about: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a run that goes on.

    Raises:
        ValueError: they are of other circumstances, or there is no file to add to.
    """
    if not args.resume:
        return []
    if args.json is None:
        raise ValueError("--resume needs the --json FILE that it goes on with")
    rows = list(read(args.json)) if args.json.exists() else []
    for row in rows:
        for name in ("device", "threads", "isa", "commit", "versions"):
            if row[name] != about[name]:
                raise ValueError(f"{args.json} has rows of {name} {row[name]}, this is {about[name]}")
    return rows


def _effort(args: argparse.Namespace, progress: Progress, i: int) -> dict[str, Any]:
    """Rounds, their length and the patience for a case; a budget shortens all of them alike."""
    rounds, seconds, patience, limit = max(1, args.rounds), args.seconds, args.patience, math.inf
    if args.budget and not args.resume:
        share = progress.share(i)
        rounds = max(min(rounds, 9), 1)
        seconds = min(seconds, 0.3 * share / (rounds * 8))  # making a case takes longer than timing it
        patience, limit = min(patience, 0.2 * share), 0.7 * share
    return {"rounds": rounds, "round_seconds": seconds, "patience": patience, "limit": limit}


def _write_page(args: argparse.Namespace, rows: Sequence[dict[str, Any]]) -> int:
    if not (args.html or args.png):
        return 0
    history = [
        path
        for given in args.history
        for path in (sorted(given.glob("*.jsonl")) if given.is_dir() else [given])
    ]
    try:
        for written in page.write(rows, [read(path) for path in history], args.html, args.png):
            print(f"wrote {written}")
    except ValueError as error:
        print(f"sparsekern bench: {error}", file=sys.stderr)
        return 2
    return 0


class Progress:
    """A bar on the terminal that says where we are; nothing where there is no terminal."""

    WIDTH = 24

    def __init__(self, count: int, budget: float | None) -> None:
        self.count, self.budget, self.on = count, budget, sys.stderr.isatty()
        self.start = time.monotonic()

    def of(self, i: int, case: Any) -> Callable[[str, float], None]:
        """What `measure` calls when a case gets on."""

        def show(text: str, part: float = 0.0) -> None:
            if not self.on:
                return
            done = (i + part) / self.count
            filled = round(self.WIDTH * done)
            passed = time.monotonic() - self.start
            left = f", {_minutes(passed / done - passed)} left" if done > 0.02 else ""
            bar = "#" * filled + "." * (self.WIDTH - filled)
            line = f"[{bar}] {i + 1} of {self.count}: {case.name}, {text}{left}"
            print(f"\r\033[K{line[:150]}", end="", file=sys.stderr, flush=True)

        show("preparing")
        return show

    def clear(self) -> None:
        """Leave no trace."""
        if self.on:
            print("\r\033[K", end="", file=sys.stderr, flush=True)

    def share(self, i: int) -> float:
        """Seconds of the budget for case i."""
        left = (self.budget or 0.0) - (time.monotonic() - self.start)
        return max(left, 0.0) / (self.count - i)

    def late(self, i: int) -> bool:
        """Whether the budget is used up."""
        return self.budget is not None and time.monotonic() - self.start > self.budget


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"

"""`sparsekern bench`: time suites, print tables, write rows."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from sparsekern.catalogue import OPS

from . import baselines, roofline
from .case import Outcome, Row, as_json, circumstances
from .case import run as run_case
from .report import changes, read
from .suites import SUITES, Choice
from .text import duration, spread
from .timing import BUSY, Spread, Timings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add = parser.add_argument
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "suites:\n" + "\n".join(
        f"  {name:<20}  {suite.__doc__}" for name, suite in SUITES.items()
    )
    add("suites", nargs="*", metavar="SUITE", help="what to run (ops)")
    add("--op", nargs="+", default=[], choices=list(OPS), metavar="NAME", help="only these ops of the suite")
    add("--json", type=Path, metavar="FILE", help="write every row to a file, one JSON object a line")
    add("--compare", nargs=2, type=Path, metavar="FILE", help="say how a run differs from an earlier one")
    add("--compile", action="store_true", help="time torch.compile too; it needs a C++ compiler and patience")
    add("--threads", type=int, metavar="N", help="threads of torch and of sparsekern")
    add("--rounds", type=int, default=15, metavar="N", help="rounds through all contenders (15)")
    add("--seconds", type=float, default=0.1, metavar="S", help="of a contender in a round (0.1)")
    add("--patience", type=float, default=20.0, metavar="S", help="to wait for an idle machine, a case (20)")


def run(args: argparse.Namespace) -> int:
    """Run the suites; 2 for one that there is not."""
    unknown = [name for name in args.suites if name not in SUITES]
    if unknown:
        known = ", ".join(SUITES)
        print(f"sparsekern bench: no suite is called {unknown[0]!r}, choose from {known}", file=sys.stderr)
        return 2
    if args.compare:
        print("\n".join(changes(*map(read, args.compare))))
        return 0
    if args.threads:
        torch.set_num_threads(args.threads)
    about = circumstances(f"sparsekern {' '.join(sys.argv[1:])}", baselines.versions())
    print(heading(about))
    with ExitStack() as files, torch.no_grad():
        sink = files.enter_context(args.json.open("w")) if args.json else None
        for name in args.suites or ["ops"]:
            about["about"] = SUITES[name].__doc__
            print(f"\n{name}: {about['about']}")
            for case in SUITES[name](Choice(tuple(args.op), args.compile)):
                progress = Progress(f"{name}: {case.name}")
                outcome = run_case(
                    case,
                    rounds=max(1, args.rounds),
                    round_seconds=args.seconds,
                    patience=args.patience,
                    progress=progress.show,
                )
                progress.clear()
                print(f"\n{table(outcome)}", flush=True)
                for row in as_json(outcome, about) if sink else ():
                    print(json.dumps(row), file=sink, flush=True)
    return 0


class Progress:
    """A line on the terminal that says where we are; nothing where there is no terminal."""

    def __init__(self, what: str) -> None:
        self.what, self.on = what, sys.stderr.isatty()

    def show(self, text: str) -> None:
        """Say something else."""
        if self.on:
            print(f"\r\033[K{self.what}, {text}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Leave no trace."""
        if self.on:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def heading(about: Mapping[str, Any]) -> str:
    """The circumstances, and how to read what follows."""
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return (
        f"{about['device']}, {about['threads']} threads, {about['isa']}\n"
        f"{versions}, commit {about['commit']}, {about['date']}\n"
        "median [p10 .. p90] of a call; x: times as long as the first, round by round"
    )


def table(outcome: Outcome) -> str:
    """A case for people: medians [p10 .. p90], and how many times as long as the first contender."""
    case, first = outcome.case, outcome.rows[0]
    cells = [
        (
            row.contender,
            duration(row.seconds),
            "" if row is first else f"{spread(row.ratio)} x",
            ", ".join(notes(row, first)),
        )
        for row in outcome.rows
    ]
    a, b, c = (max(len(row[i]) for row in cells) for i in range(3))
    lines = [case.name]
    lines += [
        f"  {name:<{a}}  {took:>{b}}  {ratio:>{c}}  {note}".rstrip() for name, took, ratio, note in cells
    ]
    lines += [f"  {name}: {spread(value)}" for name, value in outcome.derived.items()]
    lines += [f"  {name}: not here, {why}" for name, why in case.missing.items()]
    return "\n".join([*lines, *(f"  {line}" for line in weather(outcome.timings))])


def notes(row: Row, first: Row) -> list[str]:
    """The limit that the contender is nearer to, and how far its result is from the first one's."""
    found = []
    if row.of_read is not None:
        part, limit = max((row.of_read, "a read"), (row.of_products or 0.0, "products"))
        found.append(f"{100 * part:.0f} % of {limit}")
    if row is not first and row.differs:
        found.append(f"differs by {row.differs:.1e}")
    return found


def weather(t: Timings) -> list[str]:
    """What the machine could do in the same rounds, and whether it was ours."""
    lines = []
    if roofline.READ in t.seconds:
        read, products = Spread.of(roofline.bytes_per_second(t)), Spread.of(roofline.flops_per_second(t))
        lines.append(f"(a read: {spread(read, 1e9)} GB/s, products: {spread(products, 1e9)} GFLOP/s)")
    if t.busy > BUSY:
        lines.append(f"(others had up to {100 * t.busy:.0f} % of the machine: take care)")
    return lines

"""`sparsekern tune run`: tune size after size, record, report."""

from __future__ import annotations

import argparse
import math
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from sparsekern import cuda_model, model, plan, records
from sparsekern.cli import load
from sparsekern.config import config
from sparsekern.device import cpu

from . import modelled, worth
from .search import search
from .task import Task
from .tune import FAILED, REFUSED, Effort, Outcome, tune_safely
from .worker import make

ATTEMPTS = 3  # at a size on a machine that others use
command, models, suites = (load(f"sparsekern._bench.{part}") for part in ("command", "models", "suites"))


def run(args: argparse.Namespace) -> int:
    """Tune every size; 1 if one failed, 3 if nothing could be recorded because the machine is busy."""
    tasks = _tasks(args)
    folder = args.out or records.user_folder()
    if args.device not in ("", cpu().name):
        return _model(args, tasks, folder)
    if args.list:
        _list_tasks(tasks, args)
        return 0
    _check_writable(folder)
    if args.resume:
        tasks = _unrecorded(args, tasks, folder)
    print(f"{cpu().name}, {args.threads or config.threads} threads, {args.isa or config.isa}; ", end="")
    print(f"{len(tasks)} sizes, records go to {folder}")
    done = _tune_all(args, tasks, folder)
    plan.reload()
    print(_summary(done))
    statuses = {o.status for o in done}
    return 1 if FAILED in statuses else 3 if statuses == {REFUSED} else 0


def _tune_all(args: argparse.Namespace, tasks: Sequence[Task], folder: Path) -> list[Outcome]:
    """The last outcome of every size; what was refused is tried again at the end, if a budget leaves time."""
    progress, turns, last = command.Progress(len(tasks), args.budget), list(tasks), dict[str, Outcome]()
    for i, task in enumerate(turns):  # which grows
        passed = time.monotonic() - progress.start
        left = math.inf if args.budget is None else args.budget - passed
        if left <= passed / max(i, 1):  # what a size takes
            break
        share = progress.share(i) if args.budget and not args.resume else math.inf
        effort = Effort(
            args.candidates,
            args.rounds,
            round_seconds=args.seconds,
            patience=min(args.patience, 0.3 * share),
            force=args.force,
            deadline=time.monotonic() + min(1.5 * share, left),
        )
        outcome = last[task.name] = tune_safely(task, effort, folder, progress.of(i, task))
        progress.clear()
        print(_line(outcome), flush=True)
        if outcome.record is not None:
            records.write(folder, [outcome.record])
        if outcome.status == REFUSED and args.budget and turns.count(task) < ATTEMPTS:
            turns.append(task)
            progress.count += 1
    if len(last) < len(tasks):
        print(f"{len(tasks) - len(last)} sizes left out: {args.budget:.0f} seconds are over")
    return list(last.values())


def _model(args: argparse.Namespace, tasks: Sequence[Task], folder: Path) -> int:
    """Records of a device that is not here: what the model of CUDA's tiles says, measured by nobody.

    Raises:
        ValueError: the device is none of those that are modelled.
    """
    if args.device not in cuda_model.GPUS:
        raise ValueError(f"{args.device!r} is neither here nor modelled: {', '.join(cuda_model.GPUS)}")
    found = modelled.made(args.device, [(t.op, t.dims) for t in tasks if t.op in cuda_model.OPS])
    if args.list:
        print("\n".join(f"{r.op} {dict(r.key)}: {model.describe(r.config)}" for r in found))
        return 0
    records.write(folder, found)
    print(
        f"no {args.device} here: {len(found)} records of what the model says, marked modelled, go to {folder}"
    )
    return 0


def _unrecorded(args: argparse.Namespace, tasks: Sequence[Task], folder: Path) -> list[Task]:
    """Those that the folder has no record of, with as many threads and the same instructions."""
    here = (args.threads or config.threads, args.isa or config.isa)
    known = {
        r.env.get("size")
        for r in records.read_folder(folder, cpu().name)
        if r.version == model.VERSION and (r.key.get("threads"), r.key.get("isa")) == here
    }
    return [t for t in tasks if t.name not in known]


def _check_writable(folder: Path) -> None:
    """Before an hour of measuring, not after.

    Raises:
        OSError: records cannot be written there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / ".probe"
    probe.write_text("")
    probe.unlink()


def _tasks(args: argparse.Namespace) -> list[Task]:
    for given in args.weights:
        if given not in models.FORMATS:
            raise ValueError(f"no format is called {given!r}, choose from {', '.join(models.FORMATS)}")
    try:
        shape = dict(map(command.size, args.shape))
    except argparse.ArgumentTypeError as error:
        raise ValueError(str(error)) from error
    at = (
        models.At(memory=math.inf) if args.device in cuda_model.GPUS else models.At()
    )  # all experts of a model
    ops, tokens, weights = tuple(args.op), tuple(args.tokens), tuple(args.weights)
    choice = suites.Choice(ops, models.called(args.model), tokens, shape, weights, at=at)
    chosen = choice.models or choice.shape
    sizes = ((op, dims) for _, op, dims in suites.sizes(choice) if chosen or op.bytes(dims) < 3e8)
    return [Task(op.name, dims, args.threads, args.isa) for op, dims in sizes]


def _list_tasks(tasks: Sequence[Task], args: argparse.Namespace) -> None:
    for task in tasks:
        problem = make(task).problem
        found = search(problem, [model.choose(problem).config], args.candidates)
        print(f"{task.name}: {len(found.configs)} to try")
        for what, why in found.dropped.items():
            print(f"    not {what}: {why}")


def _line(outcome: Outcome) -> str:
    """One task, for people."""
    text = f"{outcome.task.name}: "
    trouble = Counter(t.status for t in outcome.tried if t.status not in ("timed", "worse"))
    tail = "".join(f", {count} {status}" for status, count in trouble.items())
    r = outcome.record
    if r is None:
        return f"{text}{outcome.status}: {outcome.reason}{tail}"
    how = f"noise {100 * r.spread:.0f} %, {len(outcome.tried)} tried{tail}"
    if r.source == "default":
        return f"{text}nothing beats the default ({how})"
    return f"{text}{model.describe(r.config)}: {r.gain:.2f} x as fast as the default ({how})"


def _summary(done: Sequence[Outcome]) -> str:
    counts = Counter(o.status for o in done)
    lines = [", ".join(f"{count} {status}" for status, count in counts.items()) or "nothing to do"]
    found = [o.record for o in done if o.record is not None]
    if found:
        lines.append(worth.text(worth.summary(found)))
    if counts[REFUSED]:
        lines.append(
            "refused: the machine is too noisy; --resume takes up what is missing, --force records it anyway"
        )
    return "\n".join(lines)

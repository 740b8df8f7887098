"""What is tuned: a call of an op at one size, with weights from memory, cut as a configuration says."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from sparsekern import _C, plan
from sparsekern.catalogue import OPS
from sparsekern.cli import load
from sparsekern.config import config
from sparsekern.model import DEFAULT, Problem
from sparsekern.schema import as_tuple
from sparsekern.testing import raw

check, opcase = load("sparsekern._bench.check"), load("sparsekern._bench.opcase")


@dataclass(frozen=True)
class Task:
    """A size of an op; plain data, since a child process gets it as JSON."""

    op: str
    dims: Mapping[str, int]
    threads: int = 0  # 0: what torch uses
    isa: str = ""
    factory: str = ""  # "file.py:function" that makes the workload, for tests

    @property
    def name(self) -> str:
        """For people."""
        return " ".join((self.op, *(f"{symbol}={size}" for symbol, size in self.dims.items())))

    def json(self) -> dict[str, Any]:
        """To send it."""
        return {**asdict(self), "dims": dict(self.dims)}


class Workload(Protocol):
    """A task, made ready in a child process."""

    problem: Problem

    def run(self, config: Mapping[str, int], i: int) -> Any:
        """The call, cut that way; `i` counts the calls."""

    def complaint(self, result: Any) -> str:
        """What is wrong with a result, beside the op's reference; empty: nothing."""


class OpWorkload:
    """The call of an op on packed weights."""

    def __init__(self, task: Task) -> None:
        if task.threads:
            torch.set_num_threads(task.threads)
        if task.isa:
            config.isa = task.isa
        op = OPS[task.op]
        x = opcase.inputs(op, task.dims)
        weights = opcase.weights_of(op, x)
        self.op, self.truth = op, check.truth(op, x, task.dims)
        self.copies = list(opcase.copies(opcase.in_form(x, weights, "packed"), weights))
        self.problem = observed(lambda: op.fn(**self.copies[0]))

    def run(self, config: Mapping[str, int], i: int) -> Any:
        """The call on the next copy of the weights."""
        with plan.using(config):
            return self.op.fn(**self.copies[i % len(self.copies)])

    def complaint(self, result: Any) -> str:
        """Compare with the op's reference."""
        return "" if self.truth is None else str(self.truth.judge(result, True).complaint)


def observed(call: Any) -> Problem:
    """The problem that a call is, as the compiled library sees it.

    Raises:
        ValueError: the call has nothing to choose.
    """
    seen: list[Problem] = []

    def planner(*kind: Any) -> tuple[int, int, int, int]:
        seen.append(plan.problem_of(*kind))
        return DEFAULT.numbers

    _C.set_planner(planner)
    try:
        call()
    finally:
        _C.set_planner(plan.choose)
    if not seen:
        raise ValueError("the call has nothing to choose")
    return seen[0]


def digest(result: Any) -> str:
    """Of the bits of a result: every configuration must return the same."""
    h = hashlib.sha256()
    for t in as_tuple(result):
        if isinstance(t, Tensor):
            h.update(raw(t.contiguous()).view(torch.uint8).numpy().tobytes())
    return h.hexdigest()

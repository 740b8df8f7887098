"""Which implementation a call would take, or why none can; and how its work is cut."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from sparsekern import _C, catalogue, cuda, model, records
from sparsekern.device import cpu
from sparsekern.schema import DTYPES
from sparsekern.weights import FORMATS

_log = logging.getLogger(__name__)


class Support(NamedTuple):
    """The answer of `support`: `implementation` is empty where `ok` is false, `reason` where it is true."""

    ok: bool
    reason: str
    implementation: str


def support(op: str, device: str | torch.device = "cpu", **shape: int) -> Support:
    """Tell which implementation of an op would run on a device, or why none can. Never raises.

    `shape` names sizes as the op's record does (`support("gemm", M=1, N=2048, K=7168)`); today no CPU
    kernel has a limit that depends on them.
    """
    if not isinstance(op, str) or op not in catalogue.OPS:
        return Support(False, f"no op is called {op!r}; sparsekern.ops() lists them", "")
    try:
        kind = torch.device(device).type
    except (RuntimeError, TypeError) as error:
        return Support(False, f"{device!r} is not a device: {error}".splitlines()[0], "")
    if kind not in ("cpu", "cuda"):
        return Support(False, f"no {kind} kernels in this build", "")
    if kind == "cuda" and (reason := cuda.lacks(op)):
        return Support(False, reason, "")
    wrong = [f"{name}={size!r}" for name, size in shape.items() if not isinstance(size, int) or size < 0]
    if wrong:
        return Support(False, f"not a size: {', '.join(wrong)}", "")
    return Support(True, "", _C.isa() if kind == "cpu" else "cuda")


def ops() -> list[str]:
    """The names of all ops of the catalogue."""
    return list(catalogue.OPS)


# --- how the work is cut: speed, never bits
# ------------------------------------------------------------------


def planned(problem: model.Problem) -> model.Choice:
    """The choice for a kind of call: the user's record, else a shipped one, else the model's."""
    record = records.find(problem.op, cpu().name, problem.key)
    if record is not None:
        return model.Choice(record.config, record.source)
    return model.choose(problem)


def problem_of(op: str, a: int, weights: int, *rest: Any) -> model.Problem:
    """A kind of call as `_C` describes it."""
    return model.Problem(op, list(DTYPES)[a], FORMATS[weights], *rest)


def choose(*kind: Any) -> tuple[int, int, int, int]:
    """What `_C` asks when it meets a kind of call first."""
    problem = problem_of(*kind)
    choice = planned(problem)
    _log.info("%s: %s %s", choice.source, problem, dict(choice.config))
    return choice.numbers


@contextmanager
def using(config: Mapping[str, int]) -> Iterator[None]:
    """Cut all work one way inside the block, whatever records and the model say; for tuning and for tests."""
    _C.force_blocking(model.Choice(config, "").numbers)
    try:
        yield
    finally:
        _C.force_blocking(None)


def reload() -> None:
    """Look at the records again: another process may have tuned."""
    records.forget()
    _C.forget_plans()


_C.set_planner(choose)

"""Which implementation a call would take, or why none can."""

from __future__ import annotations

from typing import NamedTuple

import torch

from sparsekern import _C, catalogue, cuda


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

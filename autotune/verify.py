"""Does a record do harm? Its choice is run on a call like its own: the bits must be the default's."""

from __future__ import annotations

import torch

from sparsekern import _C, model, plan
from sparsekern.catalogue import OPS
from sparsekern.cli import load
from sparsekern.config import config
from sparsekern.device import cpu
from sparsekern.records import Record

from .task import digest

opcase = load("sparsekern._bench.opcase")

LARGEST = 1 << 28  # weights of a call: larger ones take minutes to make

_ROWS = {"f32": 0, "bf16": 1, "e4m3": 2}
_WEIGHTS = {"f32": 0, "bf16": 1, "e4m3": 2, "fp4": 3}


def _dims(p: model.Problem) -> dict[str, int]:
    """Dimensions of a call that is that problem."""
    a, b = _ROWS[p.a], _WEIGHTS[p.weights]
    if p.op == "fused_moe":
        return {"T": p.rows, "H": p.k, "I": p.n // 2, "E": p.groups, "top_k": 1, "w": b}
    sizes = {"N": p.n, "K": p.k, "a": a, "b": b}
    if p.op == "gemm":
        return {"M": p.rows, **sizes}
    if p.op == "grouped_gemm":
        return {"P": p.rows, "E": p.groups, **sizes}
    return {"Mmax": -(-p.rows // max(p.groups, 1)), "E": p.groups, **sizes}


def trial(r: Record) -> str | None:
    """What is wrong with a record; empty: nothing; None: it cannot be run here."""
    if r.device != cpu().name or set(r.config) != set(model.KNOBS):
        return None
    try:
        problem = model.Problem(**r.key)  # type: ignore[arg-type]
    except TypeError:
        return "its key is not that of a call"
    if problem.isa not in _C.isas() or problem.a not in _ROWS or problem.weights not in _WEIGHTS:
        return None
    if problem.groups * problem.n * problem.k > LARGEST:
        return None
    op = OPS[r.op]
    x = opcase.inputs(op, _dims(problem))
    call = opcase.in_form(x, opcase.weights_of(op, x), "packed" if problem.packed else "stored")
    with torch.no_grad(), config.using(isa=problem.isa, threads=problem.threads):
        bits = []
        for chosen in (model.DEFAULT.config, r.config):
            with plan.using(chosen):
                bits.append(digest(op.fn(**call)))
    return "" if bits[0] == bits[1] else "other bits than the default's"

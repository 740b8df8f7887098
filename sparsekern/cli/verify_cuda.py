"""`sparsekern verify --device cuda`: every op on a GPU, beside references, the CPU's bits, torch's time."""

from __future__ import annotations

import inspect
import json
import platform
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sparsekern
from sparsekern import cuda
from sparsekern.schema import Dims, Op, as_tuple
from sparsekern.testing import assert_close, assert_same_bits, outcome, seeded
from sparsekern.weights import Sparse2to4

REPORT = "sparsekern-cuda-report.json"
ROUNDS = 21


def run(ops: Sequence[Op], device: str, *, report: Path, timed: bool = True, sanitized: bool = True) -> int:
    """Print a line per op and write one report; 1 where an op is wrong, 2 where there is no device."""
    if reason := cuda.trouble():
        print(f"sparsekern verify: nothing runs on {device}: {reason}", file=sys.stderr)
        return 2
    here, results = [op for op in ops if not cuda.lacks(op.name)], {}
    for op in here:
        found = check(op, device)
        if timed and not found["wrong"]:
            found["times"] = time_beside_torch(op, device)
        results[op.name] = found
        verdict = "WRONG" if found["wrong"] else "ok, the CPU's bits" if found["same bits"] else "ok"
        print(
            f"{op.name:<24} {found['cases']:>3} cases  {verdict:<20} {_of_times(found.get('times', {}))}",
            flush=True,
        )
        print("".join(f"    {message}\n" for message in found["wrong"][:4]), end="")
    if absent := [op.name for op in ops if op not in here]:
        print("no kernel for CUDA yet: " + " ".join(absent))
    facts = {
        "version": sparsekern.__version__,
        "torch": torch.__version__,
        "cuda of torch": torch.version.cuda,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device),
        "capability": list(torch.cuda.get_device_capability(device)),
        "architectures": cuda.architectures(),
        "ops": results,
        "no kernel": absent,
        "compute-sanitizer": sanitize([op.name for op in here], device) if sanitized else "not asked for",
    }
    report.write_text(json.dumps(facts, indent=1) + "\n")
    wrong = [name for name, found in results.items() if found["wrong"]]
    print(f"\n{len(here)} ops, {len(wrong)} wrong; compute-sanitizer: {facts['compute-sanitizer']}.")
    print(f"{report} has it all.")
    return int(bool(wrong))


def arguments(op: Op, dims: Dims, want: Any = None) -> dict[str, Any]:
    """A call with the sizes that a device cannot find out: they are those of the expected result."""
    x = op.inputs(dims, seeded(op, dims))
    for symbol, option in op.dynamic.items():
        if option and x.get(option) is None:
            if want is None:
                want = op.reference(**x)
            at = next(i for i, o in enumerate(op.outs) if op.shapes[o.name].terms[0] == (symbol,))
            x[option] = len(as_tuple(want)[at])
    return x


def moved(x: Mapping[str, Any], device: str) -> dict[str, Any]:
    """The call on another device, strides as they were."""
    return {name: v.to(device) if isinstance(v, Tensor) else v for name, v in x.items()}


def check(op: Op, device: str) -> dict[str, Any]:
    """Every test size against the reference, and whether all have the bits of the CPU."""
    cases, same, wrong = 0, True, []
    for dims in op.test_dims:
        want = outcome(op, op.inputs(dims, seeded(op, dims)), op.reference)
        x = arguments(op, dims, want)
        if any(isinstance(v, Sparse2to4) for v in x.values()):
            continue  # no kernel takes it there
        cases += 1
        try:
            got = tuple(
                t.cpu() if isinstance(t, Tensor) else t for t in as_tuple(outcome(op, moved(x, device)))
            )
            assert_close(got, as_tuple(want), op.max_err)
            same = same and _has_bits(got, as_tuple(outcome(op, x)))
        except Exception as error:
            wrong.append(f"{dims}: {type(error).__name__}: {error}")
    return {"cases": cases, "same bits": same, "wrong": wrong}


def _has_bits(got: Any, want: Any) -> bool:
    try:
        assert_same_bits(got, want)
    except AssertionError:
        return False
    return True


def time_beside_torch(op: Op, device: str) -> dict[str, Any]:
    """Milliseconds of ours and of torch's way, in turns, at the first of the sizes for benchmarks."""
    from sparsekern.cli import load

    if not op.bench_dims:
        return {}
    dims = op.bench_dims[0]
    peer = getattr(load("sparsekern._bench.eager"), op.name, None)
    x = moved(arguments(op, dims), device)
    found: dict[str, Any] = {"sizes": dims}
    contenders: dict[str, Callable[[], Any]] = {"ours": lambda: op.fn(**x)}
    if peer is not None:
        taken = {k: v for k, v in x.items() if k in inspect.signature(peer).parameters}
        try:
            with torch.device(device):
                peer(**taken)
            contenders["torch"] = lambda: peer(**taken)
        except Exception as error:
            found["torch"] = f"cannot: {type(error).__name__}: {error}"
    milliseconds: dict[str, list[float]] = {name: [] for name in contenders}
    with torch.device(device):
        for _ in range(ROUNDS + 2):  # two to become warm
            for name, call in contenders.items():
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                begin.record()
                call()
                end.record()
                end.synchronize()
                milliseconds[name].append(begin.elapsed_time(end))
    for name, all_of_them in milliseconds.items():
        v = sorted(all_of_them[2:])
        found[name] = {"median": statistics.median(v), "p10": v[len(v) // 10], "p90": v[-1 - len(v) // 10]}
    return found


def _of_times(times: Mapping[str, Any]) -> str:
    medians = {k: v["median"] for k, v in times.items() if isinstance(v, dict) and "median" in v}
    if "ours" not in medians:
        return ""
    if "torch" not in medians:
        return f"{medians['ours']:.3f} ms"
    return f"{medians['ours']:.3f} ms, torch {medians['torch']:.3f}"


def sanitize(names: Sequence[str], device: str) -> str:
    """The same checks under compute-sanitizer, memcheck and racecheck."""
    program = shutil.which("compute-sanitizer")
    if program is None:
        return "not installed"
    said = []
    for kind in ("memcheck", "racecheck"):
        words = [program, "--tool", kind, "--error-exitcode", "9", sys.executable, "-m", "sparsekern"]
        words += ["verify", "--device", device, "--only-check", "--op", *names]
        done = subprocess.run(words, capture_output=True, text=True)
        said.append(f"{kind} clean" if done.returncode == 0 else f"{kind}: {done.stdout[-400:]}")
    return "; ".join(said)

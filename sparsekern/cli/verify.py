"""`sparsekern verify`: every op against its reference, on every instruction set or on a GPU."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from sparsekern.catalogue import OPS
from sparsekern.cli import verify_cuda
from sparsekern.config import config
from sparsekern.docs import bound
from sparsekern.plan import support
from sparsekern.schema import Op
from sparsekern.testing import assert_close, assert_same_bits, cpu_isas, outcome, seeded

SHOWN = 4  # messages per op


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("--device", default="cpu", help="where to run (cpu)")
    parser.add_argument(
        "--report",
        metavar="FILE",
        type=Path,
        default=Path(verify_cuda.REPORT),
        help="of a GPU: where to write what was found (%(default)s)",
    )
    parser.add_argument("--only-check", action="store_true", help="on a GPU: no times, no compute-sanitizer")
    parser.add_argument("--op", nargs="+", metavar="NAME", choices=list(OPS), help="only these ops")


def run(args: argparse.Namespace) -> int:
    """Print a table, one line per op; 1 where an op is wrong, 2 where nothing can run on the device."""
    ops = [OPS[name] for name in args.op or OPS]
    if args.device.partition(":")[0] == "cuda":
        more = not args.only_check
        return verify_cuda.run(ops, args.device, report=args.report, timed=more, sanitized=more)
    for op in ops:
        if not (answer := support(op.name, device=args.device)).ok:
            print(
                f"sparsekern verify: {op.name} does not run on {args.device}: {answer.reason}",
                file=sys.stderr,
            )
            return 2

    start, isas = time.perf_counter(), cpu_isas()
    width = max(len(op.name) for op in ops)
    print(f"{'op':<{width}}  cases  {'tolerance':<9}  " + "  ".join(isas))
    wrong = 0
    for op in ops:
        found = check(op, isas)
        wrong += any(found.values())
        marks = "  ".join(f"{'WRONG' if found[isa] else 'ok':<{len(isa)}}" for isa in isas)
        print(f"{op.name:<{width}}  {len(op.test_dims):>5}  {bound(op):<9}  {marks.rstrip()}", flush=True)
        messages = [f"    {isa}, {message}" for isa, of_isa in found.items() for message in of_isa]
        print("".join(f"{message}\n" for message in messages[:SHOWN]), end="")
        if len(messages) > SHOWN:
            print(f"    and {len(messages) - SHOWN} more")
    cases = sum(len(op.test_dims) for op in ops)
    print(f"\n{len(ops)} ops, {cases} cases, {time.perf_counter() - start:.1f} s: ", end="")
    if wrong:
        print(f"{wrong} wrong.")
        return 1
    print("all match their references,")
    print("with the same bits on every instruction set and for 1, 2 and 3 threads.")
    return 0


def check(op: Op, isas: list[str]) -> dict[str, list[str]]:
    """What is wrong on each instruction set: with the reference, or with what the first one returned."""
    found: dict[str, list[str]] = {isa: [] for isa in isas}
    for dims in op.test_dims:
        x = op.inputs(dims, seeded(op, dims))
        want, first = outcome(op, x, op.reference), None
        for isa in isas:
            for threads in (1, 2, 3) if isa == isas[-1] else (1,):
                with config.using(isa=isa, threads=threads):
                    got, problem = attempt(op, x, want, first)
                first = got if first is None else first
                if problem:
                    sizes = " ".join(f"{name}={size}" for name, size in dims.items())
                    found[isa].append(f"{sizes}, threads={threads}: {problem}")
    return found


def attempt(op: Op, x: dict[str, Any], want: Any, first: Any) -> tuple[Any, str]:
    """One call, and what is wrong with its result."""
    got = None
    try:
        got = outcome(op, x)
        assert_close(got, want, op.max_err)
        if first is not None:
            assert_same_bits(got, first, "not the bits of the others:")
    except AssertionError as error:
        return got, str(error)
    except Exception as error:
        return got, f"{type(error).__name__}: {error}"
    return got, ""

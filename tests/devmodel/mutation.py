"""What the tests would notice: synchronisations of our kernels are left out or weakened, one at a time.

    python -m tests.devmodel.mutation [OP ...]    # all ops; adds `mutants` to build/devmodel/report.json

A mutant is killed by the checker, or by a result that differs. It is one instruction of the PTX: what
the compiler unrolled counts as often as it is there.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .build import CACHE, ROOT
from .ptx import Instruction, Location, Scope, Statement, parse

REPORT = CACHE / "report.json"
SCHEDULES = [("lifo", 1), ("random", 1), ("random", 2)]
CASES = 8  # of an op that reach a mutant
SECONDS = 300  # for one mutant; more means that it hangs

# Survivors that change nothing, by the source line that they come from, and why.
REDUNDANT: dict[str, str] = {}


@dataclass(frozen=True)
class Mutant:
    """One instruction that does not do what it should."""

    op: str
    kernel: str
    line: int  # of the PTX
    what: str
    weakened: bool
    source: str  # file:line


def effects(i: Instruction) -> Iterator[tuple[str, bool]]:
    """What can be done to an instruction, and whether that weakens it instead of leaving it out."""
    parts = i.parts
    if parts[0] in ("bar", "barrier"):
        yield f"{i.opcode} left out", False
    elif parts[:2] == ["cp", "async"] and "commit_group" in parts:
        yield "cp.async.commit_group left out", False
    elif parts[:2] == ["cp", "async"] and "wait_group" in parts:
        yield "cp.async.wait_group left out", False
        yield "cp.async.wait_group waits for one group less", True
    elif parts[0] in ("atom", "red"):
        yield f"{i.opcode} as a load and a store", False


def mutants(op: str, ptx: str) -> Iterator[Mutant]:
    """All that can be made of a PTX file."""
    module = parse(ptx)

    def walk(statements: Sequence[Statement], kernel: str, place: list[str]) -> Iterator[Mutant]:
        for s in statements:
            if isinstance(s, Location):
                place[0] = (
                    f"{Path(module.files[s.file]).relative_to(ROOT)}:{s.line}"
                    if _ours(module.files[s.file])
                    else place[0]
                )
            elif isinstance(s, Scope):
                yield from walk(s.statements, kernel, place)
            elif isinstance(s, Instruction):
                for what, weakened in effects(s):
                    yield Mutant(op, kernel, s.line, what, weakened, place[0])

    for kernel in module.kernels:
        yield from walk(kernel.body.statements, kernel.name, ["?"])


def _ours(file: str) -> bool:
    return Path(file).is_relative_to(ROOT / "csrc")


def every_mutant(ops: Sequence[str]) -> list[Mutant]:
    """Those of some ops; what several ops run is mutated for the first of them."""
    from .extension import device_objects, device_sources

    found: dict[tuple[str, int, str], Mutant] = {}
    for op in ops:
        for source in device_sources([op]):
            for m in mutants(op, device_objects(source, "sm_80")[2]):
                found.setdefault((m.kernel, m.line, m.what), m)
    return list(found.values())


def _try(todo: Sequence[Mutant]) -> Iterator[dict[str, Any]]:
    """In a process of its own: the mutants of one op."""
    sys.path.insert(0, str(ROOT / "tests"))
    from . import test_ops
    from .extension import ModelGpu

    op = test_ops.OPS[todo[0].op]
    gpu = ModelGpu("sm_80", [op.name])
    cases = [p.values[1] for p in test_ops.CASES if p.values[0] is op]
    wanted: dict[int, Any] = {}

    def call(case: int) -> Any:
        x = test_ops.inputs(op, cases[case])
        x = test_ops.with_sizes(op, x, test_ops.expected(op, cases[case]))
        return test_ops.run(gpu, op, x)

    for m in todo:
        verdict, reached = "not reached", 0
        for case in range(len(cases)):
            if case not in wanted:
                gpu.device.configure("fifo")
                wanted[case] = call(case)
            by_checker, came = False, False
            for policy, seed in SCHEDULES:
                gpu.device.configure(policy, seed=seed)
                with gpu.device.mutated(m.kernel, m.line, weakened=m.weakened):
                    try:
                        got = call(case)
                    except AssertionError:
                        by_checker = True
                    came = gpu.device.reached() > 0
                if by_checker or not came:
                    break
                try:
                    test_ops.assert_same_bits(got, wanted[case])
                except AssertionError:
                    verdict = "killed by the result"
            if by_checker:
                verdict = "killed by the checker"
            reached += came
            if came and verdict == "not reached":
                verdict = "survived"
            if verdict.startswith("killed") or reached == CASES:
                break
        yield {**asdict(m), "verdict": verdict}


def _run(todo: Sequence[Mutant]) -> Iterator[dict[str, Any]]:
    """The mutants of one op. One that breaks the process is killed, too."""
    left = list(todo)
    while left:
        words = [
            sys.executable,
            "-m",
            "tests.devmodel.mutation",
            "--try",
            json.dumps([asdict(m) for m in left]),
        ]
        try:
            done = subprocess.run(
                words, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS + 30 * len(left)
            )
            text, why = done.stdout, done.stderr
        except subprocess.TimeoutExpired as late:
            text, why = (late.stdout or b"").decode(), "too long"
        results = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
        yield from results
        left = left[len(results) :]
        if left and not results and "Error" in why:
            raise RuntimeError(why[-3000:])
        if left:
            yield {**asdict(left.pop(0)), "verdict": "killed: the process ended"}


def main(names: Sequence[str]) -> int:
    """Try them all and write what came of it."""
    from .extension import ops_on_cuda

    ops = list(names) or ops_on_cuda()
    todo = every_mutant(ops)
    results: list[dict[str, Any]] = []
    for op in ops:
        mine = [m for m in todo if m.op == op]
        for r in _run(mine) if mine else ():
            if r["verdict"] == "survived" and (why := REDUNDANT.get(r["source"].partition("csrc/")[2])):
                r |= {"verdict": "redundant", "why": why}
            results.append(r)
            print(f"{op:20} {r['verdict']:24} {r['what']:48} {r['source']}", flush=True)
    report = json.loads(REPORT.read_text()) if REPORT.exists() else {}
    counts = Counter(r["verdict"].split()[0].rstrip(":") for r in results)
    report["mutants"] = {
        "total": len(results),
        "killed": counts["killed"],
        "redundant": counts["redundant"],
        "survived": counts["survived"],
        "not reached": counts["not"],
        "each": [r for r in results if not r["verdict"].startswith("killed")],
        "by op": {op: dict(Counter(r["verdict"] for r in results if r["op"] == op)) for op in ops},
    }
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text(json.dumps(report, indent=1) + "\n")
    print({k: v for k, v in report["mutants"].items() if isinstance(v, int)})
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--try"]:
        for made in _try([Mutant(**m) for m in json.loads(sys.argv[2])]):
            print(json.dumps(made), flush=True)
    else:
        raise SystemExit(main(sys.argv[1:]))

"""`sparsekern bench tiered`: replay a trace through the tiered KV cache."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sparsekern.kv.policy import POLICIES

from . import png
from .loads import conversations, read_requests
from .replay import Costs, Outcome, Sizes, Trace, blocks_of, measured, modelled, replay

DEFAULT = "lru"  # the cache's own
ADDED = (1, 1, 4)  # device, host and disk of S, where tiers come on top of it
GRID = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)  # of the plot, shares of the distinct bytes


def split(total: int, shares: Sequence[float]) -> Sizes:
    """Blocks of every tier; the last one gets what rounding leaves where the shares make one."""
    device, host, disk = (round(total * share) for share in shares)
    return device, host, (total - device - host if abs(sum(shares) - 1) < 1e-9 else disk)


@dataclass(frozen=True)
class Job:
    """One replay, for another process perhaps: through the cache, or the model of it."""

    sizes: Sizes
    policy: str
    real: bool

    def run(self) -> Outcome:
        """Take the trace from what `at_work` has left there."""
        trace, costs, folder = _AT_WORK[0]
        if self.real:
            return replay(trace, self.sizes, self.policy, costs, folder)
        return modelled(trace, self.sizes, self.policy, costs)


_AT_WORK: list[tuple[Trace, Costs, Path | None]] = []


@contextmanager
def at_work(trace: Trace, costs: Costs) -> Iterator[None]:
    """Let jobs of this process, and of those that it forks, find the trace."""
    memory = Path("/dev/shm")
    _AT_WORK.append((trace, costs, memory if os.access(memory, os.W_OK) else None))
    try:
        yield
    finally:
        _AT_WORK.clear()


def run_all(jobs: Sequence[Job], processes: int) -> dict[Job, Outcome]:
    """Run them, the long ones first."""
    unique = sorted(set(jobs), key=lambda job: (not job.real, job.sizes, job.policy))
    if processes == 1:
        return {job: job.run() for job in unique}
    with ProcessPoolExecutor(processes, multiprocessing.get_context("fork")) as pool:
        return dict(zip(unique, pool.map(Job.run, unique), strict=True))


def rows(
    trace: Trace,
    sizes: Sequence[float],
    tiers: Sequence[float],
    costs: Costs,
    policies: Sequence[str],
    processes: int,
) -> tuple[list[dict[str, Any]], dict[str, list[tuple[float, float]]]]:
    """One row a policy and size, and of every policy the hit rate over the bytes of an untiered cache."""
    distinct = len({key for keys in trace for key in keys})
    totals = [max(1, round(size * distinct)) for size in sizes]
    grid = sorted({max(1, round(part * distinct)) for part in GRID} | set(totals))

    def alone(blocks: int, policy: str) -> Job:
        return Job((blocks, 0, 0), policy, False)

    tiered = {(p, n): Job(split(n, tiers), p, True) for n in totals for p in policies}
    added = {(p, n): Job(split(n, ADDED), p, False) for n in totals for p in policies}
    curves = [alone(n, p) for p in {DEFAULT, *policies} for n in grid]
    with at_work(trace, costs):
        found = run_all([*tiered.values(), *added.values(), *curves], processes)
    lru = [(n, found[alone(n, DEFAULT)].hit_rate) for n in grid]
    table = []
    for share, total in zip(sizes, totals, strict=True):
        for policy in policies:
            base, job = found[alone(total, DEFAULT)], tiered[policy, total]
            row = _row(costs, base, found[job], job.sizes)
            row |= {"policy": "default" if policy == DEFAULT else policy, "size": share}
            row["untiered_bytes"] = total * costs.block_bytes
            row["device_saving"] = 1 - job.sizes[0] / total
            row["untiered_bytes_for_hit_rate"] = round(_needed(lru, found[job].hit_rate) * costs.block_bytes)
            more = added[policy, total]
            row["added"] = _row(costs, base, found[more], more.sizes)
            table.append(row)
    byte = costs.block_bytes
    return table, {p: [(n * byte, found[alone(n, p)].hit_rate) for n in grid] for p in policies}


def _row(costs: Costs, base: Outcome, outcome: Outcome, sizes: Sizes) -> dict[str, Any]:
    byte = costs.block_bytes
    nothing = outcome.blocks * costs.block[0]
    return {
        **{f"{tier}_bytes": n * byte for tier, n in zip(("device", "host", "disk"), sizes, strict=True)},
        "hit_rate": outcome.hit_rate,
        "untiered_hit_rate": base.hit_rate,
        **{
            f"{tier}_hit_rate": n / outcome.blocks
            for tier, n in zip(("device", "host", "disk"), outcome.hits, strict=True)
        },
        "read_bytes": {"host": outcome.hits[1] * byte, "disk": outcome.hits[2] * byte},
        "written_bytes": {"host": outcome.to_host * byte, "disk": outcome.to_disk * byte},
        "prefill_seconds": outcome.seconds,
        "untiered_prefill_seconds": base.seconds,
        "saved_seconds": nothing - outcome.seconds,
        "time_ratio": outcome.seconds / base.seconds,
    }


def _needed(curve: Sequence[tuple[int, float]], rate: float) -> float:
    """Blocks for a hit rate, between the points of the curve; those of the last one if none reaches it."""
    below = (0, 0.0)
    for blocks, reached in curve:
        if reached >= rate:
            return below[0] + (blocks - below[0]) * (rate - below[1]) / max(reached - below[1], 1e-12)
        below = (blocks, reached)
    return below[0]


# --- the command --------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add = parser.add_argument
    add("--trace", type=Path, metavar="FILE", help="of requests, in the Mooncake format; else one is made up")
    add("--requests", type=int, default=12031, metavar="N", help="of a made-up trace (12031)")
    sizes, tiers = [0.05, 0.2, 0.5], [0.6, 0.25, 0.15]
    add("--sizes", type=_numbers, default=sizes, metavar="S,..", help=f"of the distinct bytes ({sizes})")
    add("--tiers", type=_numbers, default=tiers, metavar="D,H,D", help=f"device, host, disk, of S ({tiers})")
    add("--policy", nargs="+", choices=list(POLICIES), default=list(POLICIES), help="which (all)")
    add("--prefill-tps", type=float, default=20000.0, metavar="N", help="tokens computed a second (20000)")
    add("--host-gbs", type=float, default=25.0, metavar="GB/S", help="between device and host (25)")
    add("--disk-gbs", type=float, default=3.0, metavar="GB/S", help="of the disk (3)")
    add("--block-bytes", type=int, default=20500000, metavar="N", help="of 512 tokens (20500000)")
    add("--measure", action="store_true", help="speeds of transfers are what the cache reaches here")
    cores = len(os.sched_getaffinity(0))
    add("--processes", type=int, default=cores, metavar="N", help="replays at once (all cores)")
    add("--json", action="store_true", help='print {"rows": [..]} instead of the tables')
    add("--png", type=Path, metavar="FILE", help="draw hit rate over capacity (needs matplotlib)")


def _numbers(text: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers, 0 or more, with commas")
    return numbers


def run(args: argparse.Namespace) -> int:
    """Replay; 2 for a wrong call."""
    try:
        requests = read_requests(args.trace) if args.trace else conversations(args.requests)
        trace = blocks_of(requests)
        if not trace:
            raise ValueError(f"{args.trace or 'the trace'} has no request with hash_ids")
        if len(args.tiers) != 3 or args.tiers[0] <= 0 or min(args.sizes) <= 0:
            raise ValueError("--tiers are three numbers, the first and all --sizes above 0")
        costs = Costs(args.prefill_tps, args.host_gbs, args.disk_gbs, args.block_bytes)
        if args.measure:
            costs = measured(costs)
        start = time.monotonic()
        found, curves = rows(trace, args.sizes, args.tiers, costs, args.policy, args.processes)
        if args.png:
            png.capacity(curves, found, args.png)
    except (OSError, ValueError) as error:
        print(f"sparsekern bench tiered: {error}", file=sys.stderr)
        return 2
    if args.json:
        print(json.dumps({"rows": found, "costs": vars(costs), "torch": torch.__version__}))
        return 0
    name = args.trace.name if args.trace else "made-up conversations"
    asked, distinct = sum(map(len, trace)), len({key for keys in trace for key in keys})
    print(f"{name}: {len(trace)} requests, {asked} blocks, {distinct} of them distinct")
    speeds = f"{costs.host_gbs:.1f} and {costs.disk_gbs:.1f} GB/s"
    took = time.monotonic() - start
    print(f"{costs.prefill_tps:.0f} tokens/s, {speeds}; replayed in {took:.0f} s", end="\n\n")
    print(report(found))
    return 0


def report(found: Sequence[dict[str, Any]]) -> str:
    """The tables: how much device memory is saved, and what more tiers gain."""
    columns = (
        "        S  policy       device  saved    hits    of S   time   on device, host, disk  LRU for that"
    )
    title = "S split over the tiers: how much device memory is saved at the hit rate of LRU on a device of S?"
    lines = [title, columns]
    for r in found:
        where = ", ".join(f"{100 * r[f'{tier}_hit_rate']:.1f}" for tier in ("device", "host", "disk"))
        lines.append(
            f"{_gb(r['untiered_bytes'])}  {r['policy']:<9} {_gb(r['device_bytes'])}  "
            f"{r['device_saving']:5.0%} {r['hit_rate']:7.2%} {r['untiered_hit_rate']:7.2%} "
            f"{r['time_ratio']:6.3f}  {where:<21} {_gb(r['untiered_bytes_for_hit_rate'])}"
        )
    title = "host of S and disk of 4 S added to a device of S"
    lines += ["", title, "        S  policy       hits   time  saved"]
    for r in found:
        more = r["added"]
        lines.append(
            f"{_gb(r['untiered_bytes'])}  {r['policy']:<9} {more['hit_rate']:7.2%} {more['time_ratio']:6.3f} "
            f"{more['saved_seconds']:6.0f} s of prefill"
        )
    return "\n".join(lines)


def _gb(size: float) -> str:
    return f"{size / 1e9:6.0f} GB"

"""Serve a trace from the tiered KV cache, and add up what it would have taken.

Blocks, tiers, policies and transfers are the real cache's; payloads are two bytes, counted as a model's.
Nothing is dropped because a disk is slow (`write_behind=None`): what that costs is in the seconds.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from sparsekern.kv import PoolSpec, TieredKVCache
from sparsekern.kv.policy import POLICIES

from .loads import TOKENS, Request

Trace = list[list[bytes]]  # of every request, the keys of its blocks
Sizes = tuple[int, int, int]  # blocks of device, host and disk


@dataclass(frozen=True)
class Costs:
    """What computing and moving takes."""

    prefill_tps: float
    host_gbs: float
    disk_gbs: float
    block_bytes: int

    @property
    def block(self) -> tuple[float, float, float]:
        """Seconds of a block: to compute it, to move it between device and host, or to or from disk."""
        moved = self.block_bytes / 1e9
        return TOKENS / self.prefill_tps, moved / self.host_gbs, moved / self.disk_gbs

    def seconds(self, missed: int, host: int, disk: int, to_host: int, to_disk: int) -> float:
        """Prefill of one request: blocks are computed, or read; what has to leave is written beside that.

        Nothing of a read is hidden behind computing. The writes of a request stall it by as much as they take
        longer than all that.
        """
        compute, by_host, by_disk = self.block
        busy = missed * compute + host * by_host + disk * by_disk
        return max(busy, to_host * by_host, to_disk * by_disk)


class Outcome(NamedTuple):
    """What a replay counted, in blocks, and what it costs."""

    hits: Sizes
    blocks: int
    to_host: int
    to_disk: int
    seconds: float

    @property
    def hit_rate(self) -> float:
        """Of all blocks asked for."""
        return sum(self.hits) / self.blocks


class Counted:
    """Outcomes of requests, added up."""

    def __init__(self, costs: Costs) -> None:
        self._costs, self._hits, self._moved = costs, [0, 0, 0], (0, 0)
        self._blocks, self._seconds = 0, 0.0

    def add(self, blocks: int, hits: Sizes, moved: tuple[int, int]) -> None:
        """A request of so many blocks; `moved`: to host and to disk since the beginning."""
        to_host, to_disk = moved[0] - self._moved[0], moved[1] - self._moved[1]
        self._seconds += self._costs.seconds(blocks - sum(hits), hits[1], hits[2], to_host, to_disk)
        self._hits = [a + b for a, b in zip(self._hits, hits, strict=True)]
        self._moved, self._blocks = moved, self._blocks + blocks

    def outcome(self) -> Outcome:
        """Of all of them."""
        device, host, disk = self._hits
        return Outcome((device, host, disk), self._blocks, *self._moved, self._seconds)


def blocks_of(requests: Sequence[Request]) -> Trace:
    """Keys instead of ids; a prompt that repeats a block ends there: a chained hash does not."""
    keys = {i: (i % 2**128).to_bytes(16, "little") for r in requests for i in r.blocks}
    return [[keys[i] for i in dict.fromkeys(r.blocks)] for r in requests if r.blocks]


def replay(trace: Trace, sizes: Sizes, policy: str, costs: Costs, folder: Path | None = None) -> Outcome:
    """Serve every request, one after the other: reuse what is known, compute and keep the rest."""
    device, host, disk = sizes
    total = Counted(costs)
    pool = {"kv": PoolSpec("bf16", pages=max(device, 1), page_size=1, head_dim=1)}
    options: dict[str, Any] = {"policy": policy, "write_behind": None, "block_tokens": 1, "threads": 1}
    with (
        tempfile.TemporaryDirectory(dir=folder) as files,
        TieredKVCache(pool, host_blocks=host, disk_blocks=disk, folder=files, **options) as cache,
    ):
        for all_keys in trace:
            keys = all_keys[:device]
            loading = cache.acquire(keys)
            found = [loading.tiers.count(tier) for tier in ("device", "host", "disk")]
            sequence, known = cache.begin(loading)
            if known != sum(found):
                raise RuntimeError(f"{sum(found) - known} blocks were lost: {cache.stats()['errors']}")
            cache.paged.extend([sequence], {"kv": [len(keys) - known]})
            cache.commit(sequence, keys)
            cache.paged.free(sequence)
            out = cache.stats()["evictions"]
            left = out["device"] if host else 0, out["host" if host else "device"] if disk else 0
            total.add(len(all_keys), (found[0], found[1], found[2]), left)
    return total.outcome()


class Model:
    """What the cache would do, from the policies alone: no bytes, no transfers, several times as fast."""

    def __init__(self, sizes: Sizes, policy: str) -> None:
        self.sizes = sizes
        self.orders = [POLICIES[policy](max(1, size)) for size in sizes]
        self.where: dict[bytes, int] = {}
        self.moved = [0, 0, 0]  # into a tier

    def serve(self, keys: Sequence[bytes]) -> list[int]:
        """One request; the tiers of the blocks that were known."""
        found = []
        for key in keys:
            if key not in self.where:
                break
            found.append(self.where[key])
        known = keys[: len(found)]
        arriving = [key for key in known if self._leaves(key)]
        self._make_room(len(arriving), known)
        for key in reversed(known):  # the first is the youngest
            self._use(key)
        self._make_room(len(keys) - len(known), known)
        for key in reversed(keys):
            self._leaves(key)
            self._use(key)
        return found

    def _leaves(self, key: bytes) -> bool:
        """Take it out of a tier below the device, if it is in one."""
        tier = self.where.get(key, 0)
        if tier:
            self.orders[tier].remove(key)
            del self.where[key]
        return tier > 0

    def _use(self, key: bytes) -> None:
        if key in self.where:
            self.orders[0].touch(key)
        else:
            self.orders[0].add(key)
            self.where[key] = 0

    def _make_room(self, count: int, kept: Sequence[bytes]) -> None:
        pinned = set(kept)
        for _ in range(len(self.orders[0]) + count - self.sizes[0]):
            self._place(self._victim(0, pinned), 1)

    def _victim(self, tier: int, pinned: set[bytes]) -> bytes:
        key = self.orders[tier].victim(lambda key: key not in pinned)
        assert key is not None
        del self.where[key]
        return key

    def _place(self, key: bytes, tier: int) -> None:
        """Into this tier, or the next one that there is; what has to leave for it goes further down."""
        while tier < 3 and not self.sizes[tier]:
            tier += 1
        if tier < 3:
            self.moved[tier] += 1
            self.where[key] = tier
            self.orders[tier].add(key)
            if len(self.orders[tier]) > self.sizes[tier]:
                self._place(self._victim(tier, set()), tier + 1)


def modelled(trace: Trace, sizes: Sizes, policy: str, costs: Costs) -> Outcome:
    """A replay by `Model`; with a device alone, that of an untiered cache."""
    model, total = Model(sizes, policy), Counted(costs)
    for keys in trace:
        found = model.serve(keys[: sizes[0]])
        hits = found.count(0), found.count(1), found.count(2)
        total.add(len(keys), hits, (model.moved[1], model.moved[2]))
    return total.outcome()


def measured(costs: Costs, blocks: int = 24) -> Costs:
    """With the speed of this machine's memory and disk: blocks that the cache brings back."""
    pool = {"kv": PoolSpec("bf16", pages=blocks, page_size=1, head_dim=max(1, costs.block_bytes // 2))}
    keys = [i.to_bytes(16, "little") for i in range(2 * blocks)]
    speeds = []
    for tier in ("host", "disk"):
        options: dict[str, Any] = {"write_behind": None, "block_tokens": 1, f"{tier}_blocks": 2 * blocks}
        with tempfile.TemporaryDirectory() as files, TieredKVCache(pool, folder=files, **options) as cache:
            cache.paged.pools["kv"].data.fill_(1)
            for half in (keys[:blocks], keys[blocks:], keys[:blocks], keys[blocks:]):
                sequence, known = cache.begin(cache.acquire(half))
                cache.paged.extend([sequence], {"kv": [blocks - known]})
                cache.commit(sequence, half)
                cache.paged.free(sequence)
                cache.settle()
            moved = cache.stats()["transfers"][f"{tier} to device"]
            speeds.append(moved["bytes"] / moved["seconds"] / 1e9)
    return Costs(costs.prefill_tps, speeds[0], speeds[1], costs.block_bytes)

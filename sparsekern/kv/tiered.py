"""Blocks of tokens that outlive their sequences: on the device, in memory, on disk, on a server."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Semaphore
from typing import Any

from sparsekern import _C
from sparsekern.kv.blocks import Block, Loading
from sparsekern.kv.options import check_options, kind_number
from sparsekern.kv.paged import GONE, PagedKVCache
from sparsekern.kv.pages import PoolSpec
from sparsekern.kv.plan import DROP, OK, PUT, SPILL, STATUSES, TAKE, Plan
from sparsekern.kv.policy import POLICIES, Key, Policy
from sparsekern.kv.remote import RemoteTier

TIERS = ("device", "host", "disk", "remote")
DEVICE, HOST, DISK, REMOTE = range(4)
# Slots beyond the blocks of a tier: for blocks that move in before others are out, and for those that wait
# to be sent to another machine, or came from there.
STAGING, SENDING, FETCHING = 8, 8, 2


class TieredKVCache:
    """A paged KV cache that keeps what sequences have computed, by blocks of tokens, for others to reuse.

    A block is `block_tokens` tokens' records in every pool of the model, and has a key that stands for
    these tokens and all before them (`block_keys`). It lies in exactly one tier: on the device, in the
    pages of `paged`; else in one of `host_blocks` in memory; else in one of `disk_blocks` in files of
    `folder`; else, with `remote`, on a server. When a tier is full, the block that its policy names moves
    on to the next. A block that is asked for comes back to the device.

        loading = cache.acquire(keys)              # the longest prefix that is there: transfers begin
        sequence, known = cache.begin(loading)     # waits for them; the sequence begins with `known` tokens
        slots = cache.paged.extend([sequence], ...)    # compute the others
        cache.commit(sequence, keys)               # keep all full blocks for others
        cache.paged.free(sequence)

    Transfers run on background threads. Whatever goes wrong with one, a checksum, a full disk, a dead
    server, makes its block a miss and counts in `stats()["errors"]`.

    Args:
        pools: as those of `PagedKVCache`.
        block_tokens: tokens of a block.
        block_records: records of a block in each pool, a multiple of its page size; `block_tokens` unless
            given. Pools that are not named are not kept.
        host_blocks: blocks in memory; while transfers are under way there are up to 18 more.
        disk_blocks: blocks on disk, likewise.
        folder: where, for one cache at a time. Blocks in it are there again after a restart.
        policy: "lru" or "s3fifo", or what makes a `Policy` for a tier of so many blocks.
        remote: a tier on a server.
        kind: what else blocks depend on, the model say: another kind of cache refuses the folder.
        write_behind: so many blocks may wait to be written to disk, more are dropped; None: nothing is
            dropped, and everybody waits.
        threads: that move blocks.
    """

    def __init__(
        self,
        pools: Mapping[str, PoolSpec],
        *,
        block_tokens: int = 512,
        block_records: Mapping[str, int] | None = None,
        host_blocks: int = 0,
        disk_blocks: int = 0,
        folder: str | Path | None = None,
        policy: str | Callable[[int], Policy] = "lru",
        remote: RemoteTier | None = None,
        kind: str = "",
        write_behind: int | None = STAGING,
        threads: int = 2,
    ) -> None:
        records = dict.fromkeys(pools, block_tokens) if block_records is None else dict(block_records)
        check_options(pools, records, policy, disk_blocks, folder)
        self.block_tokens, self.block_records = block_tokens, records
        self.paged = PagedKVCache(pools, reclaim=self._reclaim)
        self.lock = self.paged.lock
        self._pools = [self.paged.pools[name] for name in records]
        self._counts = [records[pool.name] // pool.spec.page_size for pool in self._pools]  # pages of a block
        self.block_bytes = sum(
            n * p.spec.page_bytes * p.spec.layers for p, n in zip(self._pools, self._counts, strict=True)
        )
        make = POLICIES[policy] if isinstance(policy, str) else policy
        device_blocks = min(p.spec.pages // n for p, n in zip(self._pools, self._counts, strict=True))
        self._limits = (device_blocks, host_blocks, disk_blocks)
        self._policies = [make(max(1, limit)) for limit in self._limits]
        self._device: dict[Key, Block] = {}
        self._coming: list[tuple[_C.StoreTicket, list[Block]]] = []  # by transfers that have not ended
        self._below: dict[Key, int] = {}  # HOST or DISK
        self._write_behind = write_behind
        self.remote = remote
        self._hits, self._misses, self._evicted = [0] * 4, 0, [0] * 4
        self._errors: Counter[str] = Counter()
        self._store: _C.BlockStore | None = None
        self._workers: ThreadPoolExecutor | None = None
        self._may_send = Semaphore(SENDING)
        if host_blocks or disk_blocks or remote is not None:
            self._open_store(str(folder) if disk_blocks else None, kind_number(kind, pools, records), threads)
        if remote is not None:
            remote.seals(kind_number(kind, pools, records), self.block_bytes)
            self._workers = ThreadPoolExecutor(FETCHING, "sparsekern-kv")

    def _open_store(self, folder: str | None, kind: int, threads: int) -> None:
        spare = STAGING + (SENDING + FETCHING if self.remote is not None else 0)
        slots, segment = (self._limits[HOST] + spare, self._limits[DISK] + spare), 1 << 30
        self._store = _C.BlockStore(self.block_bytes, slots[0], threads, folder, slots[1], kind, segment)
        for pool, count in zip(self._pools, self._counts, strict=True):
            data, item = pool.data, pool.data.element_size()
            strides = (data.stride(1) * item, pool.spec.layers, data.stride(0) * item)
            self._store.attach(data, data.data_ptr(), pool.spec.page_bytes, *strides, pool.spec.pages, count)
        plan = Plan()
        for key in self._store.found():
            self._place(plan, key, DISK, written=True)
        self._submit(plan)

    # --- for engines ------------------------------------------------------------------------------------

    def match(self, keys: Sequence[Key]) -> list[str]:
        """Name the tiers of the blocks that are here, from the first on up to the first that is not."""
        with self.lock:
            self._reap()
            return [TIERS[self._tier(key)] for key in keys[: self._known(keys)]]

    def acquire(self, keys: Sequence[Key]) -> Loading:
        """Bring the longest known prefix of these blocks to the device, and keep it there for the caller.

        It ends earlier where the device has no room left. Ask `remote` too, for what nobody else has.
        """
        loading = self._load(list(dict.fromkeys(keys)))
        with self.lock:
            self._misses += len(keys) - len(loading)
        return loading

    def prefetch(self, keys: Sequence[Key]) -> Loading:
        """Begin to bring blocks to the device; others may take their place once they have arrived."""
        loading = self._load(list(dict.fromkeys(keys)), counted=False)
        loading.release()
        return loading

    def begin(self, loading: Loading) -> tuple[int, int]:
        """Begin a sequence with the blocks that arrive; it, and how many tokens it has."""
        with loading:
            known = loading.wait()
            sequence = self.paged.new()
            for i, pool in enumerate(self._pools):
                pages = loading.pages(i)
                self.paged.adopt(sequence, pool.name, pages, known * self.block_records[pool.name])
        return sequence, known * self.block_tokens

    def commit(self, sequence: int, keys: Sequence[Key]) -> None:
        """Keep the full blocks of a sequence: `keys[i]` is its i-th."""
        with self.lock:
            self._reap()
            plan = Plan()
            tables = [self.paged.pages(pool.name, sequence) for pool in self._pools]
            lengths = [self.paged.length(pool.name, sequence) for pool in self._pools]
            full = min(n // self.block_records[p.name] for n, p in zip(lengths, self._pools, strict=True))
            for i in reversed(range(min(len(keys), full))):  # the first is the youngest: it is needed most
                if keys[i] in self._device:
                    self._policies[DEVICE].touch(keys[i])
                    continue
                pages = [t[i * n : (i + 1) * n] for t, n in zip(tables, self._counts, strict=True)]
                if not any(GONE in p for p in pages):
                    self._keep(plan, keys[i], pages)
            self._submit(plan)

    def settle(self, timeout: float = 60.0) -> bool:
        """Wait until no transfer is under way; whether none is."""
        return self._store is None or self._store.settle(timeout)

    def flush(self) -> bool:
        """Have the system write to the disk what it has been given; whether that worked."""
        return self._store is None or (self._store.settle(60.0) and self._store.flush())

    def close(self) -> None:
        """End all transfers and release folder and memory; what is on disk stays there."""
        if self._workers is not None:
            self._workers.shutdown()
        if self.remote is not None:
            self.remote.close()
        if self._store is not None:
            self._store.close()

    def __enter__(self) -> TieredKVCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def stats(self) -> dict[str, Any]:
        """Everything that was counted since the cache was made; bytes are those of blocks."""
        with self.lock:
            self._reap()
            counts = {} if self._store is None else self._store.counts()
            blocks = (len(self._device), len(self._policies[HOST]), len(self._policies[DISK]))
            lost = 0 if self._store is None else self._store.dropped()
            return {
                "hits": dict(zip(TIERS, self._hits, strict=True)),
                "misses": self._misses,
                "blocks": dict(zip(TIERS, blocks, strict=False)),
                "bytes": {t: n * self.block_bytes for t, n in zip(TIERS, blocks, strict=False)},
                "evictions": dict(zip(TIERS, self._evicted, strict=False)),
                "transfers": {
                    name: dict(
                        zip(("blocks", "bytes", "seconds"), counts.get(which, (0, 0, 0.0)), strict=True)
                    )
                    for name, which in _TRANSFERS.items()
                },
                "errors": {**{s: self._errors[s] for s in STATUSES[2:]}, "torn": lost},
                "remote": {} if self.remote is None else self.remote.stats(),
            }

    # --- inside, with the lock held -----------------------------------------------------------------------

    def _tier(self, key: Key) -> int:
        return DEVICE if key in self._device else self._below[key]

    def _known(self, keys: Sequence[Key]) -> int:
        return next(
            (i for i, k in enumerate(keys) if k not in self._device and k not in self._below), len(keys)
        )

    def _load(self, keys: list[Key], *, counted: bool = True) -> Loading:
        with self.lock:
            self._reap()
            local = self._known(keys)
        reach = 0
        if self.remote is not None and local < len(keys):
            reach = local + self.remote.present(keys[local:])  # without the lock: it may take a while
        with self.lock:
            self._reap()
            wanted = keys[: self._known(keys)]
            blocks: list[Block] = []
            plan = Plan()
            for key in wanted:
                if key in self._device:
                    self._device[key].pins += 1
            comes_from = {key: self._forget_below(key) for key in wanted if key in self._below}
            line = [*wanted, *keys[len(wanted) : reach]]
            while len(blocks) < len(line):
                key = line[len(blocks)]
                block = self._device.get(key) or self._make_room(plan, key, comes_from.get(key, REMOTE))
                if block is not None:
                    blocks.append(block)
                elif last := self._device.get(line.pop()):  # the last ones make room for the first
                    last.pins -= 1
            for key in wanted[len(blocks) :]:  # no room for these: they stay where they were
                if key in comes_from:
                    self._place(plan, key, comes_from[key], written=True)
            ticket = self._submit(plan)
            tiers = []
            for block in reversed(blocks):  # the first block is the youngest: it is needed most
                tier = DEVICE if block.key in self._device else comes_from.get(block.key, REMOTE)
                self._hits[tier] += counted
                tiers.append(TIERS[tier])
                if tier == DEVICE:
                    self._policies[DEVICE].touch(block.key)
                else:
                    self._device[block.key] = block
                    self._policies[DEVICE].add(block.key)
            if plan.fetched and self._workers is not None:
                self._workers.submit(self._fetch, plan.fetched, ticket)
            return Loading(self, blocks, tiers[::-1])

    def _forget_below(self, key: Key) -> int:
        tier = self._below.pop(key)
        self._policies[tier].remove(key)
        return tier

    def _make_room(self, plan: Plan, key: Key, tier: int) -> Block | None:
        """A block for what comes from another tier, in free pages or in those of a victim."""
        room = self._free_pages() or self._evict(plan)
        if room is None:
            return None
        pages, after = room
        block = Block(key, pages)
        block.pins = 1
        if tier == REMOTE:
            block.fetched = Event()
            plan.fetched.append(block)
        else:
            plan.loaded.append(block)
            block.position = plan.add(TAKE, key, pages, after)
        return block

    def _free_pages(self) -> tuple[list[list[int]], int] | None:
        for pool, count in zip(self._pools, self._counts, strict=True):
            if pool.free < count:
                return None
        return [pool.take(count) for pool, count in zip(self._pools, self._counts, strict=True)], -1

    def _evict(self, plan: Plan) -> tuple[list[list[int]], int] | None:
        """Take a block off the device: its pages, and the command that must be done before they are used."""
        key = self._policies[DEVICE].victim(self._may_leave)
        if key is None:
            return None
        pages, after = self._device.pop(key).pages, -1
        self._evicted[DEVICE] += 1
        if self._store is not None:
            after = plan.add(PUT, key, pages)
            self._place(plan, key, HOST)
        return pages, after

    def _may_leave(self, key: Key) -> bool:
        block = self._device[key]
        if block.pins or not block.arrived:
            return False
        for pool, pages in zip(self._pools, block.pages, strict=True):
            for page in pages:
                if pool.references(page) > 1:
                    return False
        return True

    def _place(self, plan: Plan, key: Key, tier: int, *, written: bool = False) -> None:
        """Find a place in this tier, or in one below, for a block that the store has.

        What has to leave a tier for it goes one further down. `written`: the block is in the tier already.
        """
        for below in range(tier, REMOTE):
            limit = self._limits[below]
            if not limit:
                continue
            if below == DISK and not written:
                if self._is_behind():
                    break
                plan.add(SPILL, key)
            self._below[key] = below
            policy = self._policies[below]
            policy.add(key)
            if len(policy) <= limit:
                return
            victim = policy.victim(_anyone)
            assert victim is not None
            del self._below[victim]
            self._evicted[below] += 1
            key, written = victim, False
        self._leave(plan, key)

    def _is_behind(self) -> bool:
        if self._write_behind is None or self._store is None:
            return False
        return self._store.spills_open() >= self._write_behind

    def _leave(self, plan: Plan, key: Key) -> None:
        """Send a block to another machine, or drop it."""
        if self.remote is not None and self.remote.usable() and self._may_send.acquire(blocking=False):
            plan.sent.append(key)
        else:
            plan.add(DROP, key)

    def _keep(self, plan: Plan, key: Key, pages: list[list[int]]) -> None:
        """A block that a sequence has, with whoever else has its pages."""
        if key in self._below:  # computed again, or loaded by nobody: one copy is enough
            self._forget_below(key)
            plan.add(DROP, key)
        for pool, of_pool in zip(self._pools, pages, strict=True):
            pool.share(of_pool)
        self._device[key] = Block(key, pages)
        self._policies[DEVICE].add(key)

    def _submit(self, plan: Plan) -> _C.StoreTicket | None:
        ticket = None
        if plan.commands and self._store is not None:
            ticket = self._store.submit(plan.commands)
        self._expect(plan.loaded, ticket)
        for key in plan.sent:
            assert self._workers is not None
            self._workers.submit(self._send, key)
        return ticket

    def _expect(self, blocks: list[Block], ticket: _C.StoreTicket | None) -> None:
        if blocks and ticket is not None:
            self._coming.append((ticket, blocks))
            for block in blocks:
                block.ticket = ticket

    def _reclaim(self, missing: dict[str, int]) -> None:
        """Free pages for sequences: what `PagedKVCache` asks for before it gives up."""
        self._reap()
        plan, freed = Plan(), []
        needed = max(
            (-(-missing.get(p.name, 0) // n) for p, n in zip(self._pools, self._counts, strict=True)),
            default=0,
        )
        for _ in range(needed):
            room = self._evict(plan)
            if room is None:
                break
            freed.append(room[0])
        ticket = self._submit(plan)
        if ticket is not None and self._store is not None:
            while not self._store.wait(ticket, 3600):
                continue
        for pages in freed:
            self._drop_pages(pages)

    def _drop_pages(self, pages: list[list[int]]) -> None:
        for pool, of_pool in zip(self._pools, pages, strict=True):
            pool.drop(of_pool)

    def _reap(self) -> None:
        """Learn which transfers have ended. Blocks of those that failed are nowhere."""
        if self._store is None:
            return
        for key, _, status in self._store.failures():
            self._errors[STATUSES[status]] += 1
            if key in self._below:
                self._forget_below(key)
        still = []
        for ticket, blocks in self._coming:
            if not self._store.wait(ticket, 0):
                still.append((ticket, blocks))
                continue
            statuses = self._store.statuses(ticket)
            for block in blocks:
                block.ticket = None
                if statuses[block.position] != OK:
                    self._discard(block)
        self._coming = still

    def _discard(self, block: Block) -> None:
        block.gone = True
        if self._device.get(block.key) is block:
            del self._device[block.key]
            self._policies[DEVICE].remove(block.key)
        self._drop_pages(block.pages)

    # --- waiting, and other machines: without the lock ------------------------------------------------------

    def _wait_for(self, block: Block, deadline: float | None) -> bool:
        """Whether the block arrives, or is found to be gone, in time."""
        while not block.arrived:
            left = 3600.0 if deadline is None else max(0.0, deadline - time.monotonic())
            event, ticket = block.fetched, block.ticket
            if event is not None:
                event.wait(left)
            elif ticket is not None and self._store is not None:
                self._store.wait(ticket, left)
            with self.lock:
                self._reap()
            if left == 0 and not block.arrived:
                return False
        return True

    def _send(self, key: Key) -> None:
        """Move a block to the server."""
        assert self._store is not None and self.remote is not None
        try:
            data = self._store.fetch(key, True)
            if data is not None:
                self.remote.put(key, data)
        finally:
            self._may_send.release()

    def _fetch(self, blocks: list[Block], before: _C.StoreTicket | None) -> None:
        """Bring blocks from the server, once the blocks whose pages they get have left."""
        assert self._store is not None and self.remote is not None
        while before is not None and not self._store.wait(before, 3600):
            continue
        for block in blocks:
            data = self.remote.get(block.key)
            with self.lock:
                event, block.fetched = block.fetched, None
                if data is None:
                    self._discard(block)
                else:
                    self._store.insert(block.key, data)
                    plan = Plan()
                    block.position = plan.add(TAKE, block.key, block.pages)
                    self._expect([block], self._store.submit(plan.commands))
            assert event is not None
            event.set()


def _anyone(_: Key) -> bool:
    return True


# What the store counts, by what it means here.
_TRANSFERS = {
    "device to host": ("put", "host"),
    "host to device": ("take", "host"),
    "disk to device": ("take", "disk"),
    "host to disk": ("spill", "host"),
}

"""The tiered cache: a block lies in one tier at a time, and comes back as it was."""

import contextlib
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsekern.kv import Collector, OutOfPages, PoolSpec, TieredKVCache, block_keys
from sparsekern.kv.policy import LRU, POLICIES, S3FIFO
from sparsekern.schema import ShapeError
from sparsekern.testing import raw

# Two pools, of several layers and with several pages a block.
BLOCK = 8
POOLS = {
    "latent": PoolSpec("mla584", pages=4 * 12, page_size=2, layers=2),
    "keys": PoolSpec("bf16", pages=12, page_size=2, head_dim=3),
}
RECORDS = {"latent": BLOCK, "keys": 2}


def make(device: int, host: int = 0, disk: int = 0, **options: Any) -> TieredKVCache:
    pools = {
        "latent": POOLS["latent"]._replace(pages=4 * device),
        "keys": POOLS["keys"]._replace(pages=device),
    }
    options = {"write_behind": None, **options}
    return TieredKVCache(
        pools, block_tokens=BLOCK, block_records=RECORDS, host_blocks=host, disk_blocks=disk, **options
    )


def key(i: int) -> bytes:
    return i.to_bytes(16, "little")


def pages_of(cache: TieredKVCache, sequence: int, block: int) -> list[torch.Tensor]:
    """The bytes of one block, pool by pool, all layers."""
    found = []
    for name, records in RECORDS.items():
        pool = cache.paged.pools[name]
        count = records // pool.spec.page_size
        found.append(
            raw(pool.data)[:, cache.paged.pages(name, sequence)[block * count : (block + 1) * count]]
        )
    return found


def fill(cache: TieredKVCache, sequence: int, block: int, i: int) -> None:
    for pool, pages in zip(cache.paged.pools.values(), pages_of(cache, sequence, block), strict=True):
        table = cache.paged.pages(pool.name, sequence)
        count = RECORDS[pool.name] // pool.spec.page_size
        content = torch.randint(256, pages.shape, generator=torch.Generator().manual_seed(i)).to(pages.dtype)
        raw(pool.data)[:, table[block * count : (block + 1) * count]] = content


def right(cache: TieredKVCache, sequence: int, block: int, i: int) -> bool:
    return all(
        torch.equal(p, torch.randint(256, p.shape, generator=torch.Generator().manual_seed(i)).to(p.dtype))
        for p in pages_of(cache, sequence, block)
    )


def serve(cache: TieredKVCache, ids: list[int], *, check: bool = True) -> int:
    """One request: reuse what is known, compute the rest, keep it all. How many blocks were known."""
    keys = [key(i) for i in ids]
    sequence, known = cache.begin(cache.acquire(keys))
    known //= BLOCK
    if check:
        assert all(right(cache, sequence, b, ids[b]) for b in range(known)), "a wrong block came back"
    cache.paged.extend([sequence], {n: [(len(ids) - known) * r] for n, r in RECORDS.items()})
    for b in range(known, len(ids)):
        fill(cache, sequence, b, ids[b])
    cache.commit(sequence, keys)
    cache.paged.free(sequence)
    return known


def requests(count: int, seed: int) -> Iterator[list[int]]:
    """Prefixes of a few dozen sequences, some asked for more often."""
    rng = random.Random(seed)
    for _ in range(count):
        first = 10 * min(rng.randrange(30), rng.randrange(30), rng.randrange(30))
        yield list(range(first, first + rng.randint(1, 6)))


def check_tiers(cache: TieredKVCache) -> None:
    """Every block is in one tier, and the tiers hold no more than they may."""
    assert cache.settle()
    stats = cache.stats()
    assert not any(stats["errors"].values()), stats["errors"]
    store = cache._store
    assert not set(cache._device) & set(cache._below)
    for blocks, policy, limit in zip(
        (
            set(cache._device),
            *({k for k, t in cache._below.items() if t == tier} for tier in (1, 2)),
        ),
        cache._policies,
        cache._limits,
        strict=True,
    ):
        assert len(blocks) == len(policy) <= limit
    if store is not None:
        assert all(store.where(k) == tier for k, tier in cache._below.items())
        assert all(store.where(k) == 0 for k in cache._device)
        counts = store.counts()
        assert counts["host_used"] + counts["disk_used"] == len(cache._below)
    for pool in cache.paged.pools.values():
        count = RECORDS[pool.name] // pool.spec.page_size
        assert pool.free == pool.spec.pages - count * len(cache._device)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("sizes", [(12, 0, 0), (7, 3, 2), (7, 0, 5), (7, 5, 0), (6, 1, 1), (8, 20, 30)])
def test_any_requests(sizes: tuple[int, int, int], policy: str, tmp_path: Path) -> None:
    with make(*sizes, folder=tmp_path, policy=policy) as cache:
        known = sum(serve(cache, ids) for ids in requests(400, seed=1))
        stats = cache.stats()
        assert known == sum(stats["hits"].values()) > 0
        check_tiers(cache)


@pytest.mark.parametrize("sizes", [(7, 3, 2), (7, 0, 5), (7, 5, 0), (6, 2, 4)])
def test_tiers_waste_nothing(sizes: tuple[int, int, int], tmp_path: Path) -> None:
    """With LRU, tiers of 12 blocks together know what 12 blocks on the device would know, always."""
    with make(12) as flat, make(*sizes, folder=tmp_path) as tiered:
        for ids in requests(400, seed=2):
            assert serve(flat, ids) == serve(tiered, ids)
        assert sum(sizes) == sum(tiered.stats()["blocks"].values()) == 12


def test_what_came_back_is_on_the_device_and_nowhere_else(tmp_path: Path) -> None:
    with make(6, 2, 3, folder=tmp_path) as cache:
        for first in (0, 10, 20, 30):
            serve(cache, [first, first + 1, first + 2])
        assert cache.match([key(i) for i in (0, 1, 2)]) == ["disk", "disk"]
        assert cache.match([key(i) for i in (10, 11, 12)]) == ["host", "host", "disk"]
        assert cache.match([key(i) for i in (30, 31, 32, 99)]) == ["device"] * 3
        assert serve(cache, [10, 11, 12]) == 3
        assert cache.match([key(i) for i in (10, 11, 12)]) == ["device"] * 3
        assert cache.stats()["hits"] == {"device": 0, "host": 2, "disk": 1, "remote": 0}
        check_tiers(cache)


def test_blocks_in_use_stay(tmp_path: Path) -> None:
    with make(4, 4, 4, folder=tmp_path) as cache:
        serve(cache, [0, 1])
        loading = cache.acquire([key(0), key(1)])
        sequence, known = cache.begin(cache.acquire([key(0)]))
        assert known == BLOCK and loading.wait() == 2
        with pytest.raises(OutOfPages):
            serve(cache, [10, 11, 12])
        serve(cache, [10, 11])
        assert cache.match([key(0), key(1)]) == ["device"] * 2
        loading.release()
        loading.release()  # once is enough
        serve(cache, [20, 21, 22])
        assert cache.match([key(0), key(1)]) == ["device", "host"], "the sequence still has the first one"
        assert right(cache, sequence, 0, 0)
        cache.paged.free(sequence)
        serve(cache, [30, 31, 32, 33])
        check_tiers(cache)


def test_a_prefix_that_does_not_fit_is_shortened(tmp_path: Path) -> None:
    with make(3, 8, folder=tmp_path) as cache:
        for i in (0, 1, 2, 3, 4):
            serve(cache, [i])
        with cache.acquire([key(i) for i in range(5)]) as loading:
            assert len(loading) == loading.wait() == 3
            assert cache.match([key(3), key(4)]) == ["host", "host"]
        check_tiers(cache)


def test_prefetched_blocks_are_hits_on_the_device(tmp_path: Path) -> None:
    with make(4, 1, 8, folder=tmp_path) as cache:
        for first in (0, 10, 20):
            serve(cache, [first, first + 1])
        assert "device" not in cache.match([key(0), key(1)])
        handle = cache.prefetch([key(0), key(1), key(99)])
        assert handle.wait(10) == 2 and handle.done()
        assert cache.stats()["hits"]["device"] == 0
        assert serve(cache, [0, 1]) == 2
        assert cache.stats()["hits"] == {"device": 2, "host": 0, "disk": 0, "remote": 0}
        check_tiers(cache)


def test_waiting_can_be_given_up(tmp_path: Path) -> None:
    with make(4, 8, folder=tmp_path) as cache:
        serve(cache, [0, 1])
        serve(cache, [10, 11, 12, 13])
        with cache.acquire([key(0), key(1)]) as loading:
            while not loading.done():
                time.sleep(0)
            assert loading.wait(timeout=0) == 2


def test_many_threads(tmp_path: Path) -> None:
    with make(24, 8, 12, folder=tmp_path) as cache:

        def work(seed: int) -> None:
            for ids in requests(60, seed):
                with contextlib.suppress(OutOfPages):
                    serve(cache, ids)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))
        assert cache.settle()
        assert not any(cache.stats()["errors"].values())


def test_a_slow_disk_is_not_waited_for(tmp_path: Path) -> None:
    with make(4, 0, 100, folder=tmp_path, write_behind=0) as cache:
        for first in range(0, 100, 10):
            serve(cache, [first, first + 1])
        assert cache.stats()["blocks"]["disk"] == 0
        check_tiers(cache)


# --- restarts -----------------------------------------------------------------------------------------------


def test_blocks_on_disk_are_there_after_a_restart(tmp_path: Path) -> None:
    with make(2, 1, 9, folder=tmp_path) as cache:
        for i in range(8):
            serve(cache, [i])
        assert cache.flush()
        blocks = cache.stats()["blocks"]["disk"]
    with make(2, 1, 9, folder=tmp_path) as cache:
        assert cache.stats()["blocks"] == {"device": 0, "host": 0, "disk": blocks}
        assert sum(serve(cache, [i]) for i in range(8)) == blocks == 5
        check_tiers(cache)
    with make(2, 1, 2, folder=tmp_path) as cache:  # a smaller disk keeps what it can
        assert cache.stats()["blocks"]["disk"] <= 2
        check_tiers(cache)
    with make(2, 1, 9, folder=tmp_path) as cache:
        assert cache.stats()["blocks"]["disk"] <= 2


def test_one_cache_a_folder(tmp_path: Path) -> None:
    with (
        make(2, 1, 9, folder=tmp_path),
        pytest.raises(RuntimeError, match=rf"{tmp_path} is in use by process \d+: one cache at a time"),
    ):
        make(2, 1, 9, folder=tmp_path)
    make(2, 1, 9, folder=tmp_path).close()


def test_other_blocks_are_refused(tmp_path: Path) -> None:
    make(2, 1, 9, folder=tmp_path).close()
    with pytest.raises(
        RuntimeError, match=r"holds blocks of .* expected blocks of .*: choose another folder"
    ):
        make(2, 1, 9, folder=tmp_path, kind="another model")
    with pytest.raises(RuntimeError, match="expected blocks of 12 bytes"):
        TieredKVCache(
            {"kv": PoolSpec("bf16", pages=1, page_size=1, head_dim=6)},
            block_tokens=1,
            disk_blocks=1,
            folder=tmp_path,
        )
    with pytest.raises(RuntimeError, match="cannot open"):
        make(2, 1, 9, folder="/proc/no/such/place")


# --- policies -----------------------------------------------------------------------------------------------


def everything(_: bytes) -> bool:
    return True


def test_lru() -> None:
    lru = LRU(3)
    for i in range(3):
        lru.add(key(i))
    lru.touch(key(0))
    assert lru.victim(lambda k: k != key(1)) == key(2)
    assert [lru.victim(everything) for _ in range(3)] == [key(1), key(0), None]


def test_s3fifo_keeps_what_is_used_from_a_scan() -> None:
    policy, inside = S3FIFO(20), set()
    rng = random.Random(0)

    def use(i: int) -> bool:
        if known := i in inside:
            policy.touch(key(i))
        else:
            policy.add(key(i))
            inside.add(i)
            while len(policy) > 20:
                victim = policy.victim(everything)
                assert victim is not None
                inside.remove(int.from_bytes(victim, "little"))
        return known

    for step in range(3000):
        use(rng.randrange(12))  # a dozen blocks, again and again
        use(1000 + step)  # and others once
    assert inside >= set(range(12)), "LRU would have kept some of them only"
    assert len(inside) == len(policy) == 20
    assert policy.victim(lambda _: False) is None and len(policy) == 20
    for i in inside:
        policy.remove(key(i))
    assert len(policy) == 0 and policy.victim(everything) is None


# --- keys, options, counts ----------------------------------------------------------------------------------


def test_keys_stand_for_all_tokens_so_far() -> None:
    a = block_keys(range(20), 8)
    assert len(a) == 2 and all(len(k) == 16 for k in a)
    assert block_keys(torch.arange(16).tolist(), 8) == a
    assert block_keys([0, 1, 2, 3, 4, 5, 6, 7, 9, *range(9, 16)], 8)[0] == a[0]
    assert block_keys([9, *range(1, 16)], 8)[1] != a[1]
    assert block_keys(range(16), 8, salt=b"another model")[0] != a[0]
    assert block_keys([-1] * 8, 8) and block_keys([], 8) == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"block_records": {"latent": 3}},
            "has 3 records of 'latent', expected a multiple of its page size, 2",
        ),
        ({"block_records": {"window": 8}}, "names pool 'window', which is not there"),
        ({"policy": "random"}, "policy is 'random', expected 'lru' or 's3fifo'"),
        ({"disk_blocks": 5}, "disk_blocks is given and folder is not"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ShapeError, match=f"TieredKVCache: .*{says}"):
        TieredKVCache(POOLS, **{"block_tokens": 8, **options})


def test_a_pool_may_be_left_out() -> None:
    cache = TieredKVCache(POOLS, block_tokens=8, block_records={"latent": 8}, host_blocks=2)
    sequence = cache.paged.new()
    cache.paged.extend([sequence], {"latent": [8], "keys": [5]})
    cache.commit(sequence, [key(0)])
    cache.paged.free(sequence)
    assert cache.paged.pools["keys"].free == 12 and cache.paged.pools["latent"].free == 44
    cache.close()


def test_prometheus(tmp_path: Path) -> None:
    client = pytest.importorskip("prometheus_client", reason="the prometheus_client package is not installed")
    registry = client.CollectorRegistry()
    with make(2, 1, 4, folder=tmp_path) as cache:
        registry.register(Collector(cache))
        for i in (0, 1, 2, 3, 0):
            serve(cache, [i])
        cache.settle()
        assert registry.get_sample_value("sparsekern_kv_misses_total") == 4
        assert registry.get_sample_value("sparsekern_kv_hits_total", {"tier": "disk"}) == 1
        assert registry.get_sample_value("sparsekern_kv_blocks", {"tier": "device"}) == 2
        moved = {"transfer": "host_to_disk"}
        assert (
            registry.get_sample_value("sparsekern_kv_transferred_bytes_total", moved) == cache.block_bytes * 2
        )
        assert b"sparsekern_kv_errors_total" in client.generate_latest(registry)


def test_closing_waits_for_transfers(tmp_path: Path) -> None:
    cache = make(4, 0, 50, folder=tmp_path)
    for first in range(0, 200, 10):
        serve(cache, [first, first + 1], check=False)
    cache.close()
    start = time.monotonic()
    cache.close()
    assert time.monotonic() - start < 1
    with make(4, 0, 50, folder=tmp_path) as again:
        assert again.stats()["blocks"]["disk"] == 36 and again.stats()["errors"]["torn"] == 0

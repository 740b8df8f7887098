"""Pages with reference counts: whatever sequences do, each one reads what was appended to it."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsekern import kv_gather
from sparsekern.kv import OutOfPages, PagedKVCache, PoolSpec
from sparsekern.schema import ShapeError
from sparsekern.testing import assert_same_bits

SPECS = {
    "latent": PoolSpec("mla584", pages=40, page_size=4),
    "keys": PoolSpec("index132", pages=60, page_size=3),
    "state": PoolSpec("bf16", pages=50, page_size=5, head_dim=7, dtype=torch.float32),
}
WIDTH = {"latent": 512, "keys": 128, "state": 7}


def records(name: str, count: int, rng: torch.Generator) -> Tensor:
    return torch.randint(-8, 8, (count, WIDTH[name]), generator=rng).bfloat16()  # exact in every format


def read(cache: PagedKVCache, name: str, sequence: int, start: int = 0) -> Tensor:
    spec, length = cache.pools[name].spec, cache.length(name, sequence)
    got = kv_gather(
        cache.pools[name].data[0],
        cache.block_table(name, [sequence]),
        torch.tensor([length - start]).int(),
        format=spec.format,
        page_size=spec.page_size,
        starts=torch.tensor([start]).int(),
    )
    return got[0].float() * got[1][:, None] if isinstance(got, tuple) else got.float()


def snapshot(cache: PagedKVCache) -> Any:
    """All that a call could change, but for bytes in free pages."""
    return (
        {
            s: {n: (list(p.pages), p.length) for n, p in parts.items()}
            for s, parts in cache._sequences.items()
        },
        {
            n: ([pool.references(i) for i in range(pool.spec.pages)], pool.free)
            for n, pool in cache.pools.items()
        },
        {s: {n: read(cache, n, s).tolist() for n in cache.pools} for s in cache._sequences},
    )


def check_counts(cache: PagedKVCache) -> None:
    """A page has as many references as sequences have it; the others are free."""
    for name, pool in cache.pools.items():
        seen = Counter(p for s in cache._sequences for p in cache.pages(name, s) if p >= 0)
        assert [pool.references(p) for p in range(pool.spec.pages)] == [
            seen[p] for p in range(pool.spec.pages)
        ]
        assert pool.free == pool.spec.pages - len(seen)
        assert sorted(pool._free) == [p for p in range(pool.spec.pages) if not seen[p]]


@pytest.mark.parametrize("seed", range(4))
def test_any_history(seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    cache = PagedKVCache(SPECS)
    told: dict[int, dict[str, Tensor]] = {}
    refused = 0

    def pick(n: int) -> int:
        return int(torch.randint(n, (1,), generator=rng))

    for _ in range(160):
        what = pick(10)
        if what == 0 or not told:
            told[cache.new()] = {n: records(n, 0, rng).float() for n in SPECS}
            continue
        s = list(told)[pick(len(told))]
        if what == 1:
            told[cache.fork(s)] = dict(told[s])
        elif what == 2 and len(told) > 2:
            cache.free(s)
            del told[s]
        elif what == 3:
            lengths = {n: pick(len(told[s][n]) + 1) for n in list(SPECS)[: 1 + pick(3)]}
            cache.truncate(s, lengths)
            told[s] |= {n: told[s][n][:length] for n, length in lengths.items()}
        else:
            some = list(dict.fromkeys([s, *(list(told)[pick(len(told))] for _ in range(pick(3)))]))
            new = {n: [records(n, pick(9), rng) for _ in some] for n in SPECS}
            before = snapshot(cache)
            try:
                slots = cache.extend(some, {n: [len(v) for v in vs] for n, vs in new.items()})
            except OutOfPages as error:
                assert error.needed > error.free and error.pool in str(error)
                assert snapshot(cache) == before
                refused += 1
                for sequence in some:
                    cache.free(sequence)
                    del told[sequence]
                continue
            for n, vs in new.items():
                cache.write(n, 0, slots[n], torch.cat(vs))
                for i, sequence in enumerate(some):
                    told[sequence][n] = torch.cat([told[sequence][n], vs[i].float()])
        check_counts(cache)
        for sequence, parts in told.items():
            for n, want in parts.items():
                assert_same_bits(read(cache, n, sequence), want)
    assert refused, "the pools are small enough to run out"


def test_a_copy_is_made_only_of_what_others_see() -> None:
    cache = PagedKVCache({"kv": PoolSpec("bf16", pages=4, page_size=4, head_dim=2)})
    a = cache.new()
    cache.append(a, {"kv": torch.ones(3, 2).bfloat16()})
    b = cache.fork(a)
    assert cache.pools["kv"].free == 3 and cache.pages("kv", a) == cache.pages("kv", b) == [0]
    slots = cache.extend([a, b], {"kv": [1, 1]})  # one of them copies, the other is then alone
    assert cache.pools["kv"].free == 2
    assert sorted(slots["kv"].tolist()) == [3, 7]
    cache.write("kv", 0, slots["kv"], torch.tensor([[2.0, 2.0], [3.0, 3.0]]).bfloat16())
    assert read(cache, "kv", a)[:, 0].tolist() == [1, 1, 1, 2]
    assert read(cache, "kv", b)[:, 0].tolist() == [1, 1, 1, 3]
    full = cache.fork(a)  # a full page is never copied
    cache.extend([full], {"kv": [1]})
    assert cache.pages("kv", full)[0] == cache.pages("kv", a)[0] and cache.pools["kv"].free == 1


def test_layers_share_their_block_table() -> None:
    cache = PagedKVCache({"kv": PoolSpec("bf16", pages=4, page_size=2, layers=3, head_dim=1)})
    a = cache.new()
    cache.append(a, {"kv": torch.arange(3.0).view(3, 1, 1).bfloat16()})
    b = cache.fork(a)
    cache.append(b, {"kv": torch.full((3, 1, 1), 9.0).bfloat16()})
    pool, (first,), (second,) = cache.pools["kv"].data, cache.pages("kv", a), cache.pages("kv", b)
    assert pool[:, first, 0, 0].tolist() == pool[:, second, 0, 0].tolist() == [0, 1, 2]
    assert pool[:, second, 1, 0].tolist() == [9, 9, 9]


def test_a_window_gives_pages_back() -> None:
    cache = PagedKVCache({"kv": PoolSpec("bf16", pages=5, page_size=4, head_dim=1)})
    a = cache.new()
    cache.append(a, {"kv": torch.arange(18.0).view(18, 1).bfloat16()})
    b = cache.fork(a)
    cache.forget(a, "kv", before=11)
    assert cache.block_table("kv", [a, b], width=6).tolist() == [[-1, -1, 2, 3, 4, -1], [0, 1, 2, 3, 4, -1]]
    assert read(cache, "kv", a, start=8)[:, 0].tolist() == list(range(8, 18))
    assert cache.pools["kv"].free == 0
    cache.free(b)
    assert cache.pools["kv"].free == 2
    with pytest.raises(ShapeError, match="record 5 of 'kv' is in a page that was forgotten"):
        cache.truncate(a, {"kv": 6})
    cache.truncate(a, {"kv": 8})
    cache.free(a)
    assert cache.pools["kv"].free == 5


def test_reclaim_is_asked_before_a_call_is_refused() -> None:
    asked = []

    def reclaim(missing: dict[str, int]) -> None:
        asked.append(missing)
        cache.free(old)

    cache = PagedKVCache({"kv": PoolSpec("bf16", pages=2, page_size=1, head_dim=1)}, reclaim=reclaim)
    old, new = cache.new(), cache.new()
    cache.extend([old], {"kv": [2]})
    cache.extend([new], {"kv": [1]})
    assert asked == [{"kv": 1}] and cache.pools["kv"].free == 1


def test_whole_pages_are_adopted() -> None:
    cache = PagedKVCache({"kv": PoolSpec("bf16", pages=4, page_size=2, head_dim=1)})
    a, b = cache.new(), cache.new()
    cache.append(a, {"kv": torch.arange(4.0).view(4, 1).bfloat16()})
    cache.adopt(b, "kv", cache.pages("kv", a)[:1], 2)
    cache.append(b, {"kv": torch.tensor([[7.0]]).bfloat16()})
    assert read(cache, "kv", b)[:, 0].tolist() == [0, 1, 7]
    with pytest.raises(ShapeError, match="expected full pages"):
        cache.adopt(b, "kv", [0], 2)
    check_counts(cache)


def test_what_is_wrong_is_said_and_changes_nothing() -> None:
    cache = PagedKVCache(SPECS)
    a = cache.new()
    cache.append(a, {"latent": records("latent", 6, torch.Generator())})
    before = snapshot(cache)
    for error, says, call in (
        (KeyError, "no sequence 99", lambda: cache.extend([99], {"latent": [1]})),
        (KeyError, "no pool 'window', only 'latent', 'keys'", lambda: cache.extend([a], {"window": [1]})),
        (ShapeError, "named twice", lambda: cache.extend([a, a], {"latent": [1, 1]})),
        (ShapeError, "expected 1 numbers", lambda: cache.extend([a], {"latent": [1, 2]})),
        (ShapeError, "expected 1 numbers, 0 or more", lambda: cache.extend([a], {"latent": [-1]})),
        (ShapeError, "length of 'latent' is 7, expected 0 to 6", lambda: cache.truncate(a, {"latent": 7})),
        (ShapeError, "width is 1, expected at least 2", lambda: cache.block_table("latent", [a], width=1)),
        (ShapeError, "rows of 3, expected 512", lambda: cache.append(a, {"latent": torch.ones(1, 3)})),
        (ShapeError, "for 2 layers, expected 1", lambda: cache.append(a, {"keys": torch.ones(2, 1, 128)})),
        (
            OutOfPages,
            "pool 'keys' has 60 of 60 pages free, 67 are",
            lambda: cache.extend([a], {"keys": [200]}),
        ),
    ):
        with pytest.raises(error, match=says):
            call()
        assert snapshot(cache) == before
    with pytest.raises(ShapeError, match="pools is empty"):
        PagedKVCache({})
    with pytest.raises(ShapeError, match="pages of 'kv' is 0"):
        PagedKVCache({"kv": PoolSpec("mla656", pages=0)})
    with pytest.raises(ShapeError, match="head_dim is None"):
        PagedKVCache({"kv": PoolSpec("bf16", pages=1)})

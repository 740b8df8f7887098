"""The lightning indexer beyond what every op is put through: streams, memory, pages, needles, errors."""

import re
import subprocess
import sys
import time
from typing import Any

import pytest
import torch
from cases import Args, inputs
from torch import Tensor

import sparsekern
from sparsekern.catalogue import OPS
from sparsekern.ops._indexer import best_columns, best_keys
from sparsekern.schema import DtypeError, ShapeError
from sparsekern.testing import assert_same_bits
from sparsekern.weights import dequantised

KINDS = range(4)  # fp32, bf16, FP8, FP4


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scored(m: int, n: int, kind: int, heads: int = 8, dim: int = 32, **more: int) -> Args:
    """Arguments of indexer_logits, of the usual kind."""
    return OPS["indexer_logits"].inputs({"M": m, "N": n, "H": heads, "D": dim, "kind": kind, **more}, rng(n))


# --- streams of numbers -------------------------------------------------------------------------------------


def spikes(n: int) -> Tensor:
    """The largest numbers sit where a sample of every 32nd vector would look: a guess from it is too high."""
    x = -torch.rand(n, generator=rng(n))
    return torch.where(torch.arange(n) // 16 % 32 == 0, 1 + torch.rand(n, generator=rng(n)), x)


STREAMS = {
    "rising": lambda n: torch.arange(n).float(),
    "falling": lambda n: -torch.arange(n).float(),
    "saw": lambda n: (torch.arange(n) * 7919 % 1000).float(),
    "constant": lambda n: torch.full((n,), 2.5),
    "zeros of both signs": lambda n: torch.where(torch.arange(n) % 3 == 0, -0.0, 0.0),
    "nothing": lambda n: torch.full((n,), -torch.inf),
    "nan": lambda n: torch.full((n,), torch.nan),
    "infinite": lambda n: torch.where(torch.arange(n) % 5 == 0, torch.inf, -torch.inf),
    "one number": lambda n: torch.where(torch.arange(n) == n // 2, -1e30, -torch.inf),
    "subnormal": lambda n: torch.rand(n, generator=rng(n)) * 1e-40 - 5e-41,
    "spikes": spikes,
}


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("k", [1, 64, 2048, 4096])
@pytest.mark.parametrize("stream", STREAMS)
def test_topk_of_any_stream(stream: str, k: int, threads: int) -> None:
    x = STREAMS[stream](131072 + 37)
    with sparsekern.config.using(threads=threads):
        assert_same_bits(sparsekern.topk_per_row(x[None], k=k), best_columns(x[None], k), stream)


def test_topk_of_a_long_row_in_parts() -> None:
    x = torch.randn(1, (1 << 20) + 5, generator=rng(1)).round(decimals=2)  # ties all over
    want = best_columns(x, 2048)
    for threads in (1, 2, 3, 4):
        with sparsekern.config.using(threads=threads):
            assert_same_bits(sparsekern.topk_per_row(x, k=2048), want, f"{threads} threads")


def test_topk_looks_no_further_than_its_columns() -> None:
    """What lies outside is larger than all of them, or NaN; one row has no columns."""
    x, want = torch.randn(4, 3000, generator=torch.Generator().manual_seed(0)), None
    starts = torch.tensor([0, 17, 3000, 1500], dtype=torch.int32)
    ends = torch.tensor([3000, 2001, 3000, 1500 + 40], dtype=torch.int32)
    column = torch.arange(3000)
    for fill in (-torch.inf, torch.inf, torch.nan):
        x[(column < starts[:, None]) | (column >= ends[:, None])] = fill
        got = sparsekern.topk_per_row(x, k=64, starts=starts, ends=ends)
        assert_same_bits(got, want if want is not None else got, f"{fill}:")
        want = got
    assert want is not None and (want[2] == -1).all() and ((want[3] >= 0).sum() == 40)
    assert_same_bits(want[:1], best_columns(x[:1], 64))


# --- the fused op is the other two --------------------------------------------------------------------------


@pytest.mark.parametrize("candidates", [None, (64, 5), (7, 100), (1, 300), (5000, 1)])
@pytest.mark.parametrize("kind", KINDS)
def test_fused_is_logits_then_topk(kind: int, candidates: tuple[int, int] | None) -> None:
    x = scored(11, 3000, kind, ranges=1)
    logits = sparsekern.indexer_logits(**x)
    got = sparsekern.indexer_topk(**x, k_top=200, candidates=candidates)
    assert_same_bits(got, best_keys(logits, 200, candidates))
    if candidates is None:
        assert_same_bits(got, sparsekern.topk_per_row(logits, k=200))


def least_workspace(x: Args) -> int:
    with pytest.raises(ShapeError, match="max_workspace_bytes is 1, expected at least") as caught:
        sparsekern.indexer_topk(**x, max_workspace_bytes=1)
    found = re.search(r"at least (\d+)", str(caught.value))
    assert found is not None
    return int(found.group(1))


@pytest.mark.parametrize("candidates", [None, (32, 40)])
@pytest.mark.parametrize("m", [1, 37])
def test_workspace_changes_nothing_but_memory(m: int, candidates: tuple[int, int] | None) -> None:
    x = scored(m, 5000, 2, heads=4) | {"k_top": 300, "candidates": candidates}
    least = least_workspace(x)
    want = sparsekern.indexer_topk(**x)
    for threads in (1, 2, 5):
        for limit in (least, least + least // 3, 3 * least, 8 * least, 100 * least):
            with sparsekern.config.using(threads=threads):
                got = sparsekern.indexer_topk(**x, max_workspace_bytes=limit)
            assert_same_bits(got, want, f"{limit} bytes, {threads} threads")
    out = torch.full((m, 300), 77, dtype=torch.int32)
    with pytest.raises(ShapeError):
        sparsekern.indexer_topk(**x, max_workspace_bytes=least - 1, out=out)
    assert (out == 77).all()


BOUNDED = """
import sys, torch, sparsekern
from pathlib import Path

def peak():  # not ru_maxrss, which begins with that of the parent
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) << 10

m, n, limit = 64, int(sys.argv[2]), int(sys.argv[3]) << 20
k = torch.full((n, 32), 0.5, dtype=torch.bfloat16)
q, w = torch.ones(m, 1, 32, dtype=torch.bfloat16), torch.ones(m, 1)
candidates = (64, 100) if sys.argv[1] == "blocks" else None
options = {} if limit == 32 << 20 else {"max_workspace_bytes": limit}
sparsekern.indexer_topk(q, k[:2000], None, w, k_top=2048)
before = peak()
sparsekern.indexer_topk(q, k, None, w, k_top=2048, candidates=candidates, **options)
grown = peak() - before
assert grown < limit + (4 << 20), grown
"""


@pytest.mark.parametrize("how", ["keys", "blocks"])
@pytest.mark.parametrize(("keys", "megabytes"), [(400_000, 4), (1 << 20, 32)])
def test_scores_are_never_all_there(keys: int, megabytes: int, how: str) -> None:
    """They would take 100 and 256 MB; 32 MB is what is allowed by default."""
    subprocess.run([sys.executable, "-c", BOUNDED, how, str(keys), str(megabytes)], check=True)


# --- pages --------------------------------------------------------------------------------------------------


def paged(kind: int, page: int, dim: int = 64, **more: int) -> Args:
    dims = {"B": 3, "n": 2, "N": 700, "page": page, "H": 8, "D": dim, "kind": kind, **more}
    return OPS["indexer_logits_paged"].inputs(dims, rng(page))


def unpaged(x: Args, b: int) -> Args:
    """Sequence b of a paged call as rows of keys, in the arguments of indexer_logits."""
    size, count, q = x["cache"].shape[1], int(x["context_lens"][b].max()), x["q"][b]
    pages = x["cache"][x["block_table"][b, : -(-count // size)].long()]
    named = {"q": q, "weights": x["weights"][2 * b : 2 * b + 2], "ends": x["context_lens"][b]}
    if pages.dtype != torch.uint8:
        return named | {"k": pages.flatten(0, 1)[:count], "k_scale": None}
    width = q.shape[-1]
    keys = pages.flatten(1)[:, : size * width].reshape(-1, width)[:count].view(q.dtype)
    scale = pages.flatten(1)[:, size * width :].reshape(-1, 4)[:count]
    if q.dtype == torch.uint8:
        return named | {
            "k": keys,
            "k_scale": scale[:, : width // 16].contiguous(),
            "q_scale": x["q_scale"][b],
        }
    return named | {"k": keys, "k_scale": scale.contiguous().view(torch.float32)[:, 0]}


@pytest.mark.parametrize("page", [1, 7, 64, 200])
@pytest.mark.parametrize("kind", KINDS)
def test_pages_change_no_bits(kind: int, page: int) -> None:
    x = paged(kind, page)
    scores = sparsekern.indexer_logits_paged(**x)
    best = sparsekern.indexer_topk_paged(**x, k_top=50)
    slots = sparsekern.indexer_topk_paged(**x, k_top=50, physical=True)
    blocks = sparsekern.indexer_topk_paged(**x, k_top=50, candidates=(10, 4))
    for b in range(3):
        rows, plain = unpaged(x, b), slice(2 * b, 2 * b + 2)
        want, count = sparsekern.indexer_logits(**rows), len(rows["k"])
        assert_same_bits(scores[plain, :count].contiguous(), want)
        assert (scores[plain, count:] == -torch.inf).all()
        assert_same_bits(best[plain], sparsekern.indexer_topk(**rows, k_top=50))
        assert_same_bits(blocks[plain], sparsekern.indexer_topk(**rows, k_top=50, candidates=(10, 4)))
        table = x["block_table"][b].long()
        slot = torch.where(best[plain] < 0, -1, table[best[plain] // page] * page + best[plain] % page)
        assert_same_bits(slots[plain], slot.int())


@pytest.mark.parametrize("kind", KINDS)
def test_a_sequence_alone_has_the_same_bits(kind: int) -> None:
    x = paged(kind, 16)
    scores, best = sparsekern.indexer_logits_paged(**x), sparsekern.indexer_topk_paged(**x, k_top=33)
    for b in range(3):
        for t in range(2):  # and so has one of its queries
            own = {
                name: v if name == "cache" else v[2 * b + t][None] if name == "weights" else v[b : b + 1]
                for name, v in x.items()
            }
            for name in {"q", "q_scale", "context_lens"} & set(own):
                own[name] = own[name][:, t : t + 1]
            row = slice(2 * b + t, 2 * b + t + 1)
            assert_same_bits(sparsekern.indexer_logits_paged(**own), scores[row])
            assert_same_bits(sparsekern.indexer_topk_paged(**own, k_top=33), best[row])


def test_one_length_a_sequence() -> None:
    x = paged(2, 16)
    last = torch.tensor([700, 1, 0])
    each = torch.stack([last - 1, last], 1).clamp_min(0)
    x["block_table"] = torch.arange(3 * 45).view(3, 45) % len(x["cache"])
    want = sparsekern.indexer_logits_paged(**x | {"context_lens": each})
    assert_same_bits(sparsekern.indexer_logits_paged(**x | {"context_lens": last}), want)


@pytest.mark.parametrize(("kind", "name"), [(2, "index132"), (3, "index68")])
def test_keys_as_kv_write_leaves_them(kind: int, name: Any) -> None:
    values = torch.randn(90, 128, generator=rng(0)).bfloat16()
    table = torch.tensor([[3, 0, 5]], dtype=torch.int32)
    slots = (table[0].long()[:, None] * 32 + torch.arange(32)).flatten()[:90]
    pool = torch.full((6, sparsekern.kv_page_bytes(name, 32)), 0xFF, dtype=torch.uint8)
    sparsekern.kv_write(pool, slots, values, format=name, page_size=32)
    x = scored(1, 90, kind, dim=128)
    own = {key: x[key][None] for key in ("q", "q_scale") if key in x} | {"weights": x["weights"]}
    cache = pool.unflatten(1, (32, pool.shape[1] // 32))
    got = sparsekern.indexer_logits_paged(
        **own, cache=cache, block_table=table, context_lens=torch.tensor([[90]])
    )
    q = dequantised(x["q"], x.get("q_scale"), (1, 32))[0].float()
    keys = sparsekern.kv_read(pool, slots, format=name, page_size=32).float()
    want = x["weights"] @ (q @ keys.mT).relu()
    assert (got[:, :90] - want).abs().max() < 0.01 * want.abs().max()


def test_offsets_beyond_two_gigabytes() -> None:
    """Neither a pool, nor the distance of rows, fits an int32; what lies between is never touched."""
    x = paged(2, 16)
    small, pages = x["cache"], (1 << 31) // (16 * 68) + 2
    large = torch.empty((pages + len(small), 16, 68), dtype=torch.uint8)
    large[pages:] = small
    table = torch.where(
        (x["block_table"] >= 0) & (x["block_table"] < len(small)), x["block_table"] + pages, -9
    )
    moved = x | {"cache": large, "block_table": table.int()}
    assert_same_bits(sparsekern.indexer_logits_paged(**moved), sparsekern.indexer_logits_paged(**x))
    got = sparsekern.indexer_topk_paged(**moved, k_top=20)
    assert_same_bits(got, sparsekern.indexer_topk_paged(**x, k_top=20))
    assert pages * 16 < 2**31
    assert sparsekern.indexer_topk_paged(**moved, k_top=20, physical=True).max() >= pages * 16

    y = scored(2, 600, 2)
    apart = (1 << 31) // 599 + 1
    k = large.view(-1)[: 599 * apart + 32].as_strided((600, 32), (apart, 1)).view(torch.float8_e4m3fn)
    k.copy_(y["k"])
    assert_same_bits(sparsekern.indexer_logits(**y | {"k": k}), sparsekern.indexer_logits(**y))


# --- finding things -----------------------------------------------------------------------------------------


def needles(keys: int, trials: int, k_top: int) -> tuple[float, float]:
    """How many of the keys that belong to queries are found among FP8 keys, and in how many seconds.

    Keys of the crowd have a cosine to a query of 0 on average, 0.09 away; its own has one of 0.3.
    """
    dim, heads, random = 128, 4, rng(keys)
    k = torch.nn.functional.normalize(torch.randn(keys, dim, generator=random))
    q = torch.nn.functional.normalize(torch.randn(trials, dim, generator=random))
    at = torch.randperm(keys, generator=random)[:trials]
    aside = torch.nn.functional.normalize(k[at] - (k[at] * q).sum(-1, keepdim=True) * q)
    k[at] = 0.3 * q + (1 - 0.3**2) ** 0.5 * aside
    codes, scale = sparsekern.quantize_fp8(k, group_size=dim)
    q_codes, q_scale = sparsekern.quantize_fp8(q[:, None].expand(-1, heads, -1).contiguous(), group_size=dim)
    start = time.perf_counter()
    found = sparsekern.indexer_topk(q_codes, codes, scale[:, 0].contiguous(), q_scale[..., 0], k_top=k_top)
    seconds = time.perf_counter() - start
    return (found == at[:, None]).any(-1).double().mean().item(), seconds


def test_needles_are_found() -> None:
    recall, _ = needles(65_536, 100, 128)
    assert recall >= 0.97


@pytest.mark.bench
def test_needles_in_a_million_keys(capsys: pytest.CaptureFixture[str]) -> None:
    recall, seconds = needles(1 << 20, 200, 2048)
    with capsys.disabled():
        print(f"\nrecall {recall:.3f} of 200 keys among 1048576, {seconds:.2f} s")
    assert recall >= 0.97


def test_garbage_is_never_chosen() -> None:
    x = scored(6, 900, 2, ranges=1)
    column = torch.arange(900)
    unseen = ((column < x["starts"][:, None]) | (column >= x["ends"][:, None])).all(0)
    assert unseen.any()
    want = sparsekern.indexer_topk(**x, k_top=64)
    x["k"].view(torch.uint8)[unseen], x["k_scale"][unseen] = 0xFF, torch.nan
    assert_same_bits(sparsekern.indexer_topk(**x, k_top=64), want)
    x["k"].view(torch.uint8)[::2] = 0x7F  # now half of what is seen is NaN
    found = sparsekern.indexer_topk(**x, k_top=900)
    assert (found >= 0).any() and ((found < 0) | (found % 2 == 1)).all()


# --- errors -------------------------------------------------------------------------------------------------


def wrong(kind: int, says: str, **change: Any) -> Any:
    return pytest.param(kind, change, says, id=says)


@pytest.mark.parametrize(
    ("kind", "change", "says"),
    [
        wrong(2, "k_scale is None", k_scale=None),
        wrong(3, "k_scale is None", k_scale=None),
        wrong(1, "k_scale is given", k_scale=torch.ones(50)),
        wrong(2, "k_scale has 2 dimensions", k_scale=torch.ones(50, 1)),
        wrong(3, "k_scale has 1 dimension", k_scale=torch.ones(50)),
        wrong(3, "q_scale is None", q_scale=None),
        wrong(2, "q_scale is given", q_scale=torch.ones(4, 8, 1).to(torch.float8_e8m0fnu)),
        wrong(0, "k is bfloat16, expected float32 like q", k=torch.ones(50, 32).bfloat16()),
        wrong(2, "q has 0 heads", q=torch.ones(4, 0, 32).to(torch.float8_e4m3fn), weights=torch.ones(4, 0)),
    ],
)
def test_arguments_that_do_not_belong_together(kind: int, change: Args, says: str) -> None:
    x = scored(4, 50, kind) | change
    for op, more in ((sparsekern.indexer_logits, {}), (sparsekern.indexer_topk, {"k_top": 5})):
        with pytest.raises((ShapeError, DtypeError), match=re.escape(f"{op.__name__}: {says}")):
            op(**x, **more)


@pytest.mark.parametrize(
    ("kind", "change", "says"),
    [
        wrong(2, "cache has entries of 67", cache=torch.zeros(9, 16, 67, dtype=torch.uint8)),
        wrong(3, "cache has entries of 68", cache=torch.zeros(9, 16, 68, dtype=torch.uint8)),
        wrong(1, "cache is uint8, expected bfloat16", cache=torch.zeros(9, 16, 64, dtype=torch.uint8)),
        wrong(2, "cache has pages of 0", cache=torch.zeros(9, 0, 68, dtype=torch.uint8)),
        wrong(2, "context_lens[1, 1] is 721", context_lens=torch.tensor([[1, 2], [3, 721], [5, 6]])),
        wrong(2, "context_lens[2] is 4294967296", context_lens=torch.tensor([1, 2, 1 << 32])),
        wrong(2, "block_table[0, 0] is -1", block_table=torch.full((3, 45), -1)),
        wrong(2, "block_table[0, 0] is 9999999999", block_table=torch.full((3, 45), 9999999999)),
    ],
)
def test_pages_that_are_not_there(kind: int, change: Args, says: str) -> None:
    x = paged(kind, 16) | {"context_lens": torch.tensor([[9, 9], [700, 700], [0, 0]])} | change
    for op, more in ((sparsekern.indexer_logits_paged, {}), (sparsekern.indexer_topk_paged, {"k_top": 5})):
        with pytest.raises((ShapeError, DtypeError), match=re.escape(f"{op.__name__}: {says}")):
            op(**x, **more)


def test_counts_that_make_no_sense() -> None:
    x = inputs(OPS["topk_per_row"], OPS["topk_per_row"].test_dims[0])
    with pytest.raises(ShapeError, match="topk_per_row: k is 0, expected 1 to"):
        sparsekern.topk_per_row(**x | {"k": 0})
    with pytest.raises(ShapeError, match="indexer_topk: candidates"):
        sparsekern.indexer_topk(**scored(4, 50, 2), k_top=5, candidates=(0, 4))
    with pytest.raises(ShapeError, match="max_context_len is -1"):
        sparsekern.indexer_logits_paged(**paged(2, 16), max_context_len=-1)

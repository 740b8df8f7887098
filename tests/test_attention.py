"""Attention beyond the catalogue's cases: precision, many chunks, the same bits however work is cut."""

from typing import Any

import pytest
import torch
from cases import EACH_ISA
from torch import Tensor

import sparsekern
from sparsekern.ops.sparse_attention import Attention, attend
from sparsekern.testing import assert_same_bits

INF = float("inf")


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def near(got: Attention, want: Attention, limit: float) -> None:
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a.isfinite(), b.isfinite())
        finite = a.isfinite()
        assert ((a - b).abs() <= limit * b.abs().clamp_min(1))[finite].all(), float(
            (a - b)[finite].abs().max()
        )


# --- precision ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", [1, 16, 513, 4000])
def test_float32_is_float32(keys: int) -> None:
    q, k, v = normal(2, 6, 72), normal(keys, 3, 72, seed=1), normal(keys, 3, 40, seed=2)
    got = sparsekern.sparse_attention(q, k, v, scale=0.2)
    want = [attend(one, k, v, 0.2) for one in q]
    near(got, Attention(*map(torch.stack, zip(*want, strict=True))), 3e-6)


def test_log_sum_exp_is_precise_in_bfloat16() -> None:
    q, kv = normal(3, 4, 64, dtype=torch.bfloat16), normal(700, 64, seed=1, dtype=torch.bfloat16)
    indices = torch.arange(700, dtype=torch.int32).expand(3, -1).contiguous()
    got = sparsekern.sparse_mla_prefill(q, kv, indices, scale=0.3, d_v=32)
    want = sparsekern.reference.sparse_mla_prefill(q, kv, indices, scale=0.3, d_v=32)
    near(got._replace(out=want.out), want, 1e-6)


def test_bfloat16_queries_meet_float32_keys_unrounded() -> None:
    q, k, v = normal(2, 4, 24, dtype=torch.bfloat16), normal(90, 2, 24, seed=1), normal(90, 2, 24, seed=2)
    mixed = sparsekern.sparse_attention(q, k, v, scale=0.2)
    exact = sparsekern.sparse_attention(q.float(), k, v, scale=0.2)
    assert_same_bits(mixed[1:], exact[1:])
    assert_same_bits(mixed.out, exact.out.bfloat16())


@pytest.mark.parametrize("offset", [-3e4, 0.0, 3e4])
def test_large_logits(offset: float) -> None:
    """e^logit is out of reach, but differences of logits are not."""
    k = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 3.0]])[:, None]
    q = torch.tensor([[[offset, 1.0]]])
    got = sparsekern.sparse_attention(q, k, k, scale=1.0)
    near(got, Attention(*(t[None] for t in attend(q[0], k, k, 1.0))), 1e-6)


# --- sinks, and keys that are none --------------------------------------------------------------------------


@pytest.mark.parametrize("sink", [-INF, -200.0, -1.0, 3.0, 95.0, 200.0, INF])
def test_sinks(sink: float) -> None:
    q, k, v = normal(1, 2, 8), normal(5, 1, 8, seed=1), normal(5, 1, 8, seed=2)
    sinks = torch.full((2,), sink)
    got = sparsekern.sparse_attention(q, k, v, scale=0.3, sink=sinks)
    plain = sparsekern.sparse_attention(q, k, v, scale=0.3)
    share = 1 / (1 + (sink - plain.lse.double()).exp())
    torch.testing.assert_close(got.out, (plain.out * share[..., None]).float(), rtol=2e-6, atol=1e-40)
    assert_same_bits(got[1:], plain[1:], "the sink is in the output alone")
    none = torch.full((1, 4), -1, dtype=torch.int32)
    empty = sparsekern.sparse_attention(q, k, v, none, scale=0.3, sink=sinks)
    assert_same_bits(tuple(empty), (0 * plain.out.abs(), plain.lse * 0 - INF, plain.lse * 0 + INF))


def test_duplicates_count_twice() -> None:
    q, kv = normal(1, 3, 16), normal(6, 16, seed=1)
    once = torch.tensor([[4, 1, 2]], dtype=torch.int32)
    twice = torch.tensor([[4, 1, 4, 2]], dtype=torch.int32)
    a, b, c = (
        sparsekern.sparse_mla_prefill(q, kv, i, scale=0.3, d_v=16)
        for i in (once, twice, once[:, :1].contiguous())
    )
    merged = sparsekern.merge_attn_states(a.out, a.lse, c.out, c.lse)
    near(b, Attention(merged.out, a.max_logits, merged.lse), 1e-6)


def test_all_logits_minus_infinity_is_no_key() -> None:
    q, k, v = torch.full((1, 1, 4), -INF), torch.ones(3, 1, 4), normal(3, 1, 4)
    got = sparsekern.sparse_attention(q, k, v, scale=1.0)
    assert_same_bits(tuple(got), (torch.zeros(1, 1, 4), torch.full((1, 1), -INF), torch.full((1, 1), INF)))


# --- the same bits ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("isa", EACH_ISA)
def test_place_on_the_list_of_nothing_does_not_matter(isa: str, dtype: torch.dtype) -> None:
    q, kv = normal(1, 3, 24, dtype=dtype), normal(80, 24, seed=1, dtype=dtype)
    few = torch.randint(80, (600,), generator=torch.Generator().manual_seed(3), dtype=torch.int32)
    many = torch.full((900,), -1, dtype=torch.int32)
    many[torch.randperm(900, generator=torch.Generator().manual_seed(4))[:600].sort().values] = few
    with sparsekern.config.using(isa=isa):
        a, b = (sparsekern.sparse_mla_prefill(q, kv, i[None], scale=0.3, d_v=24) for i in (few, many))
    assert_same_bits(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_causal_query_is_a_query_that_sees_less(dtype: torch.dtype) -> None:
    q, k, v = (normal(70, 2, 24, seed=i, dtype=dtype) for i in range(3))
    k, v = (torch.cat([normal(480, 2, 24, seed=5 + i, dtype=dtype), t]) for i, t in enumerate((k, v)))
    together = sparsekern.sparse_attention(q, k, v, scale=0.3, causal=True)
    for i in (0, 31, 32, 33, 69):
        alone = sparsekern.sparse_attention(q[i : i + 1], k[: 481 + i], v[: 481 + i], scale=0.3)
        assert_same_bits(tuple(t[i : i + 1] for t in together), tuple(alone), f"query {i}:")
    named = torch.arange(550, dtype=torch.int32).expand(70, -1).contiguous()
    assert_same_bits(sparsekern.sparse_attention(q, k, v, named, scale=0.3, causal=True), together)


def test_sequences_are_alone() -> None:
    q, k, v = normal(30, 4, 16), normal(700, 2, 16, seed=1), normal(700, 2, 16, seed=2)
    starts, ends = (torch.tensor(t, dtype=torch.int32) for t in ([0, 1, 1, 22, 28], [0, 600, 610, 650, 651]))
    named: dict[str, Any] = {"scale": 0.3, "causal": True}
    got = sparsekern.sparse_attention(q, k, v, cu_seqlens_q=starts, cu_seqlens_k=ends, **named)
    for i, j, a, b in zip(starts[:-1], starts[1:], ends[:-1], ends[1:], strict=True):
        alone = sparsekern.sparse_attention(q[i:j], k[a:b], v[a:b], **named)
        assert_same_bits(tuple(t[i:j] for t in got), tuple(alone))
    assert (got.out[28:] == 0).all() and (got.lse[28:] == INF).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_others_see_does_not_leak(dtype: torch.dtype) -> None:
    """Queries of a tile share keys, and some of these keys are not for all of them."""
    q, k, v = (normal(20, 3, 17, seed=i, dtype=dtype) for i in range(3))
    want = sparsekern.sparse_attention(q, k, v, scale=0.3, causal=True)
    v[17], v[18, :, ::2], k[19] = torch.nan, INF, torch.nan
    got = sparsekern.sparse_attention(q, k, v, scale=0.3, causal=True)
    assert_same_bits(tuple(t[:17] for t in got), tuple(t[:17] for t in want))
    assert got.out[17:].isnan().all() and got.lse[19].isnan().all()


@pytest.mark.parametrize("threads", [2, 3, 8])
@pytest.mark.parametrize("queries", [1, 3])
def test_few_queries_are_spread_by_chunks(queries: int, threads: int) -> None:
    q, k, v = normal(queries, 6, 24), normal(9000, 3, 24, seed=1), normal(9000, 3, 24, seed=2)
    lengths = torch.tensor([8999, 0, 513][:queries], dtype=torch.int32)
    with sparsekern.config.using(threads=1):
        want = sparsekern.sparse_attention(q, k, v, scale=0.3, lengths=lengths)
    with sparsekern.config.using(threads=threads):
        assert_same_bits(sparsekern.sparse_attention(q, k, v, scale=0.3, lengths=lengths), want)


# --- paged caches -------------------------------------------------------------------------------------------


def records(count: int, width: int, seed: int = 0) -> Tensor:
    return normal(count, width, seed=seed, dtype=torch.bfloat16)


@pytest.mark.parametrize(("format_", "width"), [("mla656", 576), ("mla584", 512), ("mla528", 512)])
def test_decode_is_prefill_over_what_kv_read_returns(format_: Any, width: int) -> None:
    pages, size = 20, 37
    pool = torch.full((pages, sparsekern.kv_page_bytes(format_, size)), 0xFF, dtype=torch.uint8)
    sparsekern.kv_write(
        pool, torch.arange(pages * size), records(pages * size, width), format=format_, page_size=size
    )
    q = normal(3, 1, 5, width, seed=1, dtype=torch.bfloat16)
    indices = torch.randint(-1, pages * size, (3, 1, 600), dtype=torch.int32)
    got = sparsekern.sparse_mla_decode(q, pool, indices, format=format_, page_size=size, scale=0.1)
    read = sparsekern.kv_read(pool, torch.arange(pages * size), format=format_, page_size=size)
    want = sparsekern.sparse_mla_prefill(q[:, 0], read, indices[:, 0], scale=0.1)
    assert_same_bits((got.out[:, 0], got.lse[..., 0]), (want.out, want.lse))


def test_second_pool_follows_the_first() -> None:
    q, pool, more = normal(2, 3, 4, 24), normal(5, 16, 24, seed=1), normal(9, 7, 24, seed=2)
    first, second = (torch.randint(60, (2, 3, n), dtype=torch.int32) for n in (500, 300))
    both = torch.cat([pool.flatten(0, 1), more.flatten(0, 1)])[None]
    named: dict[str, Any] = {"format": "bf16", "scale": 0.2, "d_v": 20}
    got = sparsekern.sparse_mla_decode(
        q, pool, first, page_size=16, extra_pool=more, extra_indices=second, extra_page_size=7, **named
    )
    joined = torch.cat([first, second + 80], -1)
    assert_same_bits(got, sparsekern.sparse_mla_decode(q, both, joined, page_size=both.shape[1], **named))


def test_mla_decode_is_attention_without_pages() -> None:
    q, keys = normal(1, 3, 4, 24), normal(1000, 2, 24, seed=1)
    table = torch.randperm(200, generator=torch.Generator().manual_seed(1)).int()
    cache = torch.empty(200, 5, 2, 24)
    cache[table.long()] = keys.view(200, 5, 2, 24)
    length = torch.tensor([998], dtype=torch.int32)
    got = sparsekern.mla_decode(q, cache, table[None], length, scale=0.3, d_v=20)
    keys = keys[:998]
    want = sparsekern.sparse_attention(q[0], keys, keys[..., :20].contiguous(), scale=0.3, causal=True)
    assert_same_bits((got.out[0], got.lse[0]), (want.out, want.lse.T.contiguous()))


@pytest.mark.parametrize("format_", ["mla656", "bf16"])
def test_pool_beyond_two_gigabytes(format_: Any) -> None:
    """Of memory that is there only where it is touched."""
    size, last = 64, 60_000 if format_ == "mla656" else 30_000
    if format_ == "bf16":
        pool = torch.empty(last + 1, size, 576, dtype=torch.bfloat16)
    else:
        pool = torch.empty(last + 1, sparsekern.kv_page_bytes(format_, size), dtype=torch.uint8)
    assert pool.nbytes > 2**31
    slots = torch.tensor([3, last * size + 5, last * size + 63])
    x = records(3, 576)
    sparsekern.kv_write(pool, slots, x, format=format_, page_size=size)
    q = normal(1, 1, 3, 576, seed=1, dtype=torch.bfloat16)
    got = sparsekern.sparse_mla_decode(
        q, pool, slots.int().view(1, 1, 3), format=format_, page_size=size, scale=0.1
    )
    read = sparsekern.kv_read(pool, slots, format=format_, page_size=size)
    want = sparsekern.sparse_mla_prefill(q[0], read, torch.arange(3, dtype=torch.int32)[None], scale=0.1)
    assert_same_bits(got.out[0], want.out)
    if format_ == "bf16":
        table = torch.tensor([[last]], dtype=torch.int32)
        length = torch.tensor([6], dtype=torch.int32)
        pool[last, :5] = records(5, 576, seed=2)
        named = torch.arange(6, dtype=torch.int32)[None]
        paged = sparsekern.mla_decode(q, pool[:, :, None], table, length, scale=0.1)
        assert_same_bits(paged.out[0], sparsekern.sparse_mla_prefill(q[0], pool[last], named, scale=0.1).out)


FORMATS = [("mla656", 576), ("mla584", 512), ("mla528", 512), ("bf16", 576)]
SIZE = 16  # records a page


def pool_of(format_: Any, pages: int, byte: int) -> Tensor:
    if format_ == "bf16":
        return torch.full((pages, SIZE, 2 * 576), byte, dtype=torch.uint8).view(torch.bfloat16)
    return torch.full((pages, sparsekern.kv_page_bytes(format_, SIZE)), byte, dtype=torch.uint8)


def decode(format_: Any, q: Tensor, pool: Tensor, indices: Tensor, **more: Any) -> Any:
    return sparsekern.sparse_mla_decode(q, pool, indices, format=format_, page_size=SIZE, scale=0.1, **more)


@pytest.mark.parametrize(("format_", "width"), FORMATS)
def test_what_is_not_selected_may_be_anything(format_: Any, width: int) -> None:
    """0xFF is NaN as a code, as a scale and as bf16; what lies past `lengths` does not name a slot at all."""
    lengths = torch.tensor([30, 0], dtype=torch.int32)
    q, x = normal(2, 1, 3, width, seed=1, dtype=torch.bfloat16), records(40, width)
    slots = torch.randperm(20 * SIZE, generator=torch.Generator().manual_seed(2))[:40]
    indices = slots.int().expand(2, 1, -1).clone()
    indices[:, :, 5::7] = -1
    indices[0, :, 30:], indices[1] = 2**31 - 1, 2**31 - 1
    more, want = slots[:10].int().expand(2, 1, -1).contiguous(), None
    for byte in (0, 0xFF):
        pool = pool_of(format_, 20, byte)
        seen = indices[0, 0, :30][indices[0, 0, :30] >= 0].long()
        for place in (seen, more[0, 0].long()):
            sparsekern.kv_write(pool, place, x[: len(place)], format=format_, page_size=SIZE)
        got = decode(format_, q, pool, indices, lengths=lengths)
        extra = {"extra_pool": pool, "extra_indices": more, "extra_page_size": SIZE}
        both = decode(format_, q, pool, indices, lengths=lengths, **extra)
        assert got.out[0].isfinite().all() and both.out.isfinite().all()
        assert_same_bits((*got, *both), want or (*got, *both), f"{byte}:")
        want = (*got, *both)


@pytest.mark.parametrize(("format_", "width"), FORMATS)
def test_rows_of_nothing(format_: Any, width: int) -> None:
    q, pool = normal(3, 2, 5, width, seed=1, dtype=torch.bfloat16), pool_of(format_, 5, 0xFF)
    sparsekern.kv_write(pool, torch.arange(9), records(9, width), format=format_, page_size=SIZE)
    indices = torch.full((3, 2, 700), -1, dtype=torch.int32)
    indices[1, 1, 3:12] = torch.arange(9)
    got = decode(format_, q, pool, indices, sink=torch.ones(5))
    alone = decode(format_, q[1:2, 1:], pool, indices[1:2, 1:, 3:12].contiguous(), sink=torch.ones(5))
    assert_same_bits((got.out[1, 1], got.lse[1, :, 1].contiguous()), (alone.out[0, 0], alone.lse[0, :, 0]))
    got.out[1, 1], got.lse[1, :, 1] = 0, INF
    assert_same_bits(tuple(got), (torch.zeros_like(got.out), torch.full_like(got.lse, INF)))


@pytest.mark.parametrize(("format_", "width"), FORMATS)
def test_records_named_twice_count_twice(format_: Any, width: int) -> None:
    q, pool = normal(1, 1, 3, width, seed=1, dtype=torch.bfloat16), pool_of(format_, 2, 0xFF)
    sparsekern.kv_write(pool, torch.arange(9), records(9, width), format=format_, page_size=SIZE)
    once, again = (torch.tensor([[i]], dtype=torch.int32) for i in ([4, 1, 2], [4, 2]))
    a, b = (decode(format_, q.float(), pool, i) for i in (once, again))
    both = decode(format_, q.float(), pool, torch.cat([once, again], -1))
    merged = sparsekern.merge_attn_states(a.out, a.lse.mT.contiguous(), b.out, b.lse.mT.contiguous())
    torch.testing.assert_close(both.out, merged.out, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(both.lse, merged.lse.mT, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize(("format_", "width"), FORMATS)
def test_a_sequence_in_a_batch_is_one_alone(format_: Any, width: int, threads: int) -> None:
    """However many workers share the keys of however many sequences, they are cut at the same places."""
    q, pool = normal(5, 1, 3, width, seed=1, dtype=torch.bfloat16), pool_of(format_, 40, 0xFF)
    sparsekern.kv_write(
        pool, torch.arange(40 * SIZE), records(40 * SIZE, width), format=format_, page_size=SIZE
    )
    indices = torch.randint(-50, 40 * SIZE, (5, 1, 1300), dtype=torch.int32).clamp_min(-1)
    lengths = torch.tensor([1300, 0, 511, 513, 1], dtype=torch.int32)
    with sparsekern.config.using(threads=1):
        want = [
            decode(format_, q[i, None], pool, indices[i, None], lengths=lengths[i, None]) for i in range(5)
        ]
    with sparsekern.config.using(threads=threads):
        got = decode(format_, q, pool, indices, lengths=lengths)
    for i, alone in enumerate(want):
        assert_same_bits((got.out[i], got.lse[i]), (alone.out[0], alone.lse[0]), f"sequence {i}:")


def test_mla_decode_reads_no_further_than_sequences_go() -> None:
    """Sequences of different lengths, one empty: NaN behind their ends, garbage in the rest of the table."""
    q, keys = normal(3, 2, 4, 24), normal(3, 24, 2, 24, seed=1)
    lens, want = torch.tensor([17, 0, 24], dtype=torch.int32), None
    for fill, page in ((0.0, 3), (torch.nan, -(2**31)), (INF, 2**31 - 1)):
        cache = torch.full((13, 6, 2, 24), fill)
        table = torch.full((3, 5), page, dtype=torch.int32)
        for b, length in enumerate(lens.tolist()):
            for i in range(-(-length // 6)):
                table[b, i] = 12 - 4 * b - i
                count = min(6, length - 6 * i)
                cache[table[b, i], :count] = keys[b, 6 * i : 6 * i + count]
        got = sparsekern.mla_decode(q, cache, table, lens, scale=0.3, d_v=20)
        assert (got.out[1] == 0).all() and (got.lse[1] == INF).all()
        assert got.out.isfinite().all()
        assert_same_bits(got, want or got)
        want = got


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_prefill_reads_what_is_named_alone(dtype: torch.dtype) -> None:
    """Keys that no query names are NaN, past `lengths` indices are none at all; one query names nothing."""
    q, keys = normal(3, 5, 72, seed=1, dtype=dtype), normal(30, 72, seed=2, dtype=dtype)
    rows = torch.randperm(90, generator=torch.Generator().manual_seed(3))[:30]
    indices = torch.full((3, 600), -1, dtype=torch.int32)
    indices[0, 20:80:2], indices[2, :9] = rows.int(), rows[:9].int()
    indices[2, 9:] = 2**31 - 1
    lengths, want = torch.tensor([600, 600, 9], dtype=torch.int32), None
    for fill in (0.0, torch.nan, INF):
        kv = torch.full((90, 72), fill, dtype=dtype)
        kv[rows] = keys
        got = sparsekern.sparse_mla_prefill(q, kv, indices, scale=0.3, d_v=40, lengths=lengths)
        assert (got.out[1] == 0).all() and (got.lse[1] == INF).all() and got.out.isfinite().all()
        assert_same_bits(got, want or got, f"{fill}:")
        want = got


def test_prefill_of_keys_beyond_two_gigabytes() -> None:
    """Memory that is there only where it is touched."""
    kv = torch.empty((1 << 31) // (2 * 576) + 9, 576, dtype=torch.bfloat16)
    assert kv.nbytes > 2**31
    rows = torch.tensor([[3, len(kv) - 1, len(kv) - 7]], dtype=torch.int32)
    kv[rows[0].long()] = records(3, 576)
    q = normal(1, 3, 576, seed=1, dtype=torch.bfloat16)
    got = sparsekern.sparse_mla_prefill(q, kv, rows, scale=0.1)
    few = torch.arange(3, dtype=torch.int32)[None]
    assert_same_bits(got, sparsekern.sparse_mla_prefill(q, records(3, 576), few, scale=0.1))


# --- errors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"scale": INF}, "scale is inf"),
        ({"scale": float("nan")}, "scale is nan"),
        ({"k": torch.ones(8, 4, 8), "v": torch.ones(8, 4, 8)}, "q has 6 heads, expected a multiple of the 4"),
        ({"cu_seqlens_q": torch.tensor([0, 3])}, "cu_seqlens_k is None"),
        ({"cu_seqlens_k": torch.tensor([0, 3])}, "cu_seqlens_q is None"),
        ({"cu_seqlens_q": torch.tensor([1, 3]), "cu_seqlens_k": torch.tensor([0, 8])}, "cu_seqlens_q[0] is"),
        ({"cu_seqlens_q": torch.tensor([0, 3]), "cu_seqlens_k": torch.tensor([0, 9])}, "cu_seqlens_k[1] is"),
        ({"lengths": torch.tensor([8, 9, 0])}, "lengths[1] is 9, expected 0 to 8"),
        ({"lengths": torch.tensor([8, 2**40, 0])}, "lengths[1] is 1099511627776"),
    ],
)  # fmt: skip
def test_errors(change: dict[str, Any], says: str) -> None:
    x: dict[str, Any] = {"q": normal(3, 6, 8), "k": normal(8, 2, 8), "v": normal(8, 2, 8), "scale": 0.3}
    with pytest.raises(ValueError) as caught:
        sparsekern.sparse_attention(**{**x, **change})
    assert str(caught.value).startswith("sparse_attention: ") and says in str(caught.value)


@pytest.mark.parametrize("d_v", [0, -1, 17])
def test_values_are_channels_of_keys(d_v: int) -> None:
    with pytest.raises(ValueError, match=f"d_v is {d_v}, expected 1 to the 16 channels of kv"):
        sparsekern.sparse_mla_prefill(
            normal(1, 2, 16), normal(4, 16), torch.zeros(1, 1, dtype=torch.int32), scale=1.0, d_v=d_v
        )


DECODE: dict[str, Any] = {
    "q": torch.ones(2, 1, 3, 8),
    "pool": torch.ones(4, 5, 8),
    "indices": torch.zeros(2, 1, 6, dtype=torch.int32),
    "format": "bf16",
    "page_size": 5,
    "scale": 1.0,
    "d_v": 8,
}
BYTES = torch.zeros(4, 5 * 656, dtype=torch.uint8)
EXTRA = {"extra_pool": torch.ones(2, 3, 8), "extra_indices": torch.zeros(2, 1, 2), "extra_page_size": 3}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"indices": torch.tensor([[[0, 19]], [[20, 0]]])}, "indices[1, 0, 0] is 20, expected less than"),
        ({"indices": torch.tensor([[[2**40, 0]], [[2, 0]]])}, "indices[0, 0, 0] is 1099511627776"),
        ({"lengths": torch.tensor([7, 0])}, "lengths[0] is 7, expected 0 to 6"),
        ({"lengths": torch.tensor([-1, 0])}, "lengths[0] is -1"),
        ({"d_v": 9}, "d_v is 9, expected 1 to the 8 channels"),
        ({"format": "mla656"}, "pool has 3 dimensions"),
        ({"format": "mla656", "pool": BYTES}, "q has 8 channels, expected the 576"),
        ({"extra_pool": torch.ones(2, 3, 8)}, "extra_pool, extra_indices and extra_page_size together"),
        ({"extra_lengths": torch.tensor([1, 1])}, "extra_pool is None"),
        ({**EXTRA, "extra_indices": torch.tensor([[[5, 6]], [[0, 0]]])}, "extra_indices[0, 0, 1] is 6"),
    ],
)  # fmt: skip
def test_errors_of_sparse_decode(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError) as caught:
        sparsekern.sparse_mla_decode(**{**DECODE, **change})
    assert str(caught.value).startswith("sparse_mla_decode: ") and says in str(caught.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seq_lens": torch.tensor([11])}, "seq_lens[0] is 11, expected 0 to 10"),
        ({"seq_lens": torch.tensor([-1])}, "seq_lens[0] is -1"),
        ({"block_table": torch.tensor([[0, 4]])}, "block_table[0, 1] is 4, expected 0 to 3"),
        ({"block_table": torch.tensor([[-1, 0]])}, "block_table[0, 0] is -1"),
        ({"q": torch.ones(1, 1, 3, 8)}, "q has 3 heads, expected a multiple of the 2"),
        ({"cache": torch.ones(4, 0, 2, 8)}, "cache has pages of 0 keys"),
    ],
)  # fmt: skip
def test_errors_of_mla_decode(change: dict[str, Any], says: str) -> None:
    x = {
        "q": torch.ones(1, 1, 4, 8),
        "cache": torch.ones(4, 5, 2, 8),
        "block_table": torch.tensor([[0, 1]]),
        "seq_lens": torch.tensor([10]),
    }
    with pytest.raises(ValueError) as caught:
        sparsekern.mla_decode(**{**x, **change}, scale=1.0, d_v=8)
    assert str(caught.value).startswith("mla_decode: ") and says in str(caught.value)

"""The paged KV cache: its bytes, its order of writes, pools of any size, pages that move."""

import itertools
import mmap
import struct
from typing import Any

import pytest
import torch
from cases import EACH_ISA
from torch import Tensor

import sparsekern
from sparsekern import kv_copy_pages, kv_gather, kv_page_bytes, kv_read, kv_write
from sparsekern.ops._kv import FORMATS, RECORDS
from sparsekern.schema import ShapeError
from sparsekern.testing import assert_close, assert_same_bits

QUANTISED = list(RECORDS)
RNG = torch.Generator().manual_seed(0)


def pool_of(format_: str, pages: int, page_size: int, byte: int = 0xFF) -> Tensor:
    """A pool in which every byte is poison."""
    if format_ == "bf16":
        return torch.full((pages, page_size, 48), torch.nan, dtype=torch.bfloat16)
    return torch.full((pages, kv_page_bytes(format_, page_size)), byte, dtype=torch.uint8)


def values_of(format_: str, tokens: int) -> Tensor:
    width = 48 if format_ == "bf16" else RECORDS[format_].dim
    return torch.randn(tokens, width, generator=RNG).bfloat16()


# --- bytes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format_", "page_size", "want"),
    [
        ("mla656", 64, 656 * 64),
        ("mla656", 1, 656),
        ("mla584", 64, 37440),
        ("mla584", 256, 149760),
        ("mla584", 2, 1728),
        ("mla528", 64, 528 * 64),
        ("mla528", 2, 1536),
        ("mla528", 1, 1024),
        ("index132", 64, 132 * 64),
        ("index132", 3, 396),
        ("index68", 64, 68 * 64),
        ("index68", 2, 136),
    ],
)
def test_page_bytes(format_: Any, page_size: int, want: int) -> None:
    assert kv_page_bytes(format_, page_size) == want


def test_page_bytes_of_plain_pools_and_of_nonsense() -> None:
    assert kv_page_bytes("bf16", 64, head_dim=576) == 64 * 576 * 2
    for bad in (
        {"format": "fp8", "page_size": 1},
        {"format": "mla656", "page_size": 0},
        {"format": "bf16", "page_size": 1},
        {"format": "mla584", "page_size": 1, "head_dim": 576},
    ):
        with pytest.raises(ShapeError, match="kv_page_bytes: "):
            kv_page_bytes(**bad)  # type: ignore[arg-type]


def e4m3(x: float) -> int:
    return int(torch.tensor(x).to(torch.float8_e4m3fn).view(torch.uint8))


def bf16(x: float) -> bytes:
    return struct.pack("<f", x)[2:]


def test_bytes_of_a_record_inside() -> None:
    """Format mla656: codes, four float32 scales, 64 bf16."""
    x = torch.zeros(1, 576)
    x[0, 0], x[0, 1], x[0, 129], x[0, 575] = 448.0, 1.0, -3.0, 2.5
    pool = pool_of("mla656", 1, 2)
    kv_write(pool, torch.tensor([1]), x.bfloat16(), format="mla656", page_size=2)
    raw = bytes(pool[0].tolist())
    assert raw[:656] == b"\xff" * 656
    record = raw[656:]
    assert record[0] == e4m3(448.0) and record[1] == e4m3(1.0)
    scales = struct.unpack("<4f", record[512:528])
    assert scales == (1.0, 2.0**-7, 2.0**-22, 2.0**-22)  # 3 / 448 rounded up; the floor
    assert record[129] == e4m3(-3.0 * 2**7)
    assert record[528:] == b"\0\0" * 63 + bf16(2.5)
    kv_write(pool, torch.tensor([1]), x.bfloat16(), format="mla656", page_size=2, scale_rounding="none")
    exact = struct.unpack("<4f", bytes(pool[0, 656 + 512 : 656 + 528].tolist()))
    assert exact[1] == struct.unpack("<f", struct.pack("<f", 3.0 / 448.0))[0]


def test_bytes_of_footers() -> None:
    """Scales behind the records, padding 0, the rest of the page as it was."""
    x = torch.zeros(1, 512)
    x[0, 64], x[0, 511] = 448.0, 7.0
    pool = pool_of("mla584", 1, 3)
    kv_write(pool, torch.tensor([1]), x.bfloat16(), format="mla584", page_size=3)
    raw = bytes(pool[0].tolist())
    assert raw[576 + 64] == e4m3(448.0) and raw[576 + 448 + 126 : 576 + 576] == bf16(7.0)
    assert raw[3 * 576 + 8 : 3 * 576 + 16] == bytes([127 - 22, 127, *[127 - 22] * 5, 0])
    touched = {*range(576, 1152), *range(3 * 576 + 8, 3 * 576 + 16)}
    assert all(raw[i] == 0xFF for i in range(len(raw)) if i not in touched)

    pool = pool_of("mla528", 1, 3)
    kv_write(pool, torch.tensor([2]), x.bfloat16(), format="mla528", page_size=3)
    raw = bytes(pool[0].tolist())
    scales = raw[3 * 512 + 32 : 3 * 512 + 48]
    assert scales == bytes([105, 105, 127, *[105] * 12, 127 - 6])
    assert raw[2 * 512 + 511] == e4m3(448.0)

    keys = torch.zeros(1, 128)
    keys[0, 0], keys[0, 1], keys[0, 33] = 6.0, -1.0, 3.0
    pool = pool_of("index68", 1, 3)
    kv_write(pool, torch.tensor([1]), keys.bfloat16(), format="index68", page_size=3)
    raw = bytes(pool[0].tolist())
    assert raw[64] == 7 | 10 << 4 and raw[64 + 16] == 7 << 4
    assert raw[3 * 64 + 4 : 3 * 64 + 8] == bytes([127, 126, 1, 1])

    pool = pool_of("index132", 1, 3)
    kv_write(pool, torch.tensor([1]), keys.bfloat16(), format="index132", page_size=3)
    raw = bytes(pool[0].tolist())
    assert struct.unpack("<f", raw[3 * 128 + 4 : 3 * 128 + 8]) == (2.0**-6,)
    assert raw[128] == e4m3(6.0 * 64)


@pytest.mark.parametrize("format_", QUANTISED)
def test_codes_are_those_of_the_quantisers(format_: Any) -> None:
    r = RECORDS[format_]
    x, pool = values_of(format_, 6), pool_of(format_, 2, 3)
    kv_write(pool, torch.arange(6), x, format=format_, page_size=3)
    coded = x[:, : r.coded]
    if r.fp4:
        q, scale = sparsekern.quantize_fp4(coded, group_size=r.tile)
    else:
        q, scale = sparsekern.quantize_fp8(coded, group_size=r.tile, scale_format="ue8m0")
    want = torch.cat([sparsekern.dequantize(q, scale, block=(1, r.tile)), x[:, r.coded :]], 1)
    assert_same_bits(kv_read(pool, torch.arange(6), format=format_, page_size=3), want)


# --- what is written where ----------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("format_", FORMATS)
def test_the_last_of_equal_slots_stays(format_: Any, threads: int) -> None:
    slots = torch.randint(-1, 40, (700,), generator=RNG)
    x = values_of(format_, 700)
    got, want = pool_of(format_, 8, 5), pool_of(format_, 8, 5)
    with sparsekern.config.using(threads=threads):
        kv_write(got, slots, x, format=format_, page_size=5)
    last = {int(s): t for t, s in enumerate(slots) if s >= 0}
    order = torch.tensor(list(last))
    kv_write(want, order, x[list(last.values())], format=format_, page_size=5)
    assert_same_bits(got, want)


@pytest.mark.parametrize("isa", EACH_ISA)
@pytest.mark.parametrize("format_", FORMATS)
def test_poison_never_leaks(format_: Any, isa: str) -> None:
    """Every byte that was not selected is NaN; block tables hold garbage past the end."""
    pool, size = pool_of(format_, 9, 4), 4
    slots = torch.tensor([1, 4, 5, 6, 7, 33, 32])
    kv_write(pool, slots, values_of(format_, 7), format=format_, page_size=size)
    how: dict[str, Any] = {"format": format_, "page_size": size}
    with sparsekern.config.using(isa=isa):
        rows = kv_read(pool, torch.cat([torch.tensor([-1, -(2**63)]), slots]), **how)
        assert rows.isfinite().all() and (rows[:2] == 0).all()
        table = torch.tensor([[1, 8, -1], [0, -1, 99], [2**31 - 1, -5, 0]], dtype=torch.int32)
        lens, starts = torch.tensor([6, 1, 0]).int(), torch.tensor([0, 1, 2]).int()
        got = kv_gather(pool, table, lens, starts=starts, total=9, **how)
    parts = got if isinstance(got, tuple) else (got,)
    assert all(len(p) == 9 and p.float().isfinite().all() and (p[7:].float() == 0).all() for p in parts[:1])
    if not isinstance(got, tuple):
        assert_same_bits(got[:7], kv_read(pool, torch.tensor([4, 5, 6, 7, 32, 33, 1]), **how))


@pytest.mark.parametrize("format_", FORMATS)
def test_pools_over_two_gigabytes(format_: Any) -> None:
    """Memory that is never touched costs nothing."""
    size = 64
    each = 2 * 48 * size if format_ == "bf16" else kv_page_bytes(format_, size)
    pages = (5 << 30) // each
    memory = torch.frombuffer(mmap.mmap(-1, pages * each), dtype=torch.uint8)
    pool = memory.view(pages, each)
    if format_ == "bf16":
        pool = memory.view(torch.bfloat16).view(pages, size, 48)
    x = values_of(format_, 3)
    slots = torch.tensor([0, pages * size - 1, pages // 2 * size + 7])
    how: dict[str, Any] = {"format": format_, "page_size": size}
    kv_write(pool, slots, x, **how)
    small = pool_of(format_, 1, size)
    kv_write(small, torch.arange(3), x, **how)
    assert_same_bits(kv_read(pool, slots, **how), kv_read(small, torch.arange(3), **how))
    table = torch.tensor([[0, 0], [pages // 2, pages - 1]], dtype=torch.int32)
    lens, starts = torch.tensor([1, 1], dtype=torch.int32), torch.tensor([0, 2 * size - 1]).int()
    first = torch.tensor([[0]], dtype=torch.int32)
    assert_same_bits(
        kv_gather(pool, table, lens, starts=starts, **how),
        kv_gather(small, first, torch.tensor([2]).int(), **how),
    )
    kv_copy_pages(pool, pool, torch.tensor([[pages - 1, 1]]))
    assert_same_bits(pool[1], pool[pages - 1])


@pytest.mark.parametrize("format_", QUANTISED)
def test_any_positive_scale_is_read(format_: Any) -> None:
    """Writers of other engines neither round scales nor bound them from below."""
    r = RECORDS[format_]
    pool = pool_of(format_, 1, 1, byte=0x38)  # 1.0 in e4m3
    start = r.data if r.footer else r.codes
    for scale in (1e-30, 3.0 / 448, 0.1, 1.0, 1.5, 3e4):
        stored = torch.tensor([scale] * (r.coded // r.tile))
        if not r.fp32_scales:
            stored = stored.log2().round().exp2()
            pool[0, start : start + len(stored)] = stored.to(torch.float8_e8m0fnu).view(torch.uint8)
        else:
            pool[0, start : start + 4 * len(stored)] = stored.view(torch.uint8)
        got = kv_read(pool, torch.tensor([0]), format=format_, page_size=1, dtype=torch.float32)
        one = torch.tensor(1.0) if not r.fp4 else torch.tensor([-0.0, 1.5]).repeat(r.coded // 2)  # 0x38
        assert_same_bits(got[0, : r.coded], (stored.repeat_interleave(r.tile) * one))


@pytest.mark.parametrize("isa", EACH_ISA)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("format_", QUANTISED)
def test_all_codes_times_all_sizes_of_scales(format_: Any, dtype: torch.dtype, isa: str) -> None:
    """NaN codes stay where they are; scales reach from 0 over subnormal products to infinity."""
    r = RECORDS[format_]
    exponents = torch.tensor([0, 1, 5, 26, 27, 28, 100, 127, 200, 226, 227, 228, 250, 254, 255])
    pool = pool_of(format_, 15, 1, byte=0)
    start = r.data if r.footer else r.codes
    for page, exponent in enumerate(exponents):
        codes = (torch.arange(r.codes) + 32 * page) % 256  # tiles with NaN and tiles without
        pool[page, : r.codes] = codes.to(torch.uint8)
        if r.fp32_scales:
            scale = (exponent.int() << 23).repeat(r.coded // r.tile)
            scale[::2] += page % 2  # some are no powers of two
            pool[page, start : start + 4 * len(scale)] = scale.view(torch.uint8)
        else:
            pool[page, start : start + r.coded // r.tile] = exponent.to(torch.uint8)
    how: dict[str, Any] = {"format": format_, "page_size": 1, "dtype": dtype}
    with sparsekern.config.using(isa=isa):
        got = kv_read(pool, torch.arange(15), **how)
    want = sparsekern.reference.kv_read(pool, torch.arange(15), **how)
    assert_close(got, want, 0)
    nan = got[got.isnan()]
    assert_same_bits(nan, torch.full_like(nan, torch.nan))  # one and the same NaN


# --- refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"slots": torch.tensor([0, 12])}, r"slots\[1\] is 12, expected less than 12"),
        ({"slots": torch.tensor([2**40, 1])}, r"slots\[0\] is 1099511627776"),
        ({"page_size": 0}, "page_size is 0"),
        ({"page_size": 5}, "pages of 2624 bytes, expected 3280"),
        ({"format": "mla584"}, "pages of 2624 bytes, expected 2880"),
        ({"format": "bf16"}, "2 dimensions of uint8, expected"),
        ({"pool": torch.zeros(3, 4, 576).bfloat16()}, "3 dimensions, not of uint8"),
        ({"values": torch.zeros(2, 512).bfloat16()}, "values has rows of 512, expected 576"),
        ({"amax_floor": -1.0}, "amax_floor is -1"),
        ({"amax_floor": float("nan")}, "amax_floor is nan"),
    ],
)
def test_what_does_not_fit_a_pool_is_refused(change: dict[str, Any], says: str) -> None:
    x: dict[str, Any] = {
        "pool": pool_of("mla656", 3, 4),
        "slots": torch.tensor([0, 1]),
        "values": torch.zeros(2, 576).bfloat16(),
        "format": "mla656",
        "page_size": 4,
        **change,
    }
    before = x["pool"].clone()
    with pytest.raises(ShapeError, match=f"kv_write: .*{says}"):
        kv_write(**x)
    assert_same_bits(x["pool"], before)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seq_lens": torch.tensor([9]).int()}, r"seq_lens\[0\] is 9, expected 0 to 8"),
        ({"starts": torch.tensor([3]).int()}, r"seq_lens\[0\] is 6, expected 0 to 5"),
        ({"seq_lens": torch.tensor([-1]).int()}, r"seq_lens\[0\] is -1"),
        ({"starts": torch.tensor([-1]).int()}, r"starts\[0\] is -1"),
        ({"block_table": torch.tensor([[0, 3]]).int()}, r"block_table\[0, 1\] is 3, expected 0 to 2"),
        ({"block_table": torch.tensor([[0, -1]]).int()}, r"block_table\[0, 1\] is -1"),
        ({"total": 5}, "total is 5, expected at least the 6 tokens"),
        ({"out": torch.zeros(5, 576).bfloat16()}, "out has another size"),
        ({"out": (torch.zeros(6, 576).bfloat16(),) * 2}, "out has 2 tensors, expected 1"),
    ],
)
def test_what_cannot_be_gathered_is_refused(change: dict[str, Any], says: str) -> None:
    x: dict[str, Any] = {
        "pool": pool_of("mla656", 3, 4),
        "block_table": torch.tensor([[2, 1]], dtype=torch.int32),
        "seq_lens": torch.tensor([6], dtype=torch.int32),
        "format": "mla656",
        "page_size": 4,
        **change,
    }
    with pytest.raises(ShapeError, match=f"kv_gather: .*{says}"):
        kv_gather(**x)


def test_a_pool_may_not_overlap_what_is_read() -> None:
    room = torch.zeros(20000, dtype=torch.uint8)
    pool, values = room[: 3 * 2624].view(3, 2624), room[7000 : 7000 + 2 * 1152].view(torch.bfloat16)
    with pytest.raises(ShapeError, match="kv_write: pool is written to and overlaps values"):
        kv_write(pool, torch.tensor([0, 1]), values.view(2, 576), format="mla656", page_size=4)
    pages = room[:100].view(10, 10)
    with pytest.raises(ShapeError, match="dst_pool is written to and overlaps src_pool"):
        kv_copy_pages(pages[:5], pages[3:], torch.tensor([[0, 0]]))
    kv_copy_pages(pages[:5], pages[5:], torch.tensor([[0, 0]]))


# --- pages that move ----------------------------------------------------------------------------------------


def moved(pairs: Any, threads: int = 1, pages: int = 6) -> tuple[Tensor, Tensor]:
    """A pool after the copies, and as it should be."""
    pool = torch.arange(pages, dtype=torch.uint8)[:, None].repeat(1, 70)
    given = torch.tensor(pairs, dtype=torch.int64).view(-1, 2)
    want = pool.clone()
    sparsekern.reference.kv_copy_pages(want, want, given)
    with sparsekern.config.using(threads=threads):
        kv_copy_pages(pool, pool, given)
    return pool, want


@pytest.mark.parametrize(
    "pairs",
    [
        [],
        [(0, 0), (3, 3)],
        [(0, 1), (1, 2), (2, 3)],  # a chain
        [(2, 3), (1, 2), (0, 1)],
        [(0, 1), (1, 0)],  # a swap
        [(0, 1), (1, 2), (2, 0), (2, 4), (4, 5)],  # a cycle, and a chain that leaves it
        [(0, 1), (1, 0), (3, 4), (4, 3), (0, 5)],  # two cycles, one read from outside
        [(0, 1), (0, 2), (0, 3)],
    ],
)
def test_pages_move_within_a_pool(pairs: Any) -> None:
    for order in itertools.islice(itertools.permutations(pairs), 24):
        assert_same_bits(*moved(order))


@pytest.mark.parametrize("seed", range(20))
def test_any_moves_within_a_pool(seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    pages = 200
    n = int(torch.randint(1, pages + 1, (1,), generator=rng))
    dst = torch.randperm(pages, generator=rng)[:n]
    src = torch.randint(pages, (n,), generator=rng) if seed % 2 else dst[torch.randperm(n, generator=rng)]
    assert_same_bits(*moved(torch.stack([src, dst], 1).tolist(), threads=1 + seed % 3, pages=pages))


def test_wrong_moves_are_refused() -> None:
    pool = torch.arange(12, dtype=torch.uint8).view(4, 3)
    before = pool.clone()
    for pairs, says in (
        ([[0, 1], [2, 1]], "pairs name page 1 of dst_pool as a destination twice"),
        ([[0, 4]], r"pairs\[0, 1\] is 4, expected 0 to 3: a page of dst_pool"),
        ([[0, 1], [-1, 2]], r"pairs\[1, 0\] is -1, expected 0 to 3: a page of src_pool"),
    ):
        with pytest.raises(ShapeError, match=f"kv_copy_pages: {says}"):
            kv_copy_pages(pool, pool, torch.tensor(pairs))
    with pytest.raises(ShapeError, match="kv_copy_pages: "):
        kv_copy_pages(pool, torch.zeros(4, 3, dtype=torch.bfloat16), torch.tensor([[0, 1]]))
    assert_same_bits(pool, before)

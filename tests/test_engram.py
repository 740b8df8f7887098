"""Engram: what the records' tests do not ask, and the table and the index that are built on the ops."""

import random
import re
import unicodedata
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import EACH_ISA, inputs
from torch import Tensor

import sparsekern
from sparsekern import EngramIndex, EngramTable
from sparsekern.catalogue import OPS
from sparsekern.engram import compress_tokenizer, compress_tokens
from sparsekern.schema import DtypeError, ShapeError
from sparsekern.testing import assert_close, assert_same_bits, raw

HASH, LOOKUP, GATE = (OPS[f"engram_{name}"] for name in ("hash", "lookup", "gate"))


# --- hashes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("isa", EACH_ISA)
def test_remainders_of_extreme_products(isa: str) -> None:
    """Every kind of 64-bit number by divisors of every size; Python's integers know the answer."""
    numbers = [0, 1, -1, 2**31 - 1, -(2**31) + 1, 12345]
    multipliers = [1, -1, 2**63 - 1, -(2**63), 2**62, 3, 2**32 + 1, -(2**40)]
    primes = [1, 2, 3, 5, 2**16 + 1, 2**30 - 35, 2**31 - 1, 2**31 - 2]
    ids = torch.tensor([[a, b] for a in numbers for b in numbers], dtype=torch.int32)
    with sparsekern.config.using(isa=isa):
        got = sparsekern.engram_hash(
            ids,
            torch.tensor([[m, m ^ 5] for m in multipliers]),
            torch.tensor(primes, dtype=torch.int32).expand(len(multipliers), 1, -1).contiguous(),
            torch.zeros(len(multipliers), len(primes), dtype=torch.int32),
        )

    def wrapped(x: int) -> int:
        return (x + 2**63) % 2**64 - 2**63

    for layer, m in enumerate(multipliers):
        for t, (a, b) in enumerate(ids.tolist()):
            h = wrapped(a * m) ^ wrapped(b * (m ^ 5))
            assert got[layer, t].tolist() == [h % p for p in primes]


def test_token_depends_on_itself_alone() -> None:
    x = inputs(HASH, {"T": 300, "N": 4, "L": 2, "H": 8})
    want = HASH.fn(**x)
    for threads in (1, 3):
        with sparsekern.config.using(threads=threads):
            part = HASH.fn(**{**x, "ngram_ids": x["ngram_ids"][123:130]})
        assert_same_bits(part, want[:, 123:130].contiguous())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"primes": torch.zeros(2, 2, 8, dtype=torch.int32)}, "primes[0, 0] is 0, expected 1 to 2147483647"),
        ({"offsets": torch.full((2, 16), -1)}, "offsets[0, 0] is -1, expected 0"),
        ({"offsets": torch.full((2, 16), 2**31 - 1)}, "too large for int32"),
        ({"ngram_ids": torch.full((33, 3), 2**40)}, "ngram_ids[0, 0] is 1099511627776"),
        ({"ngram_ids": torch.zeros(33, 0, dtype=torch.int32)}, "multipliers has shape"),
    ],
)
def test_bad_values_of_hash(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ShapeError) as caught:
        HASH.fn(**{**inputs(HASH, HASH.test_dims[0]), **change})
    assert str(caught.value).startswith("engram_hash: ") and says in str(caught.value)


# --- look-ups -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [0, 1, 2])
def test_results_larger_than_caches(dtype: int) -> None:
    """Written past the caches from 32 MB on, unless rows are no whole lines."""
    for d in (256, 250):
        x = inputs(LOOKUP, {"V": 999, "D": d, "T": 1500 if dtype == 1 else 3000, "R": 24, "dtype": dtype})
        want = LOOKUP.reference(**x)
        assert want.nbytes >= 32 << 20
        for threads in (1, 2):
            with sparsekern.config.using(threads=threads):
                got = LOOKUP.fn(**x)
            assert torch.equal(raw(got)[~got.isnan()], raw(want)[~want.isnan()])
            assert torch.equal(got.isnan(), want.isnan())


def test_entries_beyond_two_gigabytes() -> None:
    """Offsets in bytes need 64 bits; untouched memory costs nothing."""
    table = EngramTable.empty(5_000_000, 256, huge_pages=False)
    assert table.nbytes > 2**31
    table.rows[4_999_999] = 7
    got = table.lookup(torch.tensor([[4_999_999, 0, 4_999_998]], dtype=torch.int32))
    assert_same_bits(got.view(3, 256)[:, 0].contiguous(), torch.tensor([7.0, 0.0, 0.0]).bfloat16())


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"rows": torch.full((9, 5), 50)}, ShapeError, "rows[0, 0] is 50, expected -1 to 49"),
        ({"rows": torch.full((9, 5), -2)}, ShapeError, "rows[0, 0] is -2"),
        ({"scale": torch.ones(50, 2, dtype=torch.uint8)}, ShapeError, "scale is given"),
        ({"table": torch.zeros(50, 40).to(torch.float8_e4m3fn)}, ShapeError, "scale is missing"),
        ({"table": torch.zeros(50, 40, dtype=torch.float16)}, DtypeError, "table is float16"),
        ({"table": None}, DtypeError, "table is None"),
    ],
)
def test_bad_values_of_lookup(change: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error) as caught:
        LOOKUP.fn(**{**inputs(LOOKUP, LOOKUP.test_dims[0]), **change})
    assert str(caught.value).startswith("engram_lookup: ") and says in str(caught.value)


# --- gates --------------------------------------------------------------------------------------------------


def test_gate_of_float32_stays_exact() -> None:
    x = inputs(GATE, {"T": 40, "n": 4, "D": 2048, "f32": 1})
    assert_close(GATE.fn(**x), GATE.reference(**x), 2e-6)


def test_masked_tokens_keep_x_whatever_else_they_hold() -> None:
    x = inputs(GATE, {"T": 6, "n": 4, "D": 64})
    mask = torch.tensor([True, False, True, False, True, True])
    want = GATE.fn(**x)
    for name in ("k", "v"):
        x[name][~mask] = torch.nan
    got = GATE.fn(**x, token_mask=mask)
    assert_same_bits(got[~mask], x["x"][~mask])
    assert_same_bits(got[mask], want[mask])


def test_sign_of_zero_counts() -> None:
    """A dot product of -0 closes the gate a little, one of +0 opens it: by sigmoid(1e-3) on either side."""
    x, v = torch.zeros(2, 1, 4), torch.ones(2, 4)
    k = torch.ones(2, 1, 4)
    x[1] = -0.0
    got = sparsekern.engram_gate(x, k, v, torch.ones(1, 4), eps=1e-20)[:, 0, 0]
    torch.testing.assert_close(got[0], torch.tensor(1e-3).sigmoid())


def test_not_a_number_stays_in_its_row() -> None:
    x = inputs(GATE, {"T": 5, "n": 4, "D": 64, "f32": 1})
    want = GATE.fn(**x)
    x["k"][3, 2, 7] = torch.nan
    got = GATE.fn(**x)
    assert got[3, 2].isnan().all()
    keep = torch.ones(5, 4, dtype=torch.bool)
    keep[3, 2] = False
    assert_same_bits(got[keep], want[keep])


# --- which tokens count as one ------------------------------------------------------------------------------


SPACES = "".join(c for c in map(chr, range(0x3001)) if c.isspace() and not "\x1c" <= c <= "\x1f")


def plain(text: str) -> str:
    """Step by step, with Python's own tables."""
    text = unicodedata.normalize("NFD", unicodedata.normalize("NFKC", text))
    text = "".join(c for c in text if not unicodedata.category(c).startswith("M"))
    text = "".join(c.lower() for c in text)  # one by one: a sigma at the end of a word stays like any other
    text = re.sub(r"[ \t\r\n]+", " ", text)
    return text if text == " " else text.strip(SPACES)


def test_tokens_that_read_alike_have_one_number() -> None:
    pytest.importorskip("tokenizers")
    alike = ["The", " the", "THE ", "th\u00e9", "\uff34\uff28\uff25", "the\n", "\u00a0Th\u0301e\u3000"]
    spaces, texts = (
        [" ", "  ", "\n", "\t \r\n"],
        ["a b", "", "a\n\nb", "\u0301", "\u0391\u03a3", "\u03b1\u03c3"],
    )
    got = compress_tokens([*alike, *spaces, *texts, "\ufffd", "x\ufffd"], ["name"] * 19).tolist()
    assert got == [0] * 7 + [1] * 4 + [2, 3, 2, 4, 5, 5, 6, 6], "a name counts where there is no text"
    rng = random.Random(0)
    known = unicodedata.ucd_3_2_0  # what every table since knows
    alphabet = [c for c in map(chr, range(1, 0x3000)) if known.category(c) not in ("Cn", "Co")]
    alphabet = [c for c in alphabet if known.category(c) == unicodedata.category(c)]
    random_texts = ["".join(rng.choices(alphabet, k=rng.randint(1, 3))) for _ in range(5000)] + alphabet
    keys = [plain(text) or text for text in random_texts]
    numbers: dict[str, int] = {}
    want = [numbers.setdefault(key, len(numbers)) for key in keys]
    assert compress_tokens(random_texts, [""] * len(want)).tolist() == want


def test_compression_of_a_tokenizer() -> None:
    pytest.importorskip("tokenizers")

    class Tokenizer:
        words = ("a", "A", "\ufffd", "b", " B", "\ufffd")

        def __len__(self) -> int:
            return len(self.words)

        def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
            assert not skip_special_tokens
            return self.words[ids[0]]

        def convert_ids_to_tokens(self, i: int) -> str:
            return f"<{i}>"

    assert compress_tokenizer(Tokenizer()).tolist() == [0, 0, 1, 2, 2, 3]


# --- which rows a token takes -------------------------------------------------------------------------------


def index(**change: Any) -> EngramIndex:
    options: dict[str, Any] = {"layers": (1, 14), "sizes": (100, 100, 50), "heads": 3, "pad": 2, "seed": 7}
    token_map = torch.arange(1000, dtype=torch.int32) // 2
    return EngramIndex.build(token_map, **{**options, **change})


def test_numbers_of_an_index() -> None:
    made = index()
    assert made.primes[0].tolist() == [[101, 103, 107], [109, 113, 127], [53, 59, 61]]
    assert made.primes[1].tolist() == [[131, 137, 139], [149, 151, 157], [67, 71, 73]], "no prime twice"
    assert made.offsets[0].tolist() == [0, 101, 204, 311, 420, 533, 660, 713, 772]
    assert made.entries == [833, 1075]
    assert made.pad == 1, "the padding token is compressed too"
    assert (made.multipliers % 2 == 1).all() and (made.multipliers > 0).all()
    assert int(made.multipliers.max()) * 499 < 2**63
    numpy = pytest.importorskip("numpy")
    want = numpy.random.default_rng(7 + 10007 * 14).integers(0, (2**63 - 1) // 500 // 2, 4) * 2 + 1
    assert made.multipliers[1].tolist() == want.tolist()
    for one, two in zip(made, index(), strict=True):
        assert one is two or torch.equal(torch.as_tensor(one), torch.as_tensor(two)), "the same every time"


def test_primes_of_production_size() -> None:
    made = index(layers=(1,), sizes=(16_000_000,) * 3, heads=8)
    primes = made.primes.flatten().tolist()
    assert primes == sorted(set(primes)) and primes[0] == 16_000_057
    assert all(all(p % d for d in range(2, int(p**0.5) + 1)) for p in primes)


def naive_ngrams(made: EngramIndex, tokens: list[int], dead: list[bool]) -> list[list[int]]:
    rows = []
    for t in range(len(tokens)):
        row: list[int] = []
        for k in range(made.multipliers.shape[1]):
            gone = t - k < 0 or dead[t - k] or (k > 0 and row[-1] is None)
            row.append(None if gone else int(made.token_map[tokens[t - k]]))  # type: ignore[arg-type]
        rows.append([made.pad if i is None else i for i in row])
    return rows


def test_ngrams_stop_at_dead_tokens() -> None:
    made, rng = index(), torch.Generator().manual_seed(0)
    tokens = torch.randint(1000, (200,), generator=rng)
    dead = torch.rand(200, generator=rng) < 0.15
    assert made.ngrams(tokens, dead).tolist() == naive_ngrams(made, tokens.tolist(), dead.tolist())
    assert made.ngrams(tokens).tolist() == naive_ngrams(made, tokens.tolist(), [False] * 200)
    assert made.ngrams(tokens[:0]).shape == (0, 4)
    assert made.ngrams(tokens[:2]).tolist() == naive_ngrams(made, tokens[:2].tolist(), [False] * 2)


def test_rows_lie_in_their_parts_and_go_on() -> None:
    made = index()
    tokens = torch.randint(1000, (300,), generator=torch.Generator().manual_seed(1))
    rows = made.rows(tokens)
    assert rows.shape == (2, 300, 9)
    first, last = made.offsets[:, None], made.offsets[:, None] + made.primes.flatten(1)[:, None]
    assert ((rows >= first) & (rows < last)).all()
    going_on = made.rows(tokens[100 - 3 : 150])[:, 3:]
    assert torch.equal(going_on, rows[:, 100:150])


@pytest.mark.parametrize(
    "change", [{"layers": ()}, {"heads": 0}, {"sizes": (1,)}, {"pad": 1000}, {"pad": -1}, {"sizes": (2**30,)}]
)
def test_indices_that_cannot_be(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="EngramIndex: "):
        index(**change)
    with pytest.raises(ValueError, match="token_ids"):
        index().rows(torch.tensor([0, 1000]))


# --- the rows -----------------------------------------------------------------------------------------------


def table(dtype: str) -> EngramTable:
    rows = torch.randn(3000, 96, generator=torch.Generator().manual_seed(2))
    if dtype == "float32":
        return EngramTable(rows)
    plain = EngramTable(rows.bfloat16())
    return plain if dtype == "bfloat16" else plain.quantized()


def some_rows() -> Tensor:
    return torch.randint(3000, (50, 24), generator=torch.Generator().manual_seed(3), dtype=torch.int32)


def test_quantized_table_is_close() -> None:
    made = table("mxfp8")
    assert made.scale is not None and made.rows.dtype == torch.float8_e4m3fn
    assert made.nbytes == 3000 * 99
    assert_close(made.lookup(some_rows()), table("bfloat16").lookup(some_rows()), 2**-4)
    ones = EngramTable.empty(4, 70, dtype=torch.float8_e4m3fn)
    assert ones.lookup(torch.zeros(1, 2, dtype=torch.int32)).count_nonzero() == 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "mxfp8"])
def test_saved_and_loaded(dtype: str, tmp_path: Path) -> None:
    made, path = table(dtype), tmp_path / "a table"
    want = made.lookup(some_rows())
    made.save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["a table"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        modes: list[dict[str, bool]] = [{}, {"mapped": True}, {"huge_pages": False}]
        for options in (*modes, *({**mode, "verify": False} for mode in modes)):
            read = EngramTable.load(path, **options)
            assert_same_bits(read.lookup(some_rows()), want)
            assert (read.rows.shape, read.nbytes) == (made.rows.shape, made.nbytes)
            assert_same_bits(read.prefetch(some_rows()).result(), want)
    out = torch.empty_like(want)
    assert EngramTable.load(path, mapped=True).lookup(some_rows(), out=out) is out


def test_views_are_saved_as_they_look(tmp_path: Path) -> None:
    rows = torch.randn(40, 8).bfloat16()
    EngramTable(rows[::2]).save(tmp_path / "t")
    assert_same_bits(EngramTable.load(tmp_path / "t").rows, rows[::2].contiguous())
    EngramTable(rows[:0]).save(tmp_path / "t")
    for mapped in (False, True):
        assert EngramTable.load(tmp_path / "t", mapped=mapped).rows.shape == (0, 8)


@pytest.mark.parametrize("dtype", ["bfloat16", "mxfp8"])
def test_every_flipped_bit_is_found(dtype: str, tmp_path: Path) -> None:
    """Anywhere: in the header, in the zeros behind it, in rows and scales and in the zeros behind them."""
    path = tmp_path / "t"
    table(dtype).save(path)
    size, rng = path.stat().st_size, random.Random(4)
    header = path.read_bytes().index(b"\0")
    edges = [at for page in range(0, size, 65536) for at in (page, page + 65535)]
    with path.open("r+b") as f:
        for at in (*range(header + 1), *edges, *(rng.randrange(size) for _ in range(100))):
            f.seek(at)
            byte = f.read(1)[0]
            f.seek(at)
            f.write(bytes([byte ^ 1 << rng.randrange(8)]))
            f.flush()
            for mapped in (False, True):
                with pytest.raises(ValueError, match="t: "):
                    EngramTable.load(path, mapped=mapped)
            f.seek(at)
            f.write(bytes([byte]))
    assert_same_bits(EngramTable.load(path).lookup(some_rows()), table(dtype).lookup(some_rows()))


@pytest.mark.parametrize("verify", [False, True])
def test_files_of_another_length_are_refused(verify: bool, tmp_path: Path) -> None:
    path, rng = tmp_path / "t", random.Random(5)
    table("mxfp8").save(path)
    good = path.read_bytes()
    sizes = [*range(100), *(len(good) + n for n in (-65536, -4096, -1, 1, 65536))]
    for size in (*sizes, *(rng.randrange(len(good)) for _ in range(100))):
        path.write_bytes(good[:size].ljust(size, b"\0"))
        for mapped in (False, True):
            with pytest.raises(ValueError, match="t: "):
                EngramTable.load(path, mapped=mapped, verify=verify)


@pytest.mark.parametrize(
    "text", [b"", b"\0" * 100000, b"sparsekern engram", b"sparsekern engram 2 00000000 1\n{}\n"]
)
def test_foreign_files_are_refused(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(text)
    with pytest.raises(ValueError, match="t: "):
        EngramTable.load(tmp_path / "t")
    with pytest.raises(OSError, match="directory"):
        EngramTable.load(tmp_path)


def test_chunks_of_a_checksum(tmp_path: Path) -> None:
    """Tables of several chunks, which end beside a chunk's end."""
    made = EngramTable.empty((32 << 20) // 512 + 1, 256)
    made.rows[::97] = torch.randn(256).bfloat16()
    for entries in (len(made.rows), len(made.rows) - 1, len(made.rows) - 2):
        EngramTable(made.rows[:entries]).save(tmp_path / "t")
        for mapped in (False, True):
            assert_same_bits(EngramTable.load(tmp_path / "t", mapped=mapped).rows, made.rows[:entries])


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t"
    table("float32").save(path)
    good = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        table("bfloat16").save(path)
    assert path.read_bytes() == good and [p.name for p in tmp_path.iterdir()] == ["t"]

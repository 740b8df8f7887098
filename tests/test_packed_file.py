"""Packed weights in files: what comes back is what was packed, or an error."""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import run
from torch import Tensor

import sparsekern
from sparsekern import PackedWeights, Sparse2to4
from sparsekern.catalogue import OPS
from sparsekern.packed_file import FIXED, PAGE, VERSION
from sparsekern.schema import ShapeError
from sparsekern.testing import assert_same_bits, seeded
from sparsekern.weights import FORMATS, random_weights

GEMM = OPS["gemm"]
SHAPES = [(70, 204, None), (64, 256, 3), (33, 136, 1)]


def weights(name: str, n: int, k: int, experts: int | None) -> dict[str, Any]:
    return random_weights(n, k, name, seeded(GEMM, {"n": n}), experts)


def packed(name: str = "e4m3", n: int = 64, k: int = 256, experts: int | None = 3) -> PackedWeights:
    w = weights(name, n, k, experts)
    return sparsekern.pack_weights(w["b"], w.get("b_scale"))


def same(got: PackedWeights, expected: PackedWeights) -> None:
    assert got[2:] == expected[2:]
    assert_same_bits(got.data, expected.data)
    if expected.scale is None:
        assert got.scale is None
    else:
        assert got.scale is not None
        assert got.scale.dtype == expected.scale.dtype
        assert_same_bits(got.scale, expected.scale)


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("n, k, experts", SHAPES)
@pytest.mark.parametrize("name", FORMATS)
def test_round_trip(name: str, n: int, k: int, experts: int | None, mmap: bool, tmp_path: Path) -> None:
    w = packed(name, n, k, experts)
    w.save(tmp_path / "w")
    assert [p.name for p in tmp_path.iterdir()] == ["w"]
    assert (tmp_path / "w").stat().st_size % PAGE == 0
    back = PackedWeights.load(tmp_path / "w", mmap=mmap)
    same(back, w)
    assert back.data.is_contiguous()
    assert_same_bits(back.unpack()[0], w.unpack()[0])


def test_loaded_weights_multiply(tmp_path: Path) -> None:
    w = packed(experts=None)
    w.save(str(tmp_path / "w"))
    a = torch.randn(5, 256).bfloat16()
    assert_same_bits(
        run(GEMM, {"a": a, "b": PackedWeights.load(str(tmp_path / "w"))}), run(GEMM, {"a": a, "b": w})
    )


def test_writing_to_mapped_weights_leaves_the_file_alone(tmp_path: Path) -> None:
    packed().save(tmp_path / "w")
    before = (tmp_path / "w").read_bytes()
    w = PackedWeights.load(tmp_path / "w")
    w.data.fill_(7)
    assert (w.data == 7).all()
    assert (tmp_path / "w").read_bytes() == before


def test_saving_over_a_mapped_file(tmp_path: Path) -> None:
    first, second = packed(), packed("bf16", 32, 64)
    first.save(tmp_path / "w")
    old = PackedWeights.load(tmp_path / "w")
    second.save(tmp_path / "w")
    same(old, first)
    same(PackedWeights.load(tmp_path / "w"), second)


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    packed().save(tmp_path / "w")
    before = (tmp_path / "w").read_bytes()
    broken = packed()._replace(shape=(3, 64, 260))
    with pytest.raises(ShapeError, match=r"^PackedWeights\.save: data has 49152 bytes, expected 49920"):
        broken.save(tmp_path / "w")

    def stops() -> Iterator[tuple[Tensor, Tensor]]:
        yield matrices("e4m3")[0]
        raise KeyError("the checkpoint ends here")

    with pytest.raises(KeyError, match="ends here"):
        PackedWeights.of_experts(stops(), 3, path=tmp_path / "w")
    assert [p.name for p in tmp_path.iterdir()] == ["w"]
    assert (tmp_path / "w").read_bytes() == before


# --- files that are none, or no longer what they were -----------------------------------------------------


def refused(path: Path, says: str, **options: bool) -> None:
    for mmap in (True, False):
        with pytest.raises(ValueError, match=rf"^PackedWeights\.load: .*{path.name}.* {says}"):
            PackedWeights.load(path, mmap=mmap, **options)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    packed().save(tmp_path / "weights")
    return tmp_path / "weights"


def test_every_flipped_byte_is_found(file: Path) -> None:
    good = file.read_bytes()
    step = 97  # prime, so that every part of the file and of a word has its turn
    for at in [*range(FIXED.size + 24), *range(FIXED.size + 24, len(good), step), len(good) - 1]:
        bad = bytearray(good)
        bad[at] ^= 1 << at % 8
        file.write_bytes(bad)
        with pytest.raises(ValueError, match=r"^PackedWeights\.load: .*weights "):
            PackedWeights.load(file)
    file.write_bytes(good)
    same(PackedWeights.load(file), packed())


def test_every_length_is_found(file: Path) -> None:
    good = file.read_bytes()
    for length in [*range(FIXED.size + 24), *range(FIXED.size + 24, len(good), 997), len(good) - 1]:
        file.write_bytes(good[:length])
        refused(file, "(is not|has)", verify=False)
    file.write_bytes(good + b"\0")
    refused(file, "has 57345 bytes, expected 57344; it was cut off or added to", verify=False)


def test_what_was_changed_is_named(file: Path) -> None:
    good = bytearray(file.read_bytes())
    for at, what in (
        (PAGE + 5, "panels of expert 0"),
        (PAGE + 2 * 64 * 256, "panels of expert 2"),
        (-PAGE, "scales"),
    ):
        bad = good.copy()
        bad[at] ^= 0x10
        file.write_bytes(bad)
        refused(file, f"has {what} with CRC-32")
        assert PackedWeights.load(file, verify=False).shape == (3, 64, 256)


def test_foreign_files(file: Path, tmp_path: Path) -> None:
    for name, content in (("empty", b""), ("text", b"once upon a time " * 900), ("zeros", bytes(9999))):
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, "is not a file of packed weights")
    torch.save(packed().data, tmp_path / "torch")
    refused(tmp_path / "torch", "is not a file of packed weights")
    with pytest.raises(FileNotFoundError):
        PackedWeights.load(tmp_path / "nothing")


def with_header(good: bytes, *, at: int, number: int, size: str) -> bytes:
    """The file with one number of the header changed, and a checksum that fits."""
    bad = bytearray(good)
    struct.pack_into(size, bad, at, number)
    struct.pack_into("<I", bad, PAGE - 4, zlib.crc32(bad[: PAGE - 4]))
    return bytes(bad)


def test_headers_from_elsewhere(file: Path) -> None:
    good = file.read_bytes()
    file.write_bytes(with_header(good, at=8, number=VERSION + 1, size="<I"))
    refused(file, f"has version {VERSION + 1}, expected {VERSION}")
    for field in range(5):
        for number in (-(2**63), -5, *((2**40, 2**63 - 1) if field < 3 else (0,))):  # experts, N, K; blocks
            file.write_bytes(with_header(good, at=20 + 8 * field, number=number, size="<q"))
            refused(file, "has ")
    for at in (12, 16):
        file.write_bytes(with_header(good, at=at, number=77, size="<I"))
        refused(file, "has ")


# --- experts, one by one -----------------------------------------------------


def matrices(name: str, count: int = 3) -> list[tuple[Any, Any]]:
    w = weights(name, 64, 256, count)
    b, scale = w["b"], w.get("b_scale")
    rows = [Sparse2to4(*e) for e in zip(*b, strict=True)] if isinstance(b, Sparse2to4) else list(b)
    return list(zip(rows, [None] * count if scale is None else list(scale), strict=True))


@pytest.mark.parametrize("to_file", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_experts_one_by_one(name: str, to_file: bool, tmp_path: Path) -> None:
    path = tmp_path / "w" if to_file else None
    got = PackedWeights.of_experts(iter(matrices(name)), 3, path=path)
    same(got, packed(name))
    if path is not None:
        same(PackedWeights.load(path), packed(name))
        packed(name).save(tmp_path / "whole")
        assert path.read_bytes() == (tmp_path / "whole").read_bytes()


def test_experts_in_given_blocks(tmp_path: Path) -> None:
    w = weights("e4m3", 64, 256, 2)
    scale = torch.rand(2, 3, 2)
    whole = sparsekern.pack_weights(w["b"], scale, block=(24, 128))
    same(PackedWeights.of_experts(zip(w["b"], scale, strict=True), 2, block=(24, 128)), whole)


@pytest.mark.parametrize("to_file", [False, True])
def test_experts_are_let_go(to_file: bool, tmp_path: Path) -> None:
    """No more than two are alive at once: the one that is packed and the one that is made."""
    alive, most = 0, 0

    class Counted:
        def __init__(self) -> None:
            nonlocal alive, most
            alive += 1
            most = max(most, alive)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def one_by_one() -> Iterator[tuple[Tensor, None]]:
        for i in range(6):
            b = torch.full((64, 64), float(i))
            b.untyped_storage().owner = Counted()  # type: ignore[attr-defined]
            yield b, None

    PackedWeights.of_experts(one_by_one(), 6, path=tmp_path / "w" if to_file else None)
    assert most <= 2
    assert alive <= 1


def test_wrong_experts(tmp_path: Path) -> None:
    good = matrices("e4m3")
    for experts, count, says in (
        ([], 3, "starts with none"),
        ([(weights("e4m3", 64, 256, 3)["b"], None)], 3, r"shape \(3, 64, 256\), expected a matrix"),
        (good, 4, "holds 3, expected count = 4"),
        (good, 2, "holds 3, expected count = 2"),
        ([good[0], matrices("bf16")[0]], 2, r"experts\[1\] is bf16"),
        ([good[0], (good[1][0][:32], good[1][1][:1])], 2, r"experts\[1\] is e4m3 \(32, 256\)"),
    ):
        for path in (None, tmp_path / "w"):
            with pytest.raises(ShapeError, match=rf"^PackedWeights\.of_experts: .*{says}"):
                PackedWeights.of_experts(iter(experts), count, path=path)
            assert not list(tmp_path.iterdir())

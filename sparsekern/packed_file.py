"""Files of packed weights: `PackedWeights.save`, `.load` and `.of_experts`.

A file is a header, the panels of all experts and their scales, each filled up with zeros to pages of 4096
bytes. The header is

    magic, version, format, dtype of the scales, experts (-1: a matrix), N, K, block
    CRC-32 of each expert's panels, and of all that comes after the panels
    CRC-32 of the header up to here, in its last four bytes

Numbers are little-endian. A file gets its name when it is complete, so nobody ever finds half of one.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import secrets
import struct
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from torch import Tensor

from sparsekern.ops.pack_weights import pack_weights
from sparsekern.schema import ShapeError
from sparsekern.weights import FORMATS, PackedWeights, Sparse2to4

MAGIC = b"\x89SKPACK\n"
VERSION = 2
PAGE = 4096
SCALES = (None, torch.float32, torch.float8_e8m0fnu)
FIXED = struct.Struct("<8s3I5q")  # magic, version, Header
CRC = struct.Struct("<I")
CHUNKS = ((1, 64), (2, 64), (4, 64), (8, 64), (4, 72), (4, 40))  # by format: k's, and bytes of 16 columns

StrPath = str | os.PathLike[str]


class Header(NamedTuple):
    """What a file holds."""

    format: int
    scales: int  # of SCALES
    experts: int
    n: int
    k: int
    block_n: int
    block_k: int

    @classmethod
    def of(cls, w: PackedWeights, experts: int) -> Header:
        """Of a file of w, or of many experts like w."""
        scales = SCALES.index(None if w.scale is None else w.scale.dtype)
        n, k = w.shape[-2:]
        return cls(FORMATS.index(w.format), scales, experts, n, k, *w.block)

    @property
    def sensible(self) -> bool:
        """Whether there can be such weights."""
        kinds = self.format < len(FORMATS) and self.scales < len(SCALES)
        return (
            kinds and self.experts >= -1 and min(self.n, self.k) >= 0 and min(self.block_n, self.block_k) > 0
        )

    @property
    def _segments(self) -> tuple[int, int]:
        """How many parts K has that share a scale, and how long K is with each filled up to whole chunks."""
        length = max(min(self.block_k, self.k) if self.scales else self.k, 1)
        unit = max(CHUNKS[self.format][0], 2)
        whole, rest = divmod(self.k, length)
        return whole + (rest > 0), whole * _up(length, unit) + _up(rest, unit)

    @property
    def data_bytes(self) -> int:
        """Bytes of all panels (csrc/gemm/gemm.h)."""
        per_chunk, size = CHUNKS[self.format]
        return self.parts * -(-self.n // 16) * (self._segments[1] // per_chunk) * size

    @property
    def scale_bytes(self) -> int:
        """Bytes of all scales."""
        rows = _up(self.n, 16) if self.block_n % 16 else -(-self.n // self.block_n)
        return (0, 4, 1)[self.scales] * self.parts * rows * self._segments[0]

    @property
    def parts(self) -> int:
        """How many pieces of the panels have checksums of their own."""
        return 1 if self.experts < 0 else self.experts

    @property
    def data_at(self) -> int:
        """Where panels begin and the header ends."""
        return _up(FIXED.size + CRC.size * (self.parts + 2), PAGE)

    @property
    def scale_at(self) -> int:
        """Where scales begin."""
        return _up(self.data_at + self.data_bytes, PAGE)

    @property
    def file_bytes(self) -> int:
        """Where the file ends."""
        return _up(self.scale_at + self.scale_bytes, PAGE)

    def encode(self, sums: Iterable[int]) -> bytes:
        """The file's first bytes."""
        known = FIXED.pack(MAGIC, VERSION, *self) + b"".join(map(CRC.pack, sums))
        known = known.ljust(self.data_at - CRC.size, b"\0")
        return known + CRC.pack(zlib.crc32(known))


def _up(x: int, unit: int) -> int:
    return -(-x // unit) * unit


def _memory(t: Tensor) -> Any:
    """A contiguous tensor's bytes, to be read."""
    return (ctypes.c_ubyte * t.nbytes).from_address(t.data_ptr()) if t.nbytes else b""


def _of_experts(panels: Tensor, header: Header) -> list[Tensor]:
    """The panels of each expert, whatever follows them."""
    step = header.data_bytes // max(header.parts, 1)
    return [panels[i * step :][:step] for i in range(header.parts)]


class _Writer:
    """Takes panels in order, then scales; the header comes last."""

    def __init__(self, file: IO[bytes], header: Header) -> None:
        self.file, self.header = file, header
        self.sums: list[int] = []
        file.seek(header.data_at)

    def add(self, panels: Tensor) -> None:
        self.sums.append(zlib.crc32(_memory(panels)))
        self.file.write(_memory(panels))

    def finish(self, scale: Tensor | None) -> None:
        rest = bytes(self.header.scale_at - self.header.data_at - self.header.data_bytes)
        rest += b"" if scale is None else bytes(_memory(scale))
        rest += bytes(self.header.file_bytes - self.header.scale_at - self.header.scale_bytes)
        self.file.write(rest)
        self.file.seek(0)
        self.file.write(self.header.encode([*self.sums, zlib.crc32(rest)]))


@contextlib.contextmanager
def _new_file(path: StrPath) -> Iterator[IO[bytes]]:
    """A file that takes its name when all is written, and is gone if that fails."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with partial.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def save(weights: PackedWeights, path: StrPath) -> None:
    """See `PackedWeights.save`."""
    header = Header.of(weights, weights.shape[0] if len(weights.shape) == 3 else -1)
    if weights.data.nbytes != header.data_bytes:
        raise ShapeError(
            f"PackedWeights.save: data has {weights.data.nbytes} bytes, expected {header.data_bytes} for "
            f"{weights.format} {weights.shape} in blocks of {weights.block}"
        )
    with _new_file(path) as file:
        writer = _Writer(file, header)
        for panels in _of_experts(weights.data, header):
            writer.add(panels)
        writer.finish(weights.scale)


def load(path: StrPath, *, mmap: bool, verify: bool) -> PackedWeights:
    """See `PackedWeights.load`."""
    header, sums = _read_header(path)
    file = torch.from_file(os.fspath(path), shared=False, size=header.file_bytes, dtype=torch.uint8)
    data = file[header.data_at :][: header.data_bytes]
    scale = file[header.scale_at :][: header.scale_bytes]
    if verify:
        _verify(path, header, file, sums)
    if not mmap:
        data, scale = data.clone(), scale.clone()
    lead = () if header.experts < 0 else (header.experts,)
    dtype = SCALES[header.scales]
    return PackedWeights(
        data,
        None if dtype is None else scale.view(dtype),
        (*lead, header.n, header.k),
        FORMATS[header.format],
        (header.block_n, header.block_k),
    )


def _read_header(path: StrPath) -> tuple[Header, list[int]]:
    def refuse(why: str) -> ValueError:
        return ValueError(f"PackedWeights.load: {os.fspath(path)} {why}")

    with Path(path).open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        fixed = file.read(FIXED.size)
        if fixed[: len(MAGIC)] != MAGIC:
            raise refuse("is not a file of packed weights; expected one that PackedWeights.save wrote")
        if len(fixed) < FIXED.size:
            raise refuse(f"has {size} bytes, expected a header of {FIXED.size} or more; it was cut off")
        _, version, *numbers = FIXED.unpack(fixed)
        if version != VERSION:
            raise refuse(f"has version {version}, expected {VERSION}; pack the weights anew")
        header = Header(*numbers)
        if not header.sensible or header.data_at > size:
            raise refuse(f"has a header that does not fit {size} bytes; it was changed or cut off")
        known = fixed + file.read(header.data_at - FIXED.size)
    if CRC.unpack(known[-CRC.size :])[0] != zlib.crc32(known[: -CRC.size]):
        raise refuse("has a header that does not fit its checksum; it was changed")
    if size != header.file_bytes:
        raise refuse(f"has {size} bytes, expected {header.file_bytes}; it was cut off or added to")
    return header, [s for (s,) in CRC.iter_unpack(known[FIXED.size :][: CRC.size * (header.parts + 1)])]


def _verify(path: StrPath, header: Header, file: Tensor, sums: list[int]) -> None:
    pieces = [*_of_experts(file[header.data_at :], header), file[header.data_at + header.data_bytes :]]
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        found = list(pool.map(lambda piece: zlib.crc32(_memory(piece)), pieces))
    for i, (got, expected) in enumerate(zip(found, sums, strict=True)):
        if got != expected:
            what = (
                "scales" if i == header.parts else f"panels of expert {i}" if header.experts > 0 else "panels"
            )
            raise ValueError(
                f"PackedWeights.load: {os.fspath(path)} has {what} with CRC-32 {got:08x}, expected "
                f"{expected:08x}; the file was changed after it was written"
            )


def of_experts(
    experts: Iterable[tuple[Tensor | Sparse2to4, Tensor | None]],
    count: int,
    block: tuple[int, int] | None,
    path: StrPath | None,
) -> PackedWeights:
    """See `PackedWeights.of_experts`."""
    packed = (pack_weights(b, scale, block=block) for b, scale in experts)
    first = next(packed, None)
    if first is None or len(first.shape) != 2:
        got = "none" if first is None else f"weights of shape {first.shape}"
        raise ShapeError(f"PackedWeights.of_experts: experts starts with {got}, expected a matrix [N, K]")
    alike = _alike(first, packed, count)
    if path is None:
        return _gathered(first, alike, count)
    with _new_file(path) as file:
        writer = _Writer(file, Header.of(first, count))
        scales = []
        for w in alike:
            writer.add(w.data)
            scales.append(w.scale)
        writer.finish(torch.cat([s for s in scales if s is not None]) if first.scale is not None else None)
    return PackedWeights.load(path, verify=False)


def _alike(first: PackedWeights, others: Iterable[PackedWeights], count: int) -> Iterator[PackedWeights]:
    """The first and the others, which must be as it is and `count` together."""
    seen = 0
    for w in itertools.chain([first], others):
        if w[2:] != first[2:]:  # shape, format, block
            raise ShapeError(
                f"PackedWeights.of_experts: experts[{seen}] is {w.format} {w.shape} in blocks of {w.block}, "
                f"expected {first.format} {first.shape} in blocks of {first.block} as experts[0] is"
            )
        seen += 1
        if seen <= count:
            yield w
    if seen != count:
        raise ShapeError(f"PackedWeights.of_experts: experts holds {seen}, expected count = {count}")


def _gathered(first: PackedWeights, experts: Iterable[PackedWeights], count: int) -> PackedWeights:
    data = first.data.new_empty(count, first.data.nbytes)
    scale = None if first.scale is None else first.scale.new_empty(count, first.scale.numel())
    for i, w in enumerate(experts):
        data[i] = w.data
        if scale is not None and w.scale is not None:
            scale[i] = w.scale
    return first._replace(
        data=data.view(-1), scale=None if scale is None else scale.view(-1), shape=(count, *first.shape)
    )

"""A table's file: a header, which checks itself, and the data with a checksum for every 16 MB.

Rows and scales begin at multiples of a page and are followed by zeros up to the next one. Checksums cover
every byte of the file, and its length is exact.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import re
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from torch import Tensor

GROUP = 32  # codes of a row that share a scale

_MAGIC, _VERSION = b"sparsekern engram", 1
_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float8_e4m3fn": torch.float8_e4m3fn}
_CHUNK = 16 << 20  # bytes that share a checksum
_PAGE = 1 << 16  # a multiple of every system's


class Header(NamedTuple):
    """What a file says about itself: one line of JSON, with its checksum before it."""

    dtype: str
    entries: int
    dim: int
    sums: list[int]
    """Of every chunk of the rows, and then of the scales, each with the zeros behind."""

    def pack(self) -> bytes:
        """The bytes before the data."""
        text = json.dumps(self._asdict()).encode()
        head = b"%s %d %08x %d\n%s\n" % (_MAGIC, _VERSION, zlib.crc32(text), len(text), text)
        return head.ljust(_aligned(len(head)), b"\0")

    def widths(self) -> list[int]:
        """Bytes of a row, and of its scales where it has some."""
        width = self.dim * _DTYPES[self.dtype].itemsize
        return [width, -(-self.dim // GROUP)] if self.dtype == "float8_e4m3fn" else [width]

    def sizes(self) -> list[int]:
        """Bytes of all rows, and of all scales, with the zeros behind."""
        return [_aligned(self.entries * width) for width in self.widths()]

    def chunks(self) -> list[slice]:
        """The parts of the data that share a checksum."""
        sizes = self.sizes()
        ends = list(accumulate(sizes))
        return [
            slice(at, min(at + _CHUNK, end))
            for size, end in zip(sizes, ends, strict=True)
            for at in range(end - size, end, _CHUNK)
        ]

    def views(self, data: Tensor) -> list[Tensor]:
        """Rows, and scales where there are some, in the data."""
        parts, dtypes = data.split(self.sizes()), (_DTYPES[self.dtype], torch.float8_e8m0fnu)
        return [
            part[: self.entries * width].view(self.entries, width).view(dtype)
            for part, width, dtype in zip(parts, self.widths(), dtypes, strict=False)
        ]


def write(path: str | os.PathLike[str], rows: Tensor, scale: Tensor | None) -> None:
    """Write a file, which appears under its name when it is complete and on the disk."""
    tensors = [t.contiguous() for t in (rows, scale) if t is not None]
    parts = [bytes_of(t) for t in tensors]
    header = Header(str(rows.dtype).removeprefix("torch."), rows.shape[0], rows.shape[1], [])
    pieces = [part[at : at + _CHUNK] for part in parts for at in range(0, len(part), _CHUNK)]
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        header.sums.extend(pool.map(_checksum, pieces))
    target = Path(path)
    beside = target.with_name(f"{target.name}.{os.getpid()}.{threading.get_ident()}.part")
    try:
        with beside.open("wb") as f:
            f.write(header.pack())
            for part in parts:
                f.write(part)
                f.write(_zeros_behind(part))
            f.flush()
            os.fsync(f.fileno())
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)


def read(path: str | os.PathLike[str], *, mapped: bool, huge_pages: bool, verify: bool) -> list[Tensor]:
    """Rows, and scales where there are some.

    Raises:
        ValueError: the file is something else, is longer or shorter than it says, or differs from a checksum.
    """
    with Path(path).open("rb") as f:
        header = _header(f, path)
        start, size = f.tell(), sum(header.sizes())
        data = _mapped(f)[start:] if mapped and size else memory(size, huge_pages)
        room = bytes_of(data)

        def take(chunk: slice, expected: int) -> None:
            part = room[chunk]
            if not mapped and os.preadv(f.fileno(), [part], start + chunk.start) != len(part):
                raise ValueError(f"{path}: cannot be read at byte {start + chunk.start}")
            if verify and zlib.crc32(part) != expected:
                raise ValueError(f"{path}: bytes {start + chunk.start} to {start + chunk.stop} are damaged")

        if verify or not mapped:
            with ThreadPoolExecutor(torch.get_num_threads()) as pool:
                list(pool.map(take, header.chunks(), header.sums))
    return header.views(data)


def _header(f: BinaryIO, path: str | os.PathLike[str]) -> Header:
    match = re.fullmatch(rb"%s (\d+) ([0-9a-f]{8}) ([1-9]\d{0,8})\n" % _MAGIC, f.readline(64))
    if match is None:
        raise ValueError(f"{path}: no table of sparsekern")
    version, checksum, length = int(match[1]), int(match[2], 16), int(match[3])
    if version != _VERSION:
        raise ValueError(f"{path}: version {version} of a table, expected {_VERSION}")
    text = f.read(length)
    if zlib.crc32(text) != checksum:
        raise ValueError(f"{path}: its header differs from its checksum")
    header = Header(**json.loads(text))
    if len(header.sums) != len(header.chunks()):
        raise ValueError(f"{path}: has {len(header.sums)} checksums, expected {len(header.chunks())}")
    head = header.pack()
    f.seek(0)
    if f.read(len(head)) != head:
        raise ValueError(f"{path}: something else is behind its header")
    size, expected = os.fstat(f.fileno()).st_size, len(head) + sum(header.sizes())
    if size != expected:
        raise ValueError(f"{path}: has {size} bytes, expected {expected}")
    return header


def memory(size: int, huge_pages: bool) -> Tensor:
    """Bytes, all zero, on pages of their own; huge ones where the system allows them."""
    if size == 0:
        return torch.empty(0, dtype=torch.uint8)
    # Private: the system rarely has huge pages to share. The mapping goes when the last tensor on it goes.
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if huge_pages and hasattr(mmap, "MADV_HUGEPAGE"):
        pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=torch.uint8)


def bytes_of(tensor: Tensor) -> memoryview:
    """A contiguous tensor's memory, while the tensor lives."""
    room = (ctypes.c_uint8 * tensor.nbytes).from_address(tensor.data_ptr()) if tensor.nbytes else b""
    return memoryview(room).cast("B")


def _mapped(f: BinaryIO) -> Tensor:
    """A file's bytes. Read-only, of which torch warns: a writable mapping might have to fit in memory."""
    pages = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
    if hasattr(mmap, "MADV_RANDOM"):
        pages.madvise(mmap.MADV_RANDOM)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.frombuffer(pages, dtype=torch.uint8)


def _aligned(at: int) -> int:
    return -(-at // _PAGE) * _PAGE


def _zeros_behind(part: memoryview) -> bytes:
    return bytes(_aligned(len(part)) - len(part))


def _checksum(part: memoryview) -> int:
    """Of a chunk, which alone ends where a page does unless it is the last one, and the zeros behind."""
    return zlib.crc32(_zeros_behind(part), zlib.crc32(part))

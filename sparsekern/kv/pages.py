"""The pages of one pool, and who refers to them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from sparsekern.ops._kv import KvFormat, kv_page_bytes
from sparsekern.schema import ShapeError


class PoolSpec(NamedTuple):
    """A pool of a model: `pages` pages of `page_size` records, in each of `layers` layers.

    `head_dim` and `dtype` are for format "bf16": the values of a record, bfloat16 or float32.
    """

    format: KvFormat
    pages: int
    page_size: int = 64
    layers: int = 1
    head_dim: int | None = None
    dtype: torch.dtype = torch.bfloat16

    @property
    def page_bytes(self) -> int:
        """Bytes of a page in one layer."""
        wide = self.format == "bf16" and self.dtype == torch.float32
        return kv_page_bytes(self.format, self.page_size, head_dim=self.head_dim) * (2 if wide else 1)


class OutOfPages(RuntimeError):
    """A pool has too few free pages for a call, which changed nothing."""

    def __init__(self, pool: str, needed: int, free: int, pages: int) -> None:
        super().__init__(f"out of pages: pool {pool!r} has {free} of {pages} pages free, {needed} are needed")
        self.pool, self.needed, self.free = pool, needed, free


class PagePool:
    """Pages with reference counts, in memory that is taken once.

    A page number means the same page of every layer. `data` is [layers, pages, page_bytes] of uint8, or
    [layers, pages, page_size, head_dim] for format "bf16".
    """

    def __init__(self, name: str, spec: PoolSpec) -> None:
        for what in ("pages", "layers"):
            if getattr(spec, what) < 1:
                raise ShapeError(
                    f"PoolSpec: {what} of {name!r} is {getattr(spec, what)}, expected at least 1"
                )
        bytes_ = spec.page_bytes  # checks the rest
        shape: tuple[int, ...] = (bytes_,)
        dtype = torch.uint8
        if spec.format == "bf16":
            if spec.dtype not in (torch.bfloat16, torch.float32):
                raise ShapeError(f"PoolSpec: dtype of {name!r} is {spec.dtype}, expected bfloat16 or float32")
            assert spec.head_dim is not None
            shape, dtype = (spec.page_size, spec.head_dim), spec.dtype
        self.name, self.spec = name, spec
        self.data: Tensor = torch.zeros(spec.layers, spec.pages, *shape, dtype=dtype)
        self.within = torch.arange(spec.page_size)  # the records of a page
        self._references = [0] * spec.pages
        self._free = list(range(spec.pages - 1, -1, -1))  # the lowest is taken first

    @property
    def free(self) -> int:
        """Pages that nobody refers to."""
        return len(self._free)

    def references(self, page: int) -> int:
        """How many refer to the page."""
        return self._references[page]

    def take(self, count: int) -> list[int]:
        """Take free pages, one reference each.

        Raises:
            OutOfPages: there are fewer.
        """
        if count > len(self._free):
            raise OutOfPages(self.name, count, len(self._free), self.spec.pages)
        taken = [self._free.pop() for _ in range(count)]
        for page in taken:
            self._references[page] = 1
        return taken

    def share(self, pages: Iterable[int]) -> None:
        """Refer to pages once more."""
        for page in pages:
            assert self._references[page] > 0, f"page {page} of {self.name!r} is free"
            self._references[page] += 1

    def drop(self, pages: Iterable[int]) -> None:
        """Give references back; a page without one is free."""
        for page in pages:
            assert self._references[page] > 0, f"page {page} of {self.name!r} is free"
            self._references[page] -= 1
            if self._references[page] == 0:
                self._free.append(page)

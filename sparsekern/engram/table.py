"""The rows that n-grams are remembered in."""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from sparsekern.engram import file
from sparsekern.ops.engram_lookup import engram_lookup
from sparsekern.ops.quantize_fp8 import quantize_fp8


class EngramTable:
    """Rows of a table, bfloat16, float32 or FP8 with a scale for every 32 (MXFP8).

    `rows` [entries, dim] and `scale` [entries, dim / 32] (or None) are plain tensors. A table that was loaded
    with `mapped=True` is read-only: its pages are read from the file when they are needed first.
    """

    def __init__(self, rows: Tensor, scale: Tensor | None = None) -> None:
        """Hold existing tensors, without a copy."""
        self.rows = rows
        self.scale = scale

    @classmethod
    def empty(
        cls, entries: int, dim: int, *, dtype: torch.dtype = torch.bfloat16, huge_pages: bool = True
    ) -> EngramTable:
        """Make a table of zeros in memory, of `torch.float8_e4m3fn` with scales 1.

        On huge pages, where the system allows them, a look-up misses the translation of addresses rarely.
        """
        header = file.Header(str(dtype).removeprefix("torch."), entries, dim, [])
        made = cls(*header.views(file.memory(sum(header.sizes()), huge_pages)))
        if made.scale is not None:
            made.scale.view(torch.uint8).fill_(127)
        return made

    def quantized(self, *, huge_pages: bool = True) -> EngramTable:
        """The table in FP8, half as large as bfloat16: `quantize_fp8` in groups of 32, scales as UE8M0."""
        made = EngramTable.empty(*self.rows.shape, dtype=torch.float8_e4m3fn, huge_pages=huge_pages)
        assert made.scale is not None
        step = max(1, (64 << 20) // max(1, self.rows.shape[1]))
        for at in range(0, len(self.rows), step):
            part = slice(at, at + step)
            quantize_fp8(
                self.rows[part],
                group_size=file.GROUP,
                scale_format="ue8m0",
                out=(made.rows[part], made.scale[part]),
            )
        return made

    @property
    def nbytes(self) -> int:
        """Bytes of rows and scales."""
        return self.rows.nbytes + (0 if self.scale is None else self.scale.nbytes)

    def lookup(self, rows: Tensor, *, out: Tensor | None = None) -> Tensor:
        """The rows of each token side by side: `engram_lookup`."""
        return engram_lookup(self.rows, rows, scale=self.scale, out=out)

    def prefetch(self, rows: Tensor, *, out: Tensor | None = None) -> Future[Tensor]:
        """Begin a look-up on a thread of its own; `.result()` waits for it.

        Rows follow from the tokens alone, so that the memory of every layer can be on its way before the
        first layer runs. That hides the disk under a mapped table.
        """
        return _background().submit(self.lookup, rows.clone(), out=out)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table to a file, which appears when it is complete, with checksums of all it holds."""
        file.write(path, self.rows, self.scale)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        mapped: bool = False,
        huge_pages: bool = True,
        verify: bool = True,
    ) -> EngramTable:
        """Read a table, or map it from its file.

        Args:
            path: a file that `save` wrote.
            mapped: leave the rows in the file, which must stay as it is while the table lives (to `save`
                another one under its name does no harm). What was read stays in memory while there is room.
            huge_pages: for a table in memory, where the system allows them.
            verify: compare with the checksums; that reads all of a mapped file, once. The header is always
                checked, and the file's length.

        Raises:
            ValueError: the file is no table, is longer or shorter than its header says, or is damaged.
        """
        return cls(*file.read(path, mapped=mapped, huge_pages=huge_pages, verify=verify))


_pool: ThreadPoolExecutor | None = None
_pool_owner = -1


def _background() -> ThreadPoolExecutor:
    """One thread for look-ups; a forked child gets its own."""
    global _pool, _pool_owner
    if _pool is None or _pool_owner != os.getpid():
        _pool, _pool_owner = ThreadPoolExecutor(1, "engram"), os.getpid()
    return _pool

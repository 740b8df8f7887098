"""Sequences whose records lie in pages."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from sparsekern.kv.pages import OutOfPages, PagePool, PoolSpec
from sparsekern.ops.kv_copy_pages import kv_copy_pages
from sparsekern.ops.kv_write import kv_write
from sparsekern.schema import ShapeError

GONE = -1  # in place of a page that was forgotten


class _Part:
    """What a sequence has in one pool: its pages in order, and its records."""

    __slots__ = ("length", "pages")

    def __init__(self) -> None:
        self.pages: list[int] = []
        self.length = 0

    def kept(self) -> list[int]:
        return [page for page in self.pages if page != GONE]


class PagedKVCache:
    """The KV cache of many sequences, in one or several pools of pages.

    A model has a pool for each kind of record that it keeps: the latent keys, the compressed ones, those of
    the indexer, states. A sequence may have another number of records in each. A page number, and so a slot
    and a block table, is the same in all layers of a pool.

    Forked sequences share their pages. Who appends to a page that others see as well gets a copy of it first.

    A call that needs more pages than are free raises `OutOfPages` and changes nothing. `reclaim`, if given,
    is asked before: with the missing pages of each pool, it may free some. Methods may be called from
    several threads.

        cache = PagedKVCache({"kv": PoolSpec("mla656", pages=1000, layers=61)})
        sequence = cache.new()
        slots = cache.extend([sequence], {"kv": [len(values)]})
        cache.write("kv", layer, slots["kv"], values)
        table, lengths = cache.block_table("kv", [sequence]), cache.lengths("kv", [sequence])
    """

    def __init__(
        self, pools: Mapping[str, PoolSpec], *, reclaim: Callable[[dict[str, int]], None] | None = None
    ) -> None:
        if not pools:
            raise ShapeError("PagedKVCache: pools is empty, expected at least one")
        self.pools = {name: PagePool(name, spec) for name, spec in pools.items()}
        self.lock = threading.RLock()
        self._reclaim = reclaim
        self._sequences: dict[int, dict[str, _Part]] = {}
        self._next = 0

    # --- sequences --------------------------------------------------------------------------------------

    def new(self) -> int:
        """Begin an empty sequence."""
        with self.lock:
            return self._begin({name: _Part() for name in self.pools})

    def fork(self, sequence: int) -> int:
        """Begin a sequence with the records of another, in the same pages."""
        with self.lock:
            parts = {}
            for name, part in self._parts(sequence).items():
                self.pools[name].share(part.kept())
                parts[name] = _Part()
                parts[name].pages, parts[name].length = list(part.pages), part.length
            return self._begin(parts)

    def free(self, sequence: int) -> None:
        """End a sequence; pages that no other one has are free."""
        with self.lock:
            for name, part in self._parts(sequence).items():
                self.pools[name].drop(part.kept())
            del self._sequences[sequence]

    def adopt(self, sequence: int, pool: str, pages: Sequence[int], records: int) -> None:
        """Give an empty sequence the first records that are in these pages, shared with whoever has them."""
        with self.lock:
            part = self._part(sequence, pool)
            spec = self.pools[pool].spec
            if part.length or records != len(pages) * spec.page_size:
                raise ShapeError(
                    f"PagedKVCache: {records} records in {len(pages)} pages for a sequence of {part.length}; "
                    f"expected full pages of {spec.page_size} for an empty one"
                )
            self.pools[pool].share(pages)
            part.pages, part.length = list(pages), records

    def truncate(self, sequence: int, lengths: Mapping[str, int]) -> None:
        """Take back the last records: leave so many in each of these pools."""
        with self.lock:
            for name, length in lengths.items():
                part, size = self._part(sequence, name), self.pools[name].spec.page_size
                if not 0 <= length <= part.length:
                    raise ShapeError(
                        f"PagedKVCache: length of {name!r} is {length}, expected 0 to {part.length}"
                    )
                if length % size and part.pages[length // size] == GONE:
                    raise ShapeError(
                        f"PagedKVCache: record {length - 1} of {name!r} is in a page that was forgotten"
                    )
            for name, length in lengths.items():
                part, pool = self._part(sequence, name), self.pools[name]
                keep = -(-length // pool.spec.page_size)
                pool.drop(page for page in part.pages[keep:] if page != GONE)
                del part.pages[keep:]
                part.length = length

    def forget(self, sequence: int, pool: str, before: int) -> None:
        """Give back the pages that hold records before this one only, as a sliding window does.

        The block table has -1 in their place.
        """
        with self.lock:
            part = self._part(sequence, pool)
            last = min(max(before, 0), part.length) // self.pools[pool].spec.page_size
            self.pools[pool].drop(page for page in part.pages[:last] if page != GONE)
            part.pages[:last] = [GONE] * last

    # --- records ----------------------------------------------------------------------------------------

    def extend(self, sequences: Sequence[int], records: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
        """Make room for records[pool][i] more records of sequences[i], in all pools or in none.

        Returns the slots of each pool, int64, those of one sequence after those of the other: what `kv_write`
        takes.

        Raises:
            OutOfPages: a pool has too few; nothing has changed.
        """
        with self.lock:
            self._check_extension(sequences, records)
            needed = {name: self._needed(name, sequences, counts) for name, counts in records.items()}
            self._make_room(needed)
            return {name: self._extended(name, sequences, counts) for name, counts in records.items()}

    def write(self, pool: str, layer: int, slots: Tensor, values: Tensor) -> None:
        """Write values of one layer to slots; see `kv_write`."""
        p = self.pools[pool]
        kv_write(p.data[layer], slots, values, format=p.spec.format, page_size=p.spec.page_size)

    def append(self, sequence: int, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Extend one sequence and write: values are [T, D], or [layers, T, D] for pools of several layers."""
        stacked = {name: v if v.dim() == 3 else v.unsqueeze(0) for name, v in values.items()}
        for name, v in stacked.items():
            if v.shape[0] != self.pools[name].spec.layers:
                raise ShapeError(
                    f"PagedKVCache: values of {name!r} are for {v.shape[0]} layers, "
                    f"expected {self.pools[name].spec.layers}"
                )
        with self.lock:
            before = {name: self.length(name, sequence) for name in stacked}
            slots = self.extend([sequence], {name: [v.shape[1]] for name, v in stacked.items()})
            try:
                for name, v in stacked.items():
                    for layer, of_layer in enumerate(v):
                        self.write(name, layer, slots[name], of_layer)
            except (ValueError, TypeError):
                self.truncate(sequence, before)
                raise
            return slots

    def length(self, pool: str, sequence: int) -> int:
        """How many records a sequence has in a pool."""
        with self.lock:
            return self._part(sequence, pool).length

    def lengths(self, pool: str, sequences: Sequence[int]) -> Tensor:
        """The same of many, int32 [B]: what `kv_gather` calls seq_lens."""
        with self.lock:
            return torch.tensor([self._part(s, pool).length for s in sequences], dtype=torch.int32)

    def pages(self, pool: str, sequence: int) -> list[int]:
        """The pages of a sequence, in order; -1 for those that were forgotten."""
        with self.lock:
            return list(self._part(sequence, pool).pages)

    def block_table(self, pool: str, sequences: Sequence[int], *, width: int | None = None) -> Tensor:
        """The pages of many sequences, int32 [B, width], -1 past the end of one.

        `width` is that of the longest unless given.
        """
        with self.lock:
            rows = [self._part(s, pool).pages for s in sequences]
        longest = max(map(len, rows), default=0)
        if width is not None and width < longest:
            raise ShapeError(f"PagedKVCache: width is {width}, expected at least {longest}")
        table = torch.full((len(rows), longest if width is None else width), -1, dtype=torch.int32)
        for i, row in enumerate(rows):
            table[i, : len(row)] = torch.tensor(row, dtype=torch.int32)
        return table

    # --- inside -----------------------------------------------------------------------------------------

    def _begin(self, parts: dict[str, _Part]) -> int:
        self._next += 1
        self._sequences[self._next] = parts
        return self._next

    def _parts(self, sequence: int) -> dict[str, _Part]:
        if sequence not in self._sequences:
            raise KeyError(f"PagedKVCache: there is no sequence {sequence}; it was freed or never begun")
        return self._sequences[sequence]

    def _part(self, sequence: int, pool: str) -> _Part:
        if pool not in self.pools:
            raise KeyError(
                f"PagedKVCache: there is no pool {pool!r}, only {', '.join(map(repr, self.pools))}"
            )
        return self._parts(sequence)[pool]

    def _check_extension(self, sequences: Sequence[int], records: Mapping[str, Sequence[int]]) -> None:
        if len(set(sequences)) < len(sequences):
            raise ShapeError("PagedKVCache: a sequence is named twice")
        for name, counts in records.items():
            if len(counts) != len(sequences) or min(counts, default=0) < 0:
                raise ShapeError(
                    f"PagedKVCache: records of {name!r} are {list(counts)}, "
                    f"expected {len(sequences)} numbers, 0 or more"
                )
            for s in sequences:
                self._part(s, name)

    def _make_room(self, needed: Mapping[str, int]) -> None:
        """See to it that so many pages are free.

        Raises:
            OutOfPages: they are not.
        """
        missing = {n: count - self.pools[n].free for n, count in needed.items() if count > self.pools[n].free}
        if missing and self._reclaim is not None:
            self._reclaim(missing)
        for name, count in needed.items():
            if count > self.pools[name].free:
                raise OutOfPages(name, count, self.pools[name].free, self.pools[name].spec.pages)

    def _needed(self, name: str, sequences: Sequence[int], counts: Sequence[int]) -> int:
        """Pages that an extension takes: for new records, and for copies of shared pages."""
        size, needed = self.pools[name].spec.page_size, 0
        copied: Counter[int] = Counter()
        for s, count in zip(sequences, counts, strict=True):
            part = self._part(s, name)
            needed += -(-(part.length + count) // size) - len(part.pages)
            if count and self._must_copy(name, part, copied):
                copied[part.pages[-1]] += 1
                needed += 1
        return needed

    def _must_copy(self, name: str, part: _Part, copied: Mapping[int, int]) -> bool:
        """Whether the next record goes to a page that others see; so many of them have been `copied`."""
        pool = self.pools[name]
        if part.length % pool.spec.page_size == 0:
            return False
        page = part.pages[-1]
        return pool.references(page) - copied.get(page, 0) > 1

    def _extended(self, name: str, sequences: Sequence[int], counts: Sequence[int]) -> Tensor:
        pool, pairs = self.pools[name], []
        size = pool.spec.page_size
        slots = []
        for s, count in zip(sequences, counts, strict=True):
            part = self._part(s, name)
            if count and self._must_copy(name, part, {}):
                (copy,) = pool.take(1)
                pairs.append((part.pages[-1], copy))
                pool.drop([part.pages[-1]])
                part.pages[-1] = copy
            part.pages += pool.take(-(-(part.length + count) // size) - len(part.pages))
            first = part.length // size  # the page of the first new record
            of_pages = torch.tensor(part.pages[first:], dtype=torch.int64).mul_(size).unsqueeze(1)
            slots.append((of_pages + pool.within).view(-1)[part.length - first * size :][:count])
            part.length += count
        if pairs:
            for layer in pool.data:
                kv_copy_pages(layer, layer, torch.tensor(pairs))
        return slots[0] if len(slots) == 1 else torch.cat([torch.empty(0, dtype=torch.int64), *slots])

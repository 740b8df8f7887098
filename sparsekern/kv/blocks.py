"""What the tiered cache keeps of a block, and the handle on blocks that are on their way."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from sparsekern import _C
from sparsekern.kv.policy import Key

if TYPE_CHECKING:
    from sparsekern.kv.tiered import TieredKVCache


def block_keys(tokens: Sequence[int], block_tokens: int = 512, *, salt: bytes = b"") -> list[Key]:
    """Name every full block of a sequence by a hash of its tokens and of all before them.

        key[i] = blake2b(key[i - 1], tokens[i * block_tokens : (i + 1) * block_tokens]),  key[-1] =
        blake2b(salt)

    Put into `salt` whatever else the keys and values of a token depend on: the model, an adapter, an image.
    """
    keys, previous = [], hashlib.blake2b(salt, digest_size=16).digest()
    for start in range(0, len(tokens) - block_tokens + 1, block_tokens):
        own = (int(t).to_bytes(8, "little", signed=True) for t in tokens[start : start + block_tokens])
        previous = hashlib.blake2b(previous + b"".join(own), digest_size=16).digest()
        keys.append(previous)
    return keys


class Block:
    """A block on the device, or on its way there."""

    __slots__ = ("fetched", "gone", "key", "pages", "pins", "position", "ticket")

    def __init__(self, key: Key, pages: list[list[int]]) -> None:
        self.key = key
        self.pages = pages  # of each pool
        self.pins = 0  # how many want it to stay
        self.gone = False  # it did not arrive
        self.ticket: _C.StoreTicket | None = None  # the transfer that brings it
        self.position = 0  # in that
        self.fetched: threading.Event | None = None  # set when a block from far away has a ticket, or is gone

    @property
    def arrived(self) -> bool:
        """Whether nothing is on its way any more."""
        return self.ticket is None and self.fetched is None


class Loading:
    """Blocks that somebody wants on the device: a handle on the transfers that bring them.

    None of them leaves the device until `release`; pages of a block that did not arrive are never handed out.
    `tiers` names the tier that each was in.
    """

    def __init__(self, cache: TieredKVCache, blocks: list[Block], tiers: list[str]) -> None:
        self._cache, self._blocks, self._released = cache, blocks, False
        self.tiers = tiers

    def __len__(self) -> int:
        return len(self._blocks)

    def wait(self, timeout: float | None = None) -> int:
        """Wait until all transfers have ended; how many blocks, from the first on, are on the device.

        Raises:
            TimeoutError: they have not; nothing has changed.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        for block in self._blocks:
            if not self._cache._wait_for(block, deadline):
                raise TimeoutError("blocks are still on their way")
        return next((i for i, block in enumerate(self._blocks) if block.gone), len(self._blocks))

    def done(self) -> bool:
        """Whether `wait` would return at once."""
        try:
            self.wait(0)
        except TimeoutError:
            return False
        return True

    def pages(self, pool: int) -> list[int]:
        """Pages of the blocks that have arrived, in order; pools count in the order of the cache's."""
        return [page for block in self._blocks[: self.wait()] for page in block.pages[pool]]

    def release(self) -> None:
        """Let other blocks take the place of these."""
        with self._cache.lock:
            if not self._released:
                self._released = True
                for block in self._blocks:
                    block.pins -= 1

    def __enter__(self) -> Loading:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

"""Which block leaves a tier: LRU, and two policies that a scan does not wash out.

A tier has a policy of its own. It is told what comes, is used and goes, and names a victim when the tier is
full.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

Key = bytes
Free = Callable[[Key], bool]  # whether a block may leave: nobody is using it


class Policy(Protocol):
    """The order in which blocks leave a tier that holds `capacity` of them."""

    def __init__(self, capacity: int) -> None: ...

    def __len__(self) -> int:
        """How many blocks are in the tier."""

    def add(self, key: Key) -> None:
        """A block has come."""

    def touch(self, key: Key) -> None:
        """A block in the tier was used."""

    def remove(self, key: Key) -> None:
        """A block has gone, but not because the tier was full."""

    def victim(self, free: Free) -> Key | None:
        """Take out the block that is to leave; None if none is free."""


class LRU:
    """The block that has not been used for longest."""

    def __init__(self, capacity: int) -> None:
        self._queue: OrderedDict[Key, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, key: Key) -> None:
        """Youngest."""
        self._queue[key] = None

    def touch(self, key: Key) -> None:
        """Youngest again."""
        self._queue.move_to_end(key)

    def remove(self, key: Key) -> None:
        """Forget it."""
        del self._queue[key]

    def victim(self, free: Free) -> Key | None:
        """The oldest."""
        for key in self._queue:
            if free(key):
                del self._queue[key]
                return key
        return None


class S3FIFO:
    """Three queues (Yang et al., SOSP 2023): what is used once passes through a small one.

    Of what was used in the meantime, or came back soon after it had left, the main queue takes care: a
    block leaves it that was not used since it was last passed over.
    """

    def __init__(self, capacity: int) -> None:
        self._small: OrderedDict[Key, None] = OrderedDict()
        self._main: OrderedDict[Key, None] = OrderedDict()
        self._ghosts: OrderedDict[Key, None] = OrderedDict()
        self._used: dict[Key, int] = {}
        self._small_size, self._ghost_size = max(1, capacity // 10), max(1, capacity)

    def __len__(self) -> int:
        return len(self._used)

    def add(self, key: Key) -> None:
        """To the main queue if it has been here lately."""
        (self._main if self._ghosts.pop(key, 1) is None else self._small)[key] = None
        self._used[key] = 0

    def touch(self, key: Key) -> None:
        """Count, up to three."""
        self._used[key] = min(3, self._used[key] + 1)

    def remove(self, key: Key) -> None:
        """Forget it."""
        del self._used[key]
        del (self._small if key in self._small else self._main)[key]

    def victim(self, free: Free) -> Key | None:
        """From the small queue where it is too large, else from the main one."""
        first, second = self._from_main, self._from_small
        if len(self._small) > self._small_size or not self._main:
            first, second = second, first
        key = first(free)
        return second(free) if key is None else key

    def _from_small(self, free: Free) -> Key | None:
        used: list[Key] = []  # on the way there
        victim = None
        for key in self._small:  # as far as needed: it may be long
            if self._used[key] > 0:
                used.append(key)
            elif free(key):
                victim = key
                break
        for key in used:
            del self._small[key]
            self._main[key] = None
            self._used[key] = 0
        if victim is not None:
            self.remove(victim)
            self._ghosts[victim] = None
            if len(self._ghosts) > self._ghost_size:
                self._ghosts.popitem(last=False)
        return victim

    def _from_main(self, free: Free) -> Key | None:
        for _ in range(4 * len(self._main)):  # each is passed over three times at most
            key = next(iter(self._main))
            if self._used[key] == 0 and free(key):
                self.remove(key)
                return key
            self._used[key] = max(0, self._used[key] - 1)
            self._main.move_to_end(key)
        return None


POLICIES: dict[str, type[Policy]] = {"lru": LRU, "s3fifo": S3FIFO}

"""What the tiered cache tells the block store to do."""

from __future__ import annotations

from sparsekern.kv.blocks import Block
from sparsekern.kv.policy import Key

PUT, TAKE, READ, SPILL, DROP = range(5)  # the actions of csrc/kv/store/store.h
STATUSES = ("pending", "ok", "missing", "corrupt", "io_error", "full")
OK = STATUSES.index("ok")

# Action, key, pages of all pools, the command of the same plan that must be done first or -1.
Command = tuple[int, bytes, "list[int] | None", int]


class Plan:
    """Commands for the store that are submitted together, and the blocks that they bring."""

    def __init__(self) -> None:
        self.commands: list[Command] = []
        self.loaded: list[Block] = []  # by commands of this plan
        self.fetched: list[Block] = []  # from another machine, afterwards
        self.sent: list[Key] = []  # to another machine, afterwards

    def add(self, action: int, key: Key, pages: list[list[int]] | None = None, after: int = -1) -> int:
        """Append a command; its place in the plan."""
        flat = None if pages is None else [page for of_pool in pages for page in of_pool]
        self.commands.append((action, key, flat, after))
        return len(self.commands) - 1

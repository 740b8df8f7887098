"""Blocks on a server that speaks the Redis protocol."""

from __future__ import annotations

import importlib
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from sparsekern import _C
from sparsekern.kv.policy import Key

T = TypeVar("T")
# Magic, version, CRC-32C of what follows, kind, key, bytes of the block.
_HEADER = struct.Struct("<8sIIQ16sQ")
_MAGIC, _VERSION = b"SKKVREM\n", 1


class RemoteTier:
    """The last tier of a `TieredKVCache`: blocks that other machines may use too.

    A call that fails or takes longer than `timeout` seconds is a miss. After `failures` of them in a row
    the server is left alone for `pause` seconds, twice as long each time that does not help, up to a
    minute; the cache goes on without it. What comes back is checked: kind of cache, key, size and checksum.

    Args:
        client: a `redis.Redis`, or anything with its `get`, `set` and `pipeline`; or the URL of a server, for
            which the `redis` package is needed.
        prefix: of the names of blocks on the server.
        ttl: seconds until the server may forget a block; None leaves that to its own settings.
        timeout: seconds for a call, all of it.
        failures: in a row, until the server is left alone.
        pause: seconds for which it is.
    """

    def __init__(
        self,
        client: Any,
        *,
        prefix: str = "sparsekern:",
        ttl: int | None = None,
        timeout: float = 1.0,
        failures: int = 3,
        pause: float = 2.0,
    ) -> None:
        self._client = connect(client, timeout) if isinstance(client, str) else client
        self._prefix, self._ttl = prefix.encode(), ttl
        self._timeout, self._limit, self._first_pause = timeout, failures, pause
        # A server may send a byte now and then, and no time-out of a socket ends that: callers wait here.
        self._calls = ThreadPoolExecutor(4, "sparsekern-kv-remote")
        self._lock = threading.Lock()
        self._failed, self._pause, self._closed_until = 0, pause, 0.0
        self._counts: Counter[str] = Counter()
        self._kind, self._bytes = 0, 0

    def seals(self, kind: int, block_bytes: int) -> None:
        """Say what blocks are; the cache does."""
        self._kind, self._bytes = kind, block_bytes

    def usable(self) -> bool:
        """Whether the server is not being left alone."""
        return time.monotonic() >= self._closed_until

    def present(self, keys: Sequence[Key]) -> int:
        """How many of the blocks, from the first on, the server has."""

        def ask() -> list[int]:
            questions = self._client.pipeline(transaction=False)
            for key in keys:
                questions.exists(self._name(key))
            answers: list[int] = questions.execute()
            return answers

        answers: list[int] = self._call(ask, [])
        return next((i for i, there in enumerate(answers) if not there), len(answers))

    def get(self, key: Key) -> bytes | None:
        """The block, if the server has it and it is the right one."""
        value = self._call(lambda: self._client.get(self._name(key)), None)
        if value is None:
            self._count("misses")
            return None
        block = self._opened(key, value)
        self._count("corrupt" if block is None else "hits")
        return block

    def put(self, key: Key, block: bytes) -> bool:
        """Store a block; whether the server has taken it."""
        value = self._sealed(key, block)
        stored = self._call(lambda: self._client.set(self._name(key), value, ex=self._ttl), None)
        self._count("stored" if stored else "not stored")
        return bool(stored)

    def close(self) -> None:
        """End the calls that are under way."""
        self._calls.shutdown(wait=False, cancel_futures=True)

    def stats(self) -> dict[str, int]:
        """What was counted: hits, misses, corrupt, stored, not stored, failures, skipped."""
        with self._lock:
            names = ("hits", "misses", "corrupt", "stored", "not stored", "failures", "skipped")
            return {name: self._counts[name] for name in names}

    def _name(self, key: Key) -> bytes:
        return self._prefix + key.hex().encode()

    def _count(self, what: str) -> None:
        with self._lock:
            self._counts[what] += 1

    def _call(self, call: Callable[[], T], otherwise: T) -> T:
        """Make a call, unless the server is left alone; whatever it raises is a failure."""
        if not self.usable():
            self._count("skipped")
            return otherwise
        try:
            result = self._calls.submit(call).result(self._timeout)
        except Exception:  # of the client, the network, the server: all the same to a cache
            with self._lock:
                self._counts["failures"] += 1
                self._failed += 1
                if self._failed >= self._limit:
                    self._closed_until = time.monotonic() + self._pause
                    self._pause = min(60.0, 2 * self._pause)
            return otherwise
        with self._lock:
            self._failed, self._pause = 0, self._first_pause
        return result

    def _sealed(self, key: Key, block: bytes) -> bytes:
        rest = struct.pack("<Q16sQ", self._kind, key, len(block))
        return _HEADER.pack(_MAGIC, _VERSION, _C.crc32c(rest + block), self._kind, key, len(block)) + block

    def _opened(self, key: Key, value: bytes) -> bytes | None:
        if len(value) != _HEADER.size + self._bytes:
            return None
        magic, version, check, kind, own, size = _HEADER.unpack_from(value)
        if (magic, version, kind, own, size) != (_MAGIC, _VERSION, self._kind, key, self._bytes):
            return None
        return value[_HEADER.size :] if _C.crc32c(value[16:]) == check else None


def connect(url: str, timeout: float) -> Any:
    """A client that gives up in time and tries nothing twice.

    Raises:
        ImportError: the `redis` package is not installed.
    """
    redis, backoff, retry = (importlib.import_module(n) for n in ("redis", "redis.backoff", "redis.retry"))
    once = retry.Retry(backoff.NoBackoff(), 0)
    return redis.Redis.from_url(url, socket_timeout=timeout, socket_connect_timeout=timeout, retry=once)

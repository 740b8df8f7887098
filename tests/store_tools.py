"""What tests of the block store have in common; without torch, so that processes that die begin quickly."""

import importlib.util
import random
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

BYTES, HOST, DISK = 5000, 8, 40
SLOT = (64 + BYTES + 63) // 64 * 64  # bytes in a file, with its header
PUT, TAKE, READ, SPILL, DROP = range(5)
MISSING, CORRUPT, IO_ERROR, FULL = range(2, 6)


def extension(path: str) -> ModuleType:
    """The compiled module, alone."""
    spec = importlib.util.spec_from_file_location("_C", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def open_store(module: Any, folder: Path, *, slots: int = DISK) -> Any:
    return module.BlockStore(BYTES, HOST, 2, str(folder), slots, 1, 64 << 10)


def key(i: int) -> bytes:
    return i.to_bytes(16, "little")


def content(i: int) -> bytes:
    return random.Random(i).randbytes(BYTES)


def write(store: Any, numbers: Iterable[int]) -> None:
    """Put blocks on disk, as many at a time as memory has room for."""
    for i in numbers:
        assert store.wait(store.insert(key(i), content(i)), 60)
        store.submit([(SPILL, key(i), None, -1)])
        assert store.settle(60)


def read(store: Any, i: int) -> bool:
    """Whether the block is there; it must be the right one then."""
    data = store.fetch(key(i), False)
    assert data is None or data == content(i), "a wrong block came back"
    return data is not None


def failed(store: Any) -> list[int]:
    return [status for _, _, status in store.failures()]

"""Which options of a tiered cache fit together, and which caches have the same blocks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from sparsekern.kv.pages import PoolSpec
from sparsekern.kv.policy import POLICIES
from sparsekern.schema import ShapeError


def kind_number(kind: str, pools: Mapping[str, PoolSpec], records: Mapping[str, int]) -> int:
    """A number for all that the bytes of a block depend on."""
    layout = [(name, *pools[name]._replace(pages=1), records[name]) for name in records]
    return int.from_bytes(hashlib.blake2b(repr((kind, layout)).encode(), digest_size=8).digest(), "little")


def check_options(
    pools: Mapping[str, PoolSpec],
    records: Mapping[str, int],
    policy: object,
    disk_blocks: int,
    folder: object,
) -> None:
    """Refuse what does not fit.

    Raises:
        ShapeError: naming the option.
    """
    for name, count in records.items():
        if name not in pools:
            raise ShapeError(f"TieredKVCache: block_records names pool {name!r}, which is not there")
        if count < 1 or count % pools[name].page_size:
            raise ShapeError(
                f"TieredKVCache: a block has {count} records of {name!r}, "
                f"expected a multiple of its page size, {pools[name].page_size}"
            )
    if isinstance(policy, str) and policy not in POLICIES:
        raise ShapeError(f"TieredKVCache: policy is {policy!r}, expected {' or '.join(map(repr, POLICIES))}")
    if disk_blocks and folder is None:
        raise ShapeError("TieredKVCache: disk_blocks is given and folder is not")

"""Caches made of the ops on paged KV: allocation, sharing, tiers."""

from __future__ import annotations

from sparsekern.kv.paged import PagedKVCache as PagedKVCache
from sparsekern.kv.pages import OutOfPages as OutOfPages
from sparsekern.kv.pages import PagePool as PagePool
from sparsekern.kv.pages import PoolSpec as PoolSpec

"""Caches made of the ops on paged KV: allocation, sharing, tiers."""

from __future__ import annotations

from sparsekern.kv.blocks import Loading as Loading
from sparsekern.kv.blocks import block_keys as block_keys
from sparsekern.kv.metrics import Collector as Collector
from sparsekern.kv.paged import PagedKVCache as PagedKVCache
from sparsekern.kv.pages import OutOfPages as OutOfPages
from sparsekern.kv.pages import PagePool as PagePool
from sparsekern.kv.pages import PoolSpec as PoolSpec
from sparsekern.kv.policy import Policy as Policy
from sparsekern.kv.remote import RemoteTier as RemoteTier
from sparsekern.kv.tiered import TieredKVCache as TieredKVCache

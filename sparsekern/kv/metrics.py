"""The counts of a tiered cache for Prometheus."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

from sparsekern.kv.tiered import TieredKVCache


class Collector:
    """What `prometheus_client.REGISTRY.register` takes: asks the cache whenever it is scraped.

    REGISTRY.register(Collector(cache))
    """

    def __init__(self, cache: TieredKVCache, prefix: str = "sparsekern_kv") -> None:
        self._cache, self._prefix = cache, prefix

    def describe(self) -> list[Any]:
        """Nothing: what there is depends on no scrape."""
        return []

    def collect(self) -> Iterator[Any]:
        """Make the metrics.

        Raises:
            ImportError: the `prometheus_client` package is not installed.
        """
        core = importlib.import_module("prometheus_client.core")
        stats = self._cache.stats()

        def counter(name: str, text: str, label: str, values: dict[str, float]) -> Any:
            family = core.CounterMetricFamily(f"{self._prefix}_{name}", text, labels=[label])
            for which, value in values.items():
                family.add_metric([which.replace(" ", "_")], value)
            return family

        yield counter("hits", "Blocks found, by tier", "tier", stats["hits"])
        yield core.CounterMetricFamily(
            f"{self._prefix}_misses", "Blocks asked for and not found", value=stats["misses"]
        )
        yield counter("evictions", "Blocks that had to leave a tier", "tier", stats["evictions"])
        yield counter("errors", "Transfers that failed, by what went wrong", "kind", stats["errors"])
        for what in ("blocks", "bytes", "seconds"):
            of_each = {name: t[what] for name, t in stats["transfers"].items()}
            yield counter(f"transferred_{what}", f"Transfers: {what}", "transfer", of_each)
        yield counter("remote", "Calls of the remote tier", "outcome", stats["remote"])
        for what in ("blocks", "bytes"):
            family = core.GaugeMetricFamily(
                f"{self._prefix}_{what}", f"Now in a tier: {what}", labels=["tier"]
            )
            for tier, value in stats[what].items():
                family.add_metric([tier], value)
            yield family

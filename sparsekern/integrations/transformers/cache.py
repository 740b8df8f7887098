"""Caches of models whose attention runs on sparsekern: pools of pages for every sequence.

A sequence of a batch has states of its own, from its own first token on: padding is never stored, so that a
sequence gives the same bits alone and in any batch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from sparsekern import kv_page_bytes, kv_write
from sparsekern.ops._kv import KvFormat

Kind = Literal["bf16", "fp8"]  # how keys are kept: "bf16" means the model's own dtype
KINDS: tuple[Kind, ...] = ("bf16", "fp8")
PAGE = 64  # tokens


class KeyFormat(NamedTuple):
    """What a pool holds: keys of `dim` channels as they are, or records of a format."""

    name: KvFormat
    dim: int

    def pool(self, pages: int, dtype: torch.dtype) -> Tensor:
        """Return an empty pool, of this dtype where keys stay as they are."""
        if self.name == "bf16":
            return torch.zeros(pages, PAGE, self.dim, dtype=dtype)
        return torch.zeros(pages, kv_page_bytes(self.name, PAGE), dtype=torch.uint8)

    def write(self, pool: Tensor, slots: Tensor, keys: Tensor) -> None:
        """Put keys `[T, dim]` into these slots."""
        values = keys if self.name == "bf16" else keys.bfloat16()
        kv_write(pool, slots, values, format=self.name, page_size=PAGE)


class Growing:
    """Keys that are only ever appended: key i lies in slot i of a pool that grows by half."""

    def __init__(self, format: KeyFormat) -> None:
        """Hold no key."""
        self.format, self.length = format, 0
        self.pool = format.pool(0, torch.float32)

    def append(self, keys: Tensor) -> None:
        """Add keys `[T, dim]`."""
        end = self.length + len(keys)
        if end > len(self.pool) * PAGE:
            pool = self.format.pool(max(-(-end // PAGE), len(self.pool) * 3 // 2), keys.dtype)
            pool[: len(self.pool)] = self.pool
            self.pool = pool
        self.format.write(self.pool, torch.arange(self.length, end), keys)
        self.length = end

    @property
    def rows(self) -> Tensor:
        """The keys themselves, `[length, dim]`; only of a pool that holds them as they are."""
        return self.pool.view(-1, self.format.dim)[: self.length]

    def crop(self, tokens: int) -> None:
        """Forget the last tokens."""
        self.length -= min(tokens, self.length)

    def __deepcopy__(self, memo: dict[int, Any]) -> Growing:
        return _with_own_pool(self)


class Window:
    """The last keys of a sliding window: position p lies in slot p modulo the pool's size."""

    def __init__(self, format: KeyFormat, window: int) -> None:
        """Hold no key."""
        self.format, self.window, self.length = format, window, 0
        self.pool = format.pool(0, torch.float32)

    @property
    def slots(self) -> int:
        """How many slots there are."""
        return len(self.pool) * PAGE

    def append(self, keys: Tensor) -> None:
        """Add keys `[T, dim]`; those of the window before them stay until the next call."""
        pages, end = -(-(self.window - 1 + len(keys)) // PAGE) + 1, self.length + len(keys)
        if pages != len(self.pool):
            pool = self.format.pool(pages, keys.dtype)
            if self.length:
                kept = torch.arange(max(0, self.length - self.window + 1) // PAGE, -(-self.length // PAGE))
                pool[kept % pages] = self.pool[kept % len(self.pool)]
            self.pool = pool
        self.format.write(self.pool, torch.arange(self.length, end) % self.slots, keys)
        self.length = end

    def __deepcopy__(self, memo: dict[int, Any]) -> Window:
        return _with_own_pool(self)


Keys = TypeVar("Keys", Growing, Window)


def _with_own_pool(keys: Keys) -> Keys:
    other = copy.copy(keys)
    other.pool = keys.pool.clone()
    return other


class SparsekernLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """One layer's states, one record per sequence of the batch, made when the first tokens come."""

    is_sliding = False

    def __init__(self, new_state: Callable[[], Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.new_state = new_state
        self.states: list[Any] = []
        self.seen = 0  # columns of the batch so far, padding included: what transformers counts

    def begin(self, batch: int) -> list[Any]:
        """Return the states of the sequences of a batch."""
        if not self.states:
            self.states = [self.new_state() for _ in range(batch)]
            self.is_initialized = True
        if len(self.states) != batch:
            raise ValueError(f"SparsekernCache: the batch has {batch} sequences, expected {len(self.states)}")
        return self.states

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: states are made by `begin`."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Refuse: only a model that `optimize` changed writes here."""
        raise ValueError("SparsekernCache: only models whose attention runs on sparsekern can use this cache")

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the columns a mask would have."""
        return self.seen + query_length, 0

    def get_seq_length(self) -> int:
        """Return the number of columns seen."""
        return self.seen

    def get_max_length(self) -> int:
        """Return -1: there is no maximum."""
        return -1

    def reset(self) -> None:
        """Forget everything."""
        self.states, self.seen, self.is_initialized = [], 0, False

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Make sequence i what sequence `beam_idx[i]` was; one that is taken twice is copied."""
        chosen = [int(i) for i in beam_idx]
        self.states = [self.states[i] if i not in chosen[:n] else copy.deepcopy(self.states[i])
                       for n, i in enumerate(chosen)]  # fmt: skip

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these sequences."""
        self.reorder_cache(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Make `repeats` of each sequence, side by side."""
        self.reorder_cache(torch.arange(len(self.states)).repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> None:
        """Take the last `-tokens_to_remove` tokens back; positive numbers are not taken, as in transformers.

        Raises:
            ValueError: the states of this model cannot go back.
        """
        if tokens_to_remove > 0:
            raise ValueError(f"SparsekernCache.crop: got {tokens_to_remove}, expected -n to remove n tokens")
        if tokens_to_remove == 0 or not self.states:
            return
        if not all(hasattr(state, "crop") for state in self.states):
            raise ValueError(
                "SparsekernCache.crop: compressed windows cannot be taken back; start again with a new cache"
            )
        for state in self.states:
            state.crop(-tokens_to_remove)
        self.seen += tokens_to_remove

    def __repr__(self) -> str:
        return f"SparsekernLayer({self.seen} tokens, {self.nbytes} bytes)"

    @property
    def nbytes(self) -> int:
        """Bytes of all its pools."""
        parts = [part for state in self.states for part in vars(state).values()]
        return sum(part.pool.nbytes for part in parts if isinstance(part, Growing | Window))


class SparsekernCache(Cache):
    """The cache of a model whose attention `optimize` has put on sparsekern.

    Keys lie in pools of pages of 64 tokens: in the model's own dtype (`kv="bf16"`: an fp32 model keeps
    fp32), or as FP8 records (`kv="fp8"`: 584 bytes a key of DeepSeek-V4, 656 of V3.2). A model makes one
    where none is passed, and takes an empty `DynamicCache` for one: `generate()` works as it is.
    """

    def __init__(self, model: Any, kv: Kind = "bf16") -> None:
        """Make an empty cache.

        Args:
            model: the optimised model, which knows what its layers keep.
            kv: how to keep keys.

        Raises:
            ValueError: the model is not optimised, or its keys have no FP8 format.
        """
        if kv not in KINDS:
            raise ValueError(f"SparsekernCache: kv is {kv!r}, expected 'bf16' or 'fp8'")
        super().__init__(layers=[*new_layers(model, kv)])

    @property
    def nbytes(self) -> int:
        """Bytes of all pools."""
        return sum(layer.nbytes for layer in layers_of(self))


def new_layers(model: Any, kv: Kind) -> list[SparsekernLayer]:
    """Return an empty cache layer for each layer of the model."""
    decoder = getattr(model, "model", model)
    layers = []
    for layer in decoder.layers:
        attention = layer.self_attn
        if not hasattr(attention, "new_state"):
            raise ValueError(
                f"SparsekernCache: {type(model).__name__} does not run its attention on sparsekern"
            )
        layers.append(SparsekernLayer(attention.new_state(kv)))
    return layers


def layers_of(cache: Cache) -> list[SparsekernLayer]:
    """Return the layers that are ours."""
    return [layer for layer in cache.layers if isinstance(layer, SparsekernLayer)]


def adopt(cache: Cache, model: Any, kv: Kind) -> list[SparsekernLayer]:
    """Give an empty cache of transformers layers of ours, in place; `generate()` makes such a one.

    Raises:
        ValueError: it holds tokens already that another implementation wrote.
    """
    layers = layers_of(cache)
    if layers:
        return layers
    if cache.get_seq_length() > 0:
        raise ValueError(
            f"optimize: {type(cache).__name__} holds tokens that transformers wrote; pass an empty one"
        )
    layers = new_layers(model, kv)
    cache.layers = [*layers]
    return layers


RECORDS: dict[tuple[int, int], KvFormat] = {
    (448, 64): "mla584",
    (512, 64): "mla656",
}  # by channels without and with a rotation


def key_format(kv: Kind, plain: int, rotated: int) -> KeyFormat:
    """Return how keys of `plain` channels and `rotated` ones after them are kept.

    Raises:
        ValueError: there is no FP8 record of such keys.
    """
    if kv == "bf16":
        return KeyFormat("bf16", plain + rotated)
    if (plain, rotated) not in RECORDS:
        raise ValueError(
            f"optimize: kv='fp8' holds keys of 448 + 64 channels (DeepSeek-V4) or 512 + 64 (V3.2), "
            f"these have {plain} + {rotated}; use kv='bf16'"
        )
    return KeyFormat(RECORDS[plain, rotated], plain + rotated)

"""A model's forward in chunks: whatever the length of a prompt, memory beyond the cache is that of one chunk.

`forward` stands in for the decoder's. It hands the original one chunk after the other, with a `Step` for a
mask: which tokens of the chunk are real, and which position of its own sequence each has.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from sparsekern.integrations.transformers.cache import Kind, SparsekernCache, adopt
from sparsekern.integrations.transformers.packed import HfModule

CHUNK = 2048  # tokens of all sequences together
# What each decoder takes for a mask made already, so that it makes none.
NO_MASK: dict[str, Any] = {
    "DeepseekV3Model": torch.ones(1, 1, 1, 1, dtype=torch.bool),
    "DeepseekV32Model": {"indexed_attention": None},
    "DeepseekV4Model": {"sliding_attention": None},
}
COLLECTED = ("output_hidden_states", "output_attentions", "output_router_logits")


@dataclass(frozen=True)
class Part:
    """The real tokens of one sequence in a chunk."""

    row: int
    columns: slice
    positions: Tensor  # int32, in the sequence itself
    shared: dict[Any, Tensor] = field(
        default_factory=dict
    )  # index lists that layers of a kind have in common

    @property
    def start(self) -> int:
        """The position of the first."""
        return int(self.positions[0]) if len(self.positions) else 0

    @property
    def end(self) -> int:
        """The length of the sequence after this chunk."""
        return self.start + len(self.positions)


@dataclass(frozen=True)
class Step:
    """What layers are told instead of a mask."""

    batch: int
    columns: int
    parts: tuple[Part, ...]


def forward(
    self: HfModule,
    input_ids: Tensor | None = None,
    attention_mask: Any = None,
    position_ids: Tensor | None = None,
    past_key_values: Cache | None = None,
    inputs_embeds: Tensor | None = None,
    use_cache: bool | None = None,
    **kwargs: Any,
) -> Any:
    """Run the decoder over the tokens, chunk by chunk.

    Raises:
        ValueError: a mask or positions that say more than where padding is.
    """
    tokens = input_ids if inputs_embeds is None else inputs_embeds
    if tokens is None or (input_ids is not None and inputs_embeds is not None):
        raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
    batch, length = tokens.shape[:2]
    use_cache = self.config.use_cache if use_cache is None else use_cache
    cache = SparsekernCache(self, self.sparsekern_kv) if past_key_values is None else past_key_values
    layers = adopt(cache, self, self.sparsekern_kv)
    real = _real_tokens(attention_mask, batch, length, layers[0].seen)
    starts = [state.length for state in layers[0].begin(batch)]
    _check_positions(position_ids, real)

    original = type(self).forward
    size = length if any(kwargs.get(name) for name in COLLECTED) else max(1, CHUNK // max(batch, 1))
    done = []
    for step, columns in _steps(real, starts, batch, length, size):
        done.append(
            original(
                self,
                input_ids=None if input_ids is None else input_ids[:, columns],
                inputs_embeds=None if inputs_embeds is None else inputs_embeds[:, columns],
                attention_mask=NO_MASK[type(self).__name__],
                position_ids=_position_ids(step),
                past_key_values=cache,
                use_cache=True,
                step=step,
                **kwargs,
            )
        )
        for layer in layers:
            layer.seen += step.columns
    output = done[-1]
    if len(done) > 1:
        output.last_hidden_state = torch.cat([part.last_hidden_state for part in done], 1)
    output.past_key_values = cache if use_cache else None
    return output


def _steps(
    real: list[slice], starts: list[int], batch: int, length: int, size: int
) -> Iterator[tuple[Step, slice]]:
    for first in range(0, max(length, 1), size):
        last, parts = min(first + size, length), []
        for row, tokens in enumerate(real):
            columns = slice(max(tokens.start, first), max(min(tokens.stop, last), max(tokens.start, first)))
            position = starts[row] + columns.start - tokens.start
            count = columns.stop - columns.start
            local = slice(columns.start - first, columns.stop - first)
            parts.append(Part(row, local, torch.arange(position, position + count, dtype=torch.int32)))
        yield Step(batch, last - first, tuple(parts)), slice(first, last)


def _position_ids(step: Step) -> Tensor:
    """The positions as transformers counts them; those of padding are 0."""
    ids = torch.zeros(step.batch, step.columns, dtype=torch.int64)
    for part in step.parts:
        ids[part.row, part.columns] = part.positions.long()
    return ids


def _real_tokens(mask: Any, batch: int, length: int, seen: int) -> list[slice]:
    """Return which of the new columns are tokens, for each sequence."""
    if mask is None:
        return [slice(0, length)] * batch
    if not isinstance(mask, Tensor) or mask.dim() != 2 or mask.shape[1] not in (length, seen + length):
        shape = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(
            f"optimize: attention_mask is {shape}, expected None or ({batch}, {seen + length}): "
            "1 for tokens, 0 for padding"
        )
    rows = []
    for row in mask[:, -length:].bool():
        where = row.nonzero().flatten()
        first, last = (int(where[0]), int(where[-1]) + 1) if len(where) else (0, 0)
        if last - first != len(where):
            raise ValueError("optimize: attention_mask has padding between tokens, expected it on one side")
        rows.append(slice(first, last))
    return rows


def step_of(step: Step | None) -> Step:
    """Return what a layer was told.

    Raises:
        ValueError: nothing, for it was called alone.
    """
    if step is None:
        raise ValueError(
            "optimize: call the whole model: its attention layers cannot be called alone any more"
        )
    return step


def _check_positions(position_ids: Tensor | None, real: list[slice]) -> None:
    """Refuse positions that are not those of consecutive tokens."""
    if position_ids is None:
        return
    rows = (
        position_ids.expand(len(real), -1)
        if position_ids.dim() == 2
        else position_ids[None].expand(len(real), -1)
    )
    for row, tokens in zip(rows, real, strict=True):
        given = row[tokens]
        if len(given) and not torch.equal(given - given[0], torch.arange(len(given), device=given.device)):
            raise ValueError("optimize: position_ids are not consecutive, expected those of a running text")


def is_decoder(module: HfModule) -> bool:
    """Tell whether this is a decoder that `forward` can stand in for."""
    return type(module).__name__ in NO_MASK


def convert(module: HfModule, kv: Kind) -> None:
    """Give this instance of a decoder its forward."""
    module.sparsekern_kv = kv
    module.forward = partial(forward, module)

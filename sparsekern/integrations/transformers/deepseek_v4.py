"""DeepSeek-V4's attention and hyper-connections.

transformers computes attention densely: all keys of the window and all compressed ones for every query, under
a mask. Here a query reads its own window and the entries chosen for it, by index from pools.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4RotaryEmbedding

from sparsekern import (
    compress_kv,
    indexer_topk,
    mhc_head,
    mhc_post,
    mhc_post_pre,
    mhc_pre,
    rms_norm,
    rope,
    sparse_mla_decode,
)
from sparsekern.integrations.transformers import rotary
from sparsekern.integrations.transformers.cache import PAGE, Growing, Kind, Window, key_format
from sparsekern.integrations.transformers.chunks import Part, Step, step_of
from sparsekern.integrations.transformers.packed import HfModule, Unsupported, check_float

CSA, HCA = "compressed_sparse_attention", "heavily_compressed_attention"


class State:
    """What one layer keeps of one sequence."""

    def __init__(self, config: PreTrainedConfig, rotated: int, kv: Kind) -> None:
        """Hold nothing yet."""
        keys = key_format(kv, config.head_dim - rotated, rotated)
        self.window = Window(keys, config.sliding_window)
        self.entries = Growing(keys)
        # The indexer's keys are scored as they are, whatever the others are kept in.
        self.index_entries = Growing(key_format("bf16", config.index_head_dim, 0))
        self.partial: Any = None  # what the compressors carry from chunk to chunk
        self.index_partial: Any = None

    @property
    def length(self) -> int:
        """How many tokens came so far."""
        return self.window.length


# --- attention ----------------------------------------------------------------------------------------------


def is_attention(module: nn.Module) -> bool:
    """Tell whether this is DeepSeek-V4's attention."""
    return type(module).__name__ == "DeepseekV4Attention"


def check(module: HfModule) -> None:
    """Raise Unsupported unless the ops compute what this layer does."""
    if module.layer_type not in ("sliding_attention", CSA, HCA):
        raise Unsupported(f"its attention is of kind {module.layer_type}")
    check_float(module.kv_norm.weight, None)
    _rotation(module)


def check_kv(module: HfModule, kv: Kind) -> None:
    """Raise ValueError unless its keys can be kept like that."""
    rotated = _rotation(module)["rotary_dim"]
    key_format(kv, module.head_dim - rotated, rotated)


def convert(module: HfModule) -> None:
    """Give this instance its forward, and what the cache asks for."""
    module.rotation = _rotation(module)
    module.new_state = partial(_new_state, module)
    module.forward = partial(attention, module)


def _new_state(module: HfModule, kv: Kind) -> Callable[[], State]:
    check_kv(module, kv)
    return partial(State, module.config, module.rotation["rotary_dim"], kv)


def _rotation(module: HfModule) -> dict[str, Any]:
    config, label = module.config, module.rope_layer_type
    embedding = DeepseekV4RotaryEmbedding(config)
    if getattr(embedding, f"{label}_attention_scaling") != 1:
        raise Unsupported("its rotary embedding scales")
    return rotary.options(config.rope_parameters[label], getattr(embedding, f"{label}_inv_freq"))


def attention(
    self: HfModule, hidden_states: Tensor, past_key_values: Any = None, step: Step | None = None, **_: Any
) -> tuple[Tensor, None]:
    """Attend to the window and to the compressed entries, sequence by sequence."""
    step, x = step_of(step), hidden_states
    states = past_key_values.layers[self.layer_idx].begin(step.batch)

    residual = self.q_a_norm(self.q_a_proj(x))
    heads = self.q_b_proj(residual).view(*x.shape[:2], -1, self.head_dim)
    heads = rms_norm(heads, eps=self.q_b_norm.eps)
    keys = self.kv_norm(self.kv_proj(x))
    compressor = self.compressor
    projected = None if compressor is None else (compressor.kv_proj(x), compressor.gate_proj(x))
    indexing = None
    if self.layer_type == CSA:
        indexer = compressor.indexer
        query = indexer.q_b_proj(residual).view(*x.shape[:2], indexer.num_heads, indexer.head_dim)
        scale = (indexer.num_heads * indexer.head_dim) ** -0.5
        weights = indexer.scorer.weights_proj(x).float() * scale
        indexing = (indexer.kv_proj(x), indexer.gate_proj(x), query, weights)

    out = torch.zeros_like(heads)
    for part, state in zip(step.parts, states, strict=True):
        if not len(part.positions):
            continue
        at = (part.row, part.columns)
        state.window.append(_rotate(self, keys[at], part.positions))
        q = _rotate(self, heads[at], part.positions)
        extra = None
        if projected is not None:
            kv, gate = (p[at] for p in projected)
            state.partial = _compress(self, compressor, kv, gate, state.entries, state.partial)
        if indexing is not None:
            kv, gate, query, weights = (p[at] for p in indexing)
            state.index_partial = _compress(self, indexer, kv, gate, state.index_entries, state.index_partial)
            extra = _chosen(self, part, query, weights, state)
        elif projected is not None:
            extra = _visible(part, compressor.compress_rate, state.entries.length)
        more = {}
        if extra is not None and extra.shape[1]:
            more = {
                "extra_pool": state.entries.pool,
                "extra_indices": extra[None],
                "extra_page_size": PAGE,
            }
        result, _lse = sparse_mla_decode(
            q[None],
            state.window.pool,
            _recent(part, state.window)[None],
            format=state.window.format.name,
            page_size=PAGE,
            scale=self.scaling,
            d_v=self.head_dim,
            sink=self.sinks.float(),
            **more,
        )
        out[at] = _rotate(self, result[0], part.positions, inverse=True)

    grouped = out.reshape(*x.shape[:2], self.config.o_groups, -1)
    return self.o_b_proj(self.o_a_proj(grouped).flatten(2)), None


def _rotate(self: HfModule, x: Tensor, positions: Tensor, *, inverse: bool = False) -> Tensor:
    """Turn the last channels of each row, by its position."""
    offset = x.shape[-1] - self.rotation["rotary_dim"]
    return rope(x, positions, layout="interleaved", offset=offset, inverse=inverse, **self.rotation)


def _compress(self: HfModule, by: HfModule, kv: Tensor, gate: Tensor, entries: Growing, carried: Any) -> Any:
    """Append the entries of the windows that these tokens close; return what the next tokens need."""
    made, carried = compress_kv(
        kv,
        gate,
        by.position_bias.float(),
        ratio=by.compress_rate,
        overlap=self.layer_type == CSA,
        norm_weight=by.kv_norm.weight,
        eps=by.kv_norm.variance_epsilon,
        state=carried,
    )
    if len(made):
        first = entries.length
        positions = torch.arange(first, first + len(made), dtype=torch.int32) * by.compress_rate
        entries.append(_rotate(self, made, positions))
    return carried


def _recent(part: Part, window: Window) -> Tensor:
    """The slots of the window of every token, oldest first."""
    key = ("window", window.slots)
    if key not in part.shared:
        positions = part.positions[:, None] + torch.arange(1 - window.window, 1, dtype=torch.int32)
        part.shared[key] = torch.where(positions < 0, -1, positions % window.slots).int()
    return part.shared[key]


def _visible(part: Part, ratio: int, count: int) -> Tensor:
    """The entries of closed windows, for every token."""
    key = ("visible", ratio)
    if key not in part.shared:
        most = min(count, part.end // ratio)
        entries = torch.arange(most, dtype=torch.int32).expand(len(part.positions), most)
        part.shared[key] = torch.where(entries < _closed(part, ratio)[:, None], entries, -1).int()
    return part.shared[key]


def _closed(part: Part, ratio: int) -> Tensor:
    """How many windows are closed at each token, its own included."""
    return (part.positions + 1) // ratio


def _chosen(self: HfModule, part: Part, query: Tensor, weights: Tensor, state: State) -> Tensor:
    """The entries the indexer likes best, for every token."""
    indexer, count = self.compressor.indexer, state.index_entries.length
    if count <= indexer.index_topk:  # all of them
        return _visible(part, indexer.compress_rate, count)
    return indexer_topk(
        _rotate(self, query, part.positions),
        state.index_entries.rows,
        None,
        weights,
        starts=torch.zeros_like(part.positions),
        ends=_closed(part, indexer.compress_rate),
        k_top=indexer.index_topk,
    )


# --- hyper-connections --------------------------------------------------------------------------------------


def is_layer(module: nn.Module) -> bool:
    """Tell whether this is DeepSeek-V4's decoder layer."""
    return type(module).__name__ == "DeepseekV4DecoderLayer"


def is_head(module: nn.Module) -> bool:
    """Tell whether this collapses DeepSeek-V4's streams at the end."""
    return type(module).__name__ == "DeepseekV4HyperHead"


def convert_layer(module: HfModule) -> None:
    """Give this instance its forward."""
    module.forward = partial(layer, module)


def convert_head(module: HfModule) -> None:
    """Give this instance its forward."""
    module.forward = partial(head, module)


def layer(self: HfModule, hidden_states: Tensor, input_ids: Tensor | None = None, **kwargs: Any) -> Tensor:
    """Attention, then experts, each between a collapse and an expansion of the streams."""
    shape = hidden_states.shape
    x = hidden_states.reshape(-1, *shape[2:])
    y, post, comb = mhc_pre(x, *_mixer(self.attn_hc), **_mixing(self.attn_hc))
    y, _ = self.self_attn(self.input_layernorm(y).view(*shape[:2], -1), **kwargs)
    x, y, post, comb = mhc_post_pre(
        y.reshape(-1, shape[-1]), x, post, comb, *_mixer(self.ffn_hc), **_mixing(self.ffn_hc)
    )
    y = self.mlp(self.post_attention_layernorm(y).view(*shape[:2], -1), input_ids=input_ids)
    return mhc_post(y.reshape(-1, shape[-1]), x, post, comb).view(shape)


def head(self: HfModule, x: Tensor) -> Tensor:
    """Collapse the streams."""
    flat = x.reshape(-1, *x.shape[2:])
    y: Tensor = mhc_head(
        flat,
        self.hc_fn.float(),
        self.hc_scale.float(),
        self.hc_base.float(),
        rms_eps=self.input_norm.eps,
        eps=self.eps,
    )
    return y.view(*x.shape[:2], -1)


def _mixer(hc: HfModule) -> tuple[Tensor, Tensor, Tensor]:
    return hc.fn.float(), hc.scale.float(), hc.base.float()


def _mixing(hc: HfModule) -> dict[str, Any]:
    return {
        "iters": hc.hc_sinkhorn_iters,
        "post_mult": 2.0,
        "rms_eps": hc.input_norm.eps,
        "eps": hc.hc_eps,
    }

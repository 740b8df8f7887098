"""The latent attention of DeepSeek-V3 and V3.2: one latent key per token, shared by all heads.

transformers expands every cached latent into keys and values of every head at every step. Here the expansion
moves to the other side of the products: queries go down to the latents, and what is read of these comes up.
V3.2's indexer chooses which; V3 reads all.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.finegrained_fp8 import FP8Linear

from sparsekern import (
    grouped_gemm,
    indexer_topk,
    layer_norm,
    mla_decode,
    pack_weights,
    rope,
    sparse_mla_decode,
)
from sparsekern.integrations.transformers import rotary
from sparsekern.integrations.transformers.cache import PAGE, Growing, Kind, key_format
from sparsekern.integrations.transformers.chunks import Part, Step, step_of
from sparsekern.integrations.transformers.packed import HfModule, Unsupported, check_float
from sparsekern.weights import dequantised

KINDS = ("DeepseekV3Attention", "DeepseekV32Attention")


class State:
    """What one layer keeps of one sequence."""

    def __init__(self, module: HfModule, kv: Kind) -> None:
        """Hold nothing yet."""
        self.latents = Growing(key_format(kv, module.kv_lora_rank, module.qk_rope_head_dim))
        self.index_keys = (
            Growing(key_format("bf16", module.indexer.head_dim, 0)) if has_indexer(module) else None
        )

    @property
    def length(self) -> int:
        """How many tokens came so far."""
        return self.latents.length

    def crop(self, tokens: int) -> None:
        """Forget the last tokens."""
        self.latents.crop(tokens)
        if self.index_keys is not None:
            self.index_keys.crop(tokens)


def is_attention(module: nn.Module) -> bool:
    """Tell whether this is the attention of DeepSeek-V3 or V3.2."""
    return type(module).__name__ in KINDS


def has_indexer(module: HfModule) -> bool:
    """Tell whether it reads chosen tokens only."""
    return hasattr(module, "indexer")


def check(module: HfModule) -> None:
    """Raise Unsupported unless the ops compute what this layer does."""
    if not getattr(module.config, "rope_interleave", True):
        raise Unsupported("its rotary embedding turns halves")
    check_float(module.kv_a_layernorm.weight, None)
    _rotation(module)


def check_kv(module: HfModule, kv: Kind) -> None:
    """Raise ValueError unless its keys can be kept like that."""
    if kv == "fp8" and not has_indexer(module):
        raise ValueError("optimize: kv='fp8' is for sparse attention, DeepSeek-V3's is dense; use kv='bf16'")
    key_format(kv, module.kv_lora_rank, module.qk_rope_head_dim)


def convert(module: HfModule) -> None:
    """Give this instance its forward, and what the cache asks for."""
    module.rotation = _rotation(module)
    module.to_latent, module.from_latent = map(pack_weights, _absorbed(module))
    module.new_state = partial(_new_state, module)
    module.forward = partial(attention, module)


def _new_state(module: HfModule, kv: Kind) -> Callable[[], State]:
    check_kv(module, kv)
    return partial(State, module, kv)


def _rotation(module: HfModule) -> dict[str, Any]:
    name = type(module).__name__.replace("Attention", "RotaryEmbedding")
    embedding = getattr(sys.modules[type(module).__module__], name)(module.config)
    if embedding.attention_scaling != 1:
        raise Unsupported("its rotary embedding scales")
    return rotary.options(module.config.rope_parameters, embedding.inv_freq)


def _absorbed(module: HfModule) -> tuple[Tensor, Tensor]:
    """The two halves of `kv_b_proj`, each head's as rows: latent from key, value from latent."""
    linear = module.kv_b_proj
    weight: Tensor = linear.weight
    if isinstance(linear, FP8Linear) and weight.element_size() == 1:
        bn, bk = linear.block_size or weight.shape
        scale = linear.weight_scale_inv.reshape(-1, -(-weight.shape[1] // bk))[: -(-weight.shape[0] // bn)]
        weight = dequantised(weight, scale.float(), (bn, bk)).float()
    heads = weight.detach().view(module.num_heads, -1, module.kv_lora_rank)
    nope = module.qk_nope_head_dim
    return heads[:, :nope].transpose(1, 2).contiguous(), heads[:, nope:].contiguous()


def attention(
    self: HfModule, hidden_states: Tensor, past_key_values: Any = None, step: Step | None = None, **_: Any
) -> tuple[Tensor, None]:
    """Attend to the latents, sequence by sequence."""
    step, x = step_of(step), hidden_states
    states = past_key_values.layers[self.layer_idx].begin(step.batch)
    residual = x if self.q_lora_rank is None else self.q_a_layernorm(self.q_a_proj(x))
    q = (self.q_proj if self.q_lora_rank is None else self.q_b_proj)(residual)
    q = q.view(*x.shape[:2], self.num_heads, self.qk_head_dim)
    q_plain, q_turned = q.split([self.qk_nope_head_dim, self.qk_rope_head_dim], -1)
    latent, key = self.kv_a_proj_with_mqa(x).split([self.kv_lora_rank, self.qk_rope_head_dim], -1)
    latent = self.kv_a_layernorm(latent)
    q_latent = _per_head(q_plain, self.to_latent)

    indexing = None
    if has_indexer(self):
        indexer = self.indexer
        query = indexer.wq_b(residual).view(*x.shape[:2], indexer.n_heads, indexer.head_dim)
        index_key = layer_norm(
            indexer.wk(x), indexer.k_norm.weight, indexer.k_norm.bias, eps=indexer.k_norm.eps
        )
        weights = indexer.weights_proj(x).float() * (indexer.n_heads * indexer.head_dim) ** -0.5
        indexing = (query, index_key, weights)

    out = q.new_zeros(*q.shape[:3], self.kv_lora_rank)
    for part, state in zip(step.parts, states, strict=True):
        if not len(part.positions):
            continue
        at = (part.row, part.columns)
        turned = rope(key[at].contiguous(), part.positions, layout="interleaved", offset=0, **self.rotation)
        state.latents.append(torch.cat([latent[at], turned], -1))
        turned = rope(
            q_turned[at].contiguous(), part.positions, layout="interleaved", offset=0, **self.rotation
        )
        queries = torch.cat([q_latent[at], turned], -1)[None]
        options = {"scale": self.scaling, "d_v": self.kv_lora_rank}
        if indexing is None:
            out[at] = mla_decode(
                queries,
                state.latents.pool[:, :, None],
                torch.arange(len(state.latents.pool), dtype=torch.int32)[None],
                torch.tensor([state.length], dtype=torch.int32),
                causal=True,
                **options,
            )[0][0]
        else:
            out[at] = sparse_mla_decode(
                queries,
                state.latents.pool,
                _chosen(self, part, state, *(i[at] for i in indexing))[None],
                format=state.latents.format.name,
                page_size=PAGE,
                **options,
            )[0][0]
    return self.o_proj(_per_head(out, self.from_latent).flatten(2)), None


def _per_head(x: Tensor, weights: Any) -> Tensor:
    """Multiply `[B, S, H, K]` by each head's weights."""
    rows = x.movedim(2, 0).reshape(-1, x.shape[-1])
    offsets = torch.arange(x.shape[2] + 1, dtype=torch.int32) * (x.shape[0] * x.shape[1])
    y = grouped_gemm(rows, weights, offsets, out_dtype=x.dtype)
    return y.view(x.shape[2], *x.shape[:2], -1).movedim(0, 2)


def _chosen(self: HfModule, part: Part, state: State, query: Tensor, key: Tensor, weights: Tensor) -> Tensor:
    """The tokens the indexer likes best, for every token."""
    turn = {"layout": "half", "offset": 0, **self.rotation}
    keys = state.index_keys
    assert keys is not None
    keys.append(rope(key.contiguous(), part.positions, **turn))
    top_k = self.indexer.index_topk
    if keys.length <= top_k:  # all there are
        if "causal" not in part.shared:
            tokens = torch.arange(keys.length, dtype=torch.int32).expand(len(part.positions), -1)
            part.shared["causal"] = torch.where(tokens <= part.positions[:, None], tokens, -1).int()
        return part.shared["causal"]
    return indexer_topk(
        rope(query.contiguous(), part.positions, **turn),
        keys.rows,
        None,
        weights,
        starts=torch.zeros_like(part.positions),
        ends=part.positions + 1,
        k_top=top_k,
    )

"""Real models' sizes, and what an op's dimensions are in them.

Sources: the published configurations of DeepSeek-V3.2, V4-Flash, V4-Pro, V4.1-Flash, Qwen3-30B-A3B,
Qwen3-235B-A22B, gpt-oss-20b and gpt-oss-120b. gpt-oss gates its experts otherwise than SwiGLU and adds
biases: its sizes are real, the arithmetic between them is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sparsekern.ops._kv import FORMATS as KV_FORMATS
from sparsekern.schema import Dims, Op


@dataclass(frozen=True)
class Model:
    """What the sizes of the ops follow from."""

    hidden: int
    inter: int  # of one expert
    experts: int
    top_k: int
    heads: int
    head_dim: int  # of queries and keys
    kv_dim: int  # of what is cached of a token: K and V of all its heads, or one latent
    value_dim: int = 0  # of a head's result; 0: as its keys
    shared: int = 0  # experts that every token takes
    q_lora: int = 0
    scoring: str = "softmax"
    groups: tuple[int, int] = (1, 1)  # of experts, and of those kept
    format: str = "bf16"  # of the experts
    index: tuple[int, int, int] = (0, 0, 0)  # the indexer's heads, their size, and how many tokens it selects
    streams: int = 0  # of hyper-connections
    cache: str = "bf16"  # format of its cached tokens

    def projections(self) -> dict[str, tuple[int, int]]:
        """The dense layers, N and K by name."""
        wide, value = self.heads * self.head_dim, self.value_dim or self.head_dim
        found = {"kv": (self.kv_dim, self.hidden), "o": (self.hidden, self.heads * value)}
        if self.q_lora:
            found |= {"q_a": (self.q_lora, self.hidden), "q_b": (wide, self.q_lora)}
        else:
            found["q"] = (wide, self.hidden)
        if self.shared:
            found["shared_gate_up"] = (2 * self.shared * self.inter, self.hidden)
            found["shared_down"] = (self.hidden, self.shared * self.inter)
        return found


_V4 = Model(4096, 2048, 256, 6, 64, 512, 512, shared=1, q_lora=1024, scoring="sqrtsoftplus", format="fp4",
            index=(64, 128, 512), streams=4, cache="mla584")  # fmt: skip

MODELS: dict[str, Model] = {
    "V3.2": Model(7168, 2048, 256, 8, 128, 192, 576, value_dim=128, shared=1, q_lora=1536, scoring="sigmoid",
                  groups=(8, 4), format="fp8", index=(64, 128, 2048), cache="mla656"),
    "V4-Flash": _V4,
    "V4-Pro": Model(7168, 3072, 384, 6, 128, 512, 512, shared=1, q_lora=1536, scoring="sqrtsoftplus",
                    format="fp4", index=(64, 128, 1024), streams=4, cache="mla584"),
    "V4.1": Model(5120, 2304, 384, 6, 64, 512, 512, shared=1, q_lora=1280, scoring="sqrtsoftplus",
                  format="fp4", index=(32, 128, 512), streams=4, cache="mla528"),
    "Qwen3-30B": Model(2048, 768, 128, 8, 32, 128, 1024),
    "Qwen3-235B": Model(4096, 1536, 128, 8, 64, 128, 1024),
    "gpt-oss-20b": Model(2880, 2880, 32, 4, 64, 64, 1024, format="fp4"),
    "gpt-oss-120b": Model(2880, 2880, 128, 4, 64, 64, 1024, format="fp4"),
}  # fmt: skip

# Names that stand for several.
FAMILIES = {"Qwen3-MoE": ("Qwen3-30B", "Qwen3-235B"), "gpt-oss": ("gpt-oss-20b", "gpt-oss-120b")}


def called(names: Iterable[str]) -> tuple[str, ...]:
    """The models of that name, or of that family.

    Raises:
        ValueError: there is none.
    """
    found: list[str] = []
    for name in names:
        if name not in MODELS and name not in FAMILIES:
            raise ValueError(f"no model is called {name!r}, choose from {', '.join((*MODELS, *FAMILIES))}")
        found += FAMILIES.get(name, (name,))
    return tuple(dict.fromkeys(found))


# Kinds of weights as the ops' dimensions number them.
FORMATS = {"f32": 0, "bf16": 1, "fp8": 2, "fp4": 3, "bf16_2to4": 4, "fp8_2to4": 5}
BYTES = {"f32": 4.0, "bf16": 2.0, "fp8": 1.0, "fp4": 0.53125, "bf16_2to4": 1.125, "fp8_2to4": 0.625}
SCORINGS = ("sigmoid", "softmax", "sqrtsoftplus")  # as route_topk's dimensions number them


def experts_that_fit(model: Model, memory: float) -> int:
    """How many of its experts fit into `memory` bytes as bf16, a power of two: one device's share of them."""
    one = 3 * model.hidden * model.inter * BYTES["bf16"]
    count = model.experts
    while count > 1 and count * one > memory:
        count = 1 << (count - 1).bit_length() - 1
    return max(count, model.top_k)


@dataclass(frozen=True)
class At:
    """In which situation a model is."""

    tokens: int = 1  # at once
    context: int = 32768  # tokens that are cached
    memory: float = 2e9  # bytes of bf16 experts


def shapes(op: Op, model: Model, at: At) -> Iterator[tuple[str, Dims]]:
    """The op's dimensions in a model, with a name where there are several; nothing if the model has none.

    What a rule below does not set stays as in the first of the op's own benchmark sizes.
    """
    rule = _RULES.get(op.name)
    for name, dims in rule(model, at).items() if rule is not None else ():
        yield name, {**op.bench_dims[0], **dims}


Sizes = dict[str, dict[str, int]]  # by name
Rule = Callable[[Model, At], Sizes]


def _one(**sizes: Callable[[Model, At], int]) -> Rule:
    """One size, symbol by symbol."""
    return lambda m, at: {"": {symbol: size(m, at) for symbol, size in sizes.items()}}


def _if(has: Callable[[Model], Any], rule: Rule) -> Rule:
    """Nothing, where a model has no such part."""
    return lambda m, at: rule(m, at) if has(m) else {}


def _tokens(m: Model, at: At) -> int:
    return at.tokens


def _slots(m: Model, at: At) -> int:
    return at.tokens * m.top_k


def _context(m: Model, at: At) -> int:
    return max(at.context, at.tokens)


def _hidden(m: Model, at: At) -> int:
    return m.hidden


def _gemm(m: Model, at: At) -> Sizes:
    return {name: {"M": at.tokens, "N": n, "K": k} for name, (n, k) in m.projections().items()}


def _experts(rows: str) -> Rule:
    def rule(m: Model, at: At) -> Sizes:
        experts, kind = experts_that_fit(m, at.memory), FORMATS[m.format]
        count = at.tokens * m.top_k if rows == "P" else max(1, -(-at.tokens * m.top_k // experts))
        sizes = {"gate_up": (2 * m.inter, m.hidden), "down": (m.hidden, m.inter)}
        return {
            name: {"E": experts, rows: count, "N": n, "K": k, "b": kind} for name, (n, k) in sizes.items()
        }

    return rule


def _moe(m: Model, at: At) -> Sizes:
    sizes = {"T": at.tokens, "H": m.hidden, "I": m.inter, "top_k": m.top_k}
    return {"": {**sizes, "E": experts_that_fit(m, at.memory), "w": FORMATS[m.format]}}


def _route(m: Model, at: At) -> Sizes:
    groups, kept = m.groups
    sizes = {"T": at.tokens, "E": m.experts, "k": m.top_k, "scoring": SCORINGS.index(m.scoring)}
    return {"": {**sizes, "groups": groups, "kept": kept}}


def _route_hash(m: Model, at: At) -> Sizes:
    return {"": {"T": at.tokens, "E": m.experts, "k": m.top_k}}


def _selected(m: Model, at: At) -> int:
    return min(m.index[2], _context(m, at))


_STREAMS = _if(lambda m: m.streams, _one(T=_tokens, n=lambda m, at: m.streams, D=_hidden))
_INDEX: dict[str, Callable[[Model, At], int]] = {"H": lambda m, at: m.index[0], "D": lambda m, at: m.index[1]}
_KEYS = {"M": _tokens, "N": _context, **_INDEX}
_PAGED = {"B": _tokens, "N": _context, **_INDEX}


def _indexed(sizes: Mapping[str, Callable[[Model, At], int]]) -> Rule:
    return _if(lambda m: m.index[0], _one(**sizes))


def _kv(m: Model, at: At) -> Sizes:
    kind = KV_FORMATS.index(m.cache)
    return {"": {"T": at.tokens, "D": m.kv_dim, "format": kind, "pages": -(-_context(m, at) // 64)}}


def _kv_gather(m: Model, at: At) -> Sizes:
    pages = -(-_context(m, at) // 64)
    return {
        "": {"D": m.kv_dim, "format": KV_FORMATS.index(m.cache), "pages": pages, "maxpages": min(32, pages)}
    }


def _decode(m: Model, at: At) -> Sizes:
    kind, pages = KV_FORMATS.index(m.cache), -(-_context(m, at) // 64)
    return {"": {"B": at.tokens, "Hq": m.heads, "format": kind, "pages": pages, "topk": _selected(m, at)}}


def _whole(m: Model, at: At) -> Sizes:
    """Dense attention over latents: the cached tokens are those of all sequences."""
    sizes = {"B": at.tokens, "N": max(1, at.context // at.tokens), "Hq": m.heads}
    return {"": {**sizes, "D": m.kv_dim, "d_v": min(512, m.kv_dim)}}


def _compress(m: Model, at: At) -> Sizes:
    kinds = {"by 4": {"ratio": 4, "overlap": 1}, "by 128": {"ratio": 128, "overlap": 0}}
    return {name: {"T": at.tokens, "D": m.kv_dim, "waiting": 0, **kind} for name, kind in kinds.items()}


def _attention(m: Model, at: At) -> Sizes:
    heads = {"Hq": m.heads, "Hkv": m.kv_dim // (2 * m.head_dim), "Dk": m.head_dim, "Dv": m.head_dim}
    return {"": {"S": at.tokens, "Skv": _context(m, at), **heads}}


def _rope(m: Model, at: At) -> Sizes:
    latent = m.q_lora > 0  # rotates a part of a head
    return {"": {"T": at.tokens, "H": m.heads, "D": m.head_dim, "rotary_dim": 64 if latent else m.head_dim}}


_RULES: dict[str, Rule] = {
    "quantize_fp8": _one(M=_tokens, K=_hidden),
    "quantize_fp4": _one(M=_tokens, K=_hidden),
    "swiglu": _one(M=_tokens, C=lambda m, at: 2 * m.inter),
    "swiglu_quantize_fp8": _one(M=_slots, C=lambda m, at: 2 * m.inter),
    "rms_norm": _one(M=_tokens, D=_hidden),
    "layer_norm": _one(M=_tokens, D=lambda m, at: m.index[1] or m.head_dim),
    "route_topk": _route,
    "route_hash": _if(lambda m: m.scoring == "sqrtsoftplus", _route_hash),
    "router_gather": lambda m, at: {"": {**_route(m, at)[""], "H": m.hidden}},
    "moe_permutation": _one(T=_tokens, k=lambda m, at: m.top_k, E=lambda m, at: m.experts),
    "moe_gather": _one(T=_tokens, H=_hidden, P=_slots),
    "moe_combine": _one(T=_tokens, k=lambda m, at: m.top_k, H=_hidden),
    "gemm": _gemm,
    "grouped_gemm": _experts("P"),
    "grouped_gemm_masked": _experts("Mmax"),
    "fused_moe": _moe,
    "topk_per_row": _indexed({"M": _tokens, "N": _context, "k": _selected}),
    "indexer_logits": _indexed(_KEYS),
    "indexer_topk": _indexed({**_KEYS, "k": _selected}),
    "indexer_logits_paged": _indexed(_PAGED),
    "indexer_topk_paged": _indexed({**_PAGED, "k": _selected}),
    "sparse_mla_prefill": _indexed(
        {"S": _tokens, "Hq": lambda m, at: m.heads, "Skv": _context, "D": lambda m, at: m.kv_dim,
         "topk": _selected}
    ),
    "sparse_mla_decode": _if(lambda m: m.index[0], _decode),
    "mla_decode": _if(lambda m: m.q_lora, _whole),
    "merge_attn_states": _one(
        M=lambda m, at: at.tokens * m.heads, D=lambda m, at: min(512, m.kv_dim) if m.q_lora else m.head_dim
    ),
    "compress_kv": _if(lambda m: m.streams, _compress),
    "sparse_attention": _if(lambda m: not m.index[0], _attention),
    "rope": _rope,
    "hadamard": _if(lambda m: m.index[0], _one(M=lambda m, at: at.tokens * m.index[0], D=_INDEX["D"])),
    "kv_write": _kv,
    "kv_read": _kv,
    "kv_gather": _kv_gather,
    "mhc_pre": _STREAMS,
    "mhc_post": _STREAMS,
    "mhc_post_pre": _STREAMS,
    "mhc_head": _STREAMS,
    "sinkhorn": _if(lambda m: m.streams, _one(M=_tokens, n=lambda m, at: m.streams)),
}  # fmt: skip

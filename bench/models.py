"""Real models' sizes, and what an op's dimensions are in them.

Sources: the published configurations of DeepSeek-V3.2, V4-Flash, V4-Pro, V4.1-Flash, Qwen3-30B-A3B,
Qwen3-235B-A22B, gpt-oss-20b and gpt-oss-120b. gpt-oss gates its experts otherwise than SwiGLU and adds
biases: its sizes are real, the arithmetic between them is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

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
            index=(64, 128, 512), streams=4)  # fmt: skip

MODELS: dict[str, Model] = {
    "V3.2": Model(7168, 2048, 256, 8, 128, 192, 576, value_dim=128, shared=1, q_lora=1536, scoring="sigmoid",
                  groups=(8, 4), format="fp8", index=(64, 128, 2048)),
    "V4-Flash": _V4,
    "V4-Pro": Model(7168, 3072, 384, 6, 128, 512, 512, shared=1, q_lora=1536, scoring="sqrtsoftplus",
                    format="fp4", index=(64, 128, 1024), streams=4),
    "V4.1": Model(5120, 2304, 384, 6, 64, 512, 512, shared=1, q_lora=1280, scoring="sqrtsoftplus",
                  format="fp4", index=(32, 128, 512), streams=4),
    "Qwen3-30B": Model(2048, 768, 128, 8, 32, 128, 1024),
    "Qwen3-235B": Model(4096, 1536, 128, 8, 64, 128, 1024),
    "gpt-oss-20b": Model(2880, 2880, 32, 4, 64, 64, 1024, format="fp4"),
    "gpt-oss-120b": Model(2880, 2880, 128, 4, 64, 64, 1024, format="fp4"),
}  # fmt: skip

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


def shapes(op: Op, model: Model, tokens: int, memory: float) -> Iterator[tuple[str, Dims]]:
    """The op's dimensions in a model, with a name where there are several; nothing if the model has none.

    What a rule below does not set stays as in the first of the op's own benchmark sizes.
    """
    if op.name in _RULES:
        for name, dims in _RULES[op.name](model, tokens, memory):
            yield name, {**_plain(op), **dims}


def _plain(op: Op) -> dict[str, int]:
    return dict(op.bench_dims[0])


Named = Iterator[tuple[str, Mapping[str, int]]]


def _rows(key: str, width: str, of: Callable[[Model], int]) -> Callable[[Model, int, float], Named]:
    """Rows of one width."""

    def rule(model: Model, tokens: int, memory: float) -> Named:
        yield "", {key: tokens, width: of(model)}

    return rule


def _gemm(model: Model, tokens: int, memory: float) -> Named:
    for name, (n, k) in model.projections().items():
        yield name, {"M": tokens, "N": n, "K": k}


def _experts(rows: str) -> Callable[[Model, int, float], Named]:
    def rule(model: Model, tokens: int, memory: float) -> Named:
        experts, count = experts_that_fit(model, memory), tokens * model.top_k
        sizes = {"gate_up": (2 * model.inter, model.hidden), "down": (model.hidden, model.inter)}
        for name, (n, k) in sizes.items():
            m = count if rows == "P" else max(1, -(-count // experts))
            yield name, {"E": experts, rows: m, "N": n, "K": k, "b": FORMATS[model.format]}

    return rule


def _moe(model: Model, tokens: int, memory: float) -> Named:
    yield "", {"T": tokens, "H": model.hidden, "I": model.inter, "E": experts_that_fit(model, memory),
               "top_k": model.top_k, "w": FORMATS[model.format]}  # fmt: skip


def _route(model: Model, tokens: int, memory: float) -> Named:
    groups, kept = model.groups
    dims = {"T": tokens, "E": model.experts, "k": model.top_k, "scoring": SCORINGS.index(model.scoring)}
    yield "", {**dims, "groups": groups, "kept": kept}


def _slots(**names: str) -> Callable[[Model, int, float], Named]:
    """Dimensions that are the model's attributes, or the slots of all tokens."""

    def rule(model: Model, tokens: int, memory: float) -> Named:
        known = {"tokens": tokens, "slots": tokens * model.top_k, **vars(model)}
        yield "", {symbol: known[name] for symbol, name in names.items()}

    return rule


_RULES: dict[str, Callable[[Model, int, float], Named]] = {
    "quantize_fp8": _rows("M", "K", lambda m: m.hidden),
    "quantize_fp4": _rows("M", "K", lambda m: m.hidden),
    "swiglu": _rows("M", "C", lambda m: 2 * m.inter),
    "swiglu_quantize_fp8": _rows("M", "C", lambda m: 2 * m.inter),
    "rms_norm": _rows("M", "D", lambda m: m.hidden),
    "layer_norm": _rows("M", "D", lambda m: m.index[1] or m.head_dim),
    "route_topk": _route,
    "moe_permutation": _slots(T="tokens", k="top_k", E="experts"),
    "moe_gather": _slots(T="tokens", H="hidden", P="slots"),
    "moe_combine": _slots(T="tokens", k="top_k", H="hidden"),
    "gemm": _gemm,
    "grouped_gemm": _experts("P"),
    "grouped_gemm_masked": _experts("Mmax"),
    "fused_moe": _moe,
}

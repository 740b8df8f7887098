"""Attention over two sets of keys, from what each set alone gave."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparsekern.backend import launch
from sparsekern.schema import Arg, Dims, Op, Out


class AttentionState(NamedTuple):
    """What attention over some keys made of each query, and how much weight these keys had."""

    out: Tensor
    lse: Tensor


def merge_attn_states(
    out_a: Tensor,
    lse_a: Tensor,
    out_b: Tensor,
    lse_b: Tensor,
    *,
    out: tuple[Tensor, Tensor] | None = None,
) -> AttentionState:
    """Merge the results of attention over two sets of keys.

        lse = ln(exp(lse_a) + exp(lse_b))
        out = exp(lse_a - lse) * out_a + exp(lse_b - lse) * out_b

    `lse` is the natural logarithm of the sum of exp(logit) over a set's keys. Either infinity means that the
    set was empty: the other side comes back as it is, and what the empty side holds is not read. Both empty:
    0, and +infinity. Computed in float32 and rounded once.
    """
    result: AttentionState = launch(OP, out_a, lse_a, out_b, lse_b, out)
    return result


def reference(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> AttentionState:
    """The formula in float64."""
    none = [lse_a.isinf(), lse_b.isinf()]
    sums = [s.double().masked_fill(n, -torch.inf) for s, n in zip((lse_a, lse_b), none, strict=True)]
    lse = torch.logaddexp(*sums).masked_fill(none[0] & none[1], torch.inf)
    total = torch.zeros_like(out_a, dtype=torch.float64)
    for part, s, n in zip((out_a, out_b), sums, none, strict=True):
        total += (s - lse).exp()[..., None] * part.double().masked_fill(n[..., None], 0.0)
    return AttentionState(total.to(out_a.dtype), lse.float())


def inputs(dims: Dims, rng: torch.Generator) -> dict[str, Any]:
    """Normal rows; some sides empty by either infinity, with NaN in their rows."""
    dtype = torch.float32 if dims.get("f32") else torch.bfloat16
    x: dict[str, Any] = {}
    for side in "ab":
        lse = 3 * torch.randn(dims["M"], generator=rng)
        lottery = torch.rand(dims["M"], generator=rng)
        lse[lottery < 0.3] = torch.inf
        lse[lottery < 0.15] = -torch.inf
        rows = torch.randn(dims["M"], dims["D"], generator=rng).to(dtype)
        x[f"out_{side}"], x[f"lse_{side}"] = rows.masked_fill(lse.isinf()[:, None], torch.nan), lse
    return x


OP = Op(
    fn=merge_attn_states,
    family="attention",
    args=(
        Arg("out_a", "... D", "f32 bf16", "what attention over the first set gave"),
        Arg("lse_a", "...", "f32", "its log-sum-exp; either infinity: no keys", layout="dense"),
        Arg("out_b", "... D", "f32 bf16", "what attention over the second set gave"),
        Arg("lse_b", "...", "f32", "its log-sum-exp; either infinity: no keys", layout="dense"),
    ),
    outs=(
        Out("out", "... D", "out_a", "attention over both sets"),
        Out("lse", "...", "f32", "log-sum-exp over both sets; +infinity: no keys"),
    ),
    reference=reference,
    inputs=inputs,
    test_dims=(
        {"M": 37, "D": 512},
        {"M": 20, "D": 63, "f32": 1},
        {"M": 5, "D": 1},
        {"M": 0, "D": 16},
        {"M": 3, "D": 0},
    ),
    bench_dims=({"M": 128, "D": 512}, {"M": 16384, "D": 512}),
    spoil=lambda x: {**x, "lse_b": x["lse_b"] + 1},
    source="FlashMLA 9241ae3 combine; arXiv 2501.01005",
    max_err=2**-8,
    rows=("out_a", "lse_a", "out_b", "lse_b"),
    result=AttentionState,
    flops=lambda d: 3.0 * d["M"] * d["D"],
    bytes=lambda d: (12.0 if d.get("f32") else 6.0) * d["M"] * d["D"],
)

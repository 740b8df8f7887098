"""2:4 structured sparsity: which two of every four weights stay."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsekern.backend import launch
from sparsekern.ops._small_floats import pack_nibbles, sample
from sparsekern.schema import Arg, Dims, Op, Out
from sparsekern.weights import Sparse2to4, as_bits


def sparsify_2to4(
    w: Tensor, *, importance: Tensor | None = None, out: tuple[Tensor, Tensor] | None = None
) -> Sparse2to4:
    """Keep the two largest of every four weights along K.

        score[n, k] = |w[n, k]| * importance[k]
        of k = 4g .. 4g + 3 the two of largest score stay

    `importance` tells how much the columns matter, the norms of the activations that they meet, say;
    without it magnitudes decide. Scores are float32 products; NaN is the smallest, and of equals the
    earlier one stays. Values are moved, not rounded, and stay in their order; `metadata` has four bits for
    every four, bit i for element i, the first four in the low nibble. K is a multiple of 4. Of quantised
    weights the block scales stay as they are: `Sparse2to4` counts K as the dense matrix does.
    """
    result: Sparse2to4 = launch(OP, w, importance, out)
    return result


def reference(w: Tensor, *, importance: Tensor | None = None) -> Sparse2to4:
    """A stable sort of every four."""
    score = w.float().abs()
    if importance is not None:
        score = score * importance.float()
    score = torch.where(score.isnan(), -torch.inf, score).unflatten(-1, (-1, 4))
    kept = score.argsort(dim=-1, descending=True, stable=True)[..., :2].sort(-1).values
    values = as_bits(w).unflatten(-1, (-1, 4)).gather(-1, kept).flatten(-2).view(w.dtype)
    masks = (1 << kept).sum(-1).to(torch.uint8)
    return Sparse2to4(values, pack_nibbles(torch.nn.functional.pad(masks, (0, masks.shape[-1] % 2))))


def inputs(dims: Dims, rng: torch.Generator) -> dict[str, Any]:
    """Rows of very different size with zeros, infinities and NaN; small integers, so that fours have ties."""
    shape = (dims["M"], dims["K"])
    w = torch.randint(-3, 4, shape, generator=rng) if dims.get("ties") else sample(shape, rng, torch.float32)
    if dims.get("nan"):
        w = torch.where(torch.rand(shape, generator=rng) < 0.5, torch.nan, w)
    x = {"w": w.to(KINDS[dims["kind"]])}
    if dims.get("weighted"):
        x["importance"] = torch.rand(dims["K"], generator=rng) - 0.1
    return x


KINDS = (torch.float32, torch.bfloat16, torch.float8_e4m3fn)

OP = Op(
    fn=sparsify_2to4,
    family="quant",
    args=(
        Arg("w", "... K", "f32 bf16 e4m3", "weights"),
        Arg("importance", "K", "f32 bf16", "of each column; none: all the same"),
    ),
    outs=(
        Out("values", "... K/2", "w", "the values that stay"),
        Out("metadata", "... K/8", "u8", "which those are"),
    ),
    reference=reference,
    inputs=inputs,
    test_dims=(
        {"M": 9, "K": 256, "kind": 1, "weighted": 1},
        *({"M": 5, "K": 332, "kind": kind, "weighted": weighted} for kind in range(3) for weighted in (0, 1)),
        *({"M": 30, "K": 136, "kind": kind, "ties": 1} for kind in range(3)),
        *({"M": 7, "K": 72, "kind": kind, "nan": 1} for kind in range(3)),
        {"M": 3, "K": 4, "kind": 1},
        {"M": 1, "K": 12, "kind": 2},
        {"M": 0, "K": 64, "kind": 1},
        {"M": 3, "K": 0, "kind": 1},
    ),
    bench_dims=({"M": 4096, "K": 7168, "kind": 1}, {"M": 4096, "K": 7168, "kind": 2}),
    spoil=lambda x: {**x, "w": x["w"].roll(1, -1)},
    source="arXiv 2104.08378 (2:4 structured sparsity), arXiv 2306.11695 (importance of columns)",
    rows=("w",),
    result=Sparse2to4,
    flops=lambda d: 3.0 * d["M"] * d["K"],
    bytes=lambda d: (4.0, 2.0, 1.0)[d["kind"]] * 1.5 * d["M"] * d["K"] + d["M"] * d["K"] / 8,
)

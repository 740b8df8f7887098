"""Many keys to one: the compressor of DeepSeek-V4."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparsekern.backend import launch
from sparsekern.schema import Arg, Dims, Op, Option, Out, ShapeError


class CompressedKv(NamedTuple):
    """The entries of the windows that these tokens close, and what the next tokens need: the next `state`."""

    entries: Tensor
    state: Tensor


def compress_kv(
    kv: Tensor,
    gate: Tensor,
    ape: Tensor,
    *,
    ratio: int,
    overlap: bool,
    norm_weight: Tensor,
    eps: float,
    state: Tensor | None = None,
    out: tuple[Tensor, Tensor] | None = None,
) -> CompressedKv:
    """Make one entry of every `ratio` tokens, a weighted mean in each channel, and normalise it.

        score[t] = gate[t] + ape[t % ratio]
        entry[w] = rms_norm(sum over slots of softmax(score)[slot] kv[slot], norm_weight, eps)

    The slots are the `ratio` tokens of window w. With `overlap` the channels come in two halves, and there
    are twice as many slots: the first half of the tokens of window w - 1, then the second half of those of
    window w. No window is before the first one.

    A sequence may come in pieces of any size, also empty ones: the state of one call goes to the next, and
    the entries are the same, bit for bit. It is a tensor of the tokens that still count, in float32, [kv |
    gate]; how many rows it has says where the window stands. Older states stay valid, so going back to one
    takes tokens back.

    Scores, weights and means in float32; the mean is rounded to the dtype of kv, normalised and rounded
    again. This is before rotary positions: entry w of the sequence stands at position w * ratio.
    """
    sizes = (2 if overlap else 1, _waiting(ratio, overlap, state))
    result: CompressedKv = launch(OP, kv, gate, ape, norm_weight, state, ratio, overlap, eps, sizes, out)
    return result


def _waiting(ratio: int, overlap: bool, state: Tensor | None) -> int:
    """Tokens of the window that is not closed yet; what is no state at all is found out later.

    Raises:
        ShapeError: a state never has that many rows.
    """
    if not isinstance(state, Tensor) or state.dim() != 2 or not isinstance(ratio, int) or ratio < 1:
        return 0
    before = ratio if overlap else 0
    waiting = state.shape[0] - before
    if not 0 <= waiting < ratio:
        most = before + ratio - 1
        raise ShapeError(f"compress_kv: state has {state.shape[0]} rows, expected {before} to {most}")
    return waiting


def reference(
    kv: Tensor,
    gate: Tensor,
    ape: Tensor,
    *,
    ratio: int,
    overlap: bool,
    norm_weight: Tensor,
    eps: float,
    state: Tensor | None = None,
) -> CompressedKv:
    """Window by window, in float64."""
    d, before = len(norm_weight), ratio if overlap else 0
    rows = torch.cat([kv.float(), gate.float()], 1)
    if state is None:  # rows that weigh nothing
        state = torch.cat(
            [rows.new_zeros(before, kv.shape[1]), rows.new_full((before, kv.shape[1]), -torch.inf)], 1
        )
    rows = torch.cat([state, rows])
    values, scores = rows.double().chunk(2, 1)
    windows = (len(rows) - before) // ratio
    entries = []
    for w in range(windows):
        own = slice(before + w * ratio, before + (w + 1) * ratio)
        v, s = values[own], scores[own] + ape.double()
        if overlap:
            last = slice(w * ratio, (w + 1) * ratio)
            v = torch.cat([values[last, :d], v[:, d:]])
            s = torch.cat([(scores[last] + ape.double())[:, :d], s[:, d:]])
        mean = (s.softmax(0) * v).sum(0).to(kv.dtype).double()
        entries.append(mean * (mean.square().mean() + eps).rsqrt() * norm_weight.double())
    made = torch.stack(entries).to(kv.dtype) if windows else kv.new_empty(0, d)
    return CompressedKv(made, rows[windows * ratio :].clone())


def inputs(dims: Dims, rng: torch.Generator) -> dict[str, Any]:
    """Normal tokens, `f32` or not; `waiting` of them in a state, where that is given."""
    d, ratio, overlap = dims["D"], dims["ratio"], bool(dims.get("overlap"))
    width = d * (1 + overlap)

    def tokens(n: int, dtype: torch.dtype) -> Tensor:
        return torch.randn(n, width, generator=rng).to(dtype)

    dtype = torch.float32 if dims.get("f32") else torch.bfloat16
    x = {
        "kv": tokens(dims["T"], dtype),
        "gate": tokens(dims["T"], torch.float32 if dims.get("f32") == 2 else dtype) * 2,
        "ape": torch.randn(ratio, width, generator=rng),
        "ratio": ratio,
        "overlap": overlap,
        "norm_weight": (torch.rand(d, generator=rng) + 0.5).to(dtype),
        "eps": 1e-6,
    }
    if "waiting" in dims:
        n = dims["waiting"] + ratio * overlap
        x["state"] = torch.cat([tokens(n, dtype), tokens(n, dtype)], 1).float()
    return x


_LENGTH = "(P+T+1)/ratio-1"  # windows: "/" rounds up

OP = Op(
    fn=compress_kv,
    family="attention",
    args=(
        Arg("kv", "T c*D", "f32 bf16", "tokens; c is 2 with overlap, else 1"),
        Arg("gate", "T c*D", "f32 bf16", "their scores, channel by channel"),
        Arg("ape", "ratio c*D", "f32", "added to the scores, by place in the window"),
        Arg("norm_weight", "D", "f32 bf16", "of the normalised entries"),
        Arg(
            "state",
            "(c-1)*ratio+P 2*c*D",
            "f32",
            "what an earlier call returned; none: a sequence begins",
            "dense",
        ),
    ),
    outs=(
        Out("entries", f"{_LENGTH} D", "kv", "one for each window that is full"),
        Out("state", f"(c-1)*ratio+P+T-({_LENGTH})*ratio 2*c*D", "f32", "the tokens that still count"),
    ),
    reference=reference,
    inputs=inputs,
    test_dims=(
        {"T": 11, "D": 37, "ratio": 4, "overlap": 1},
        {"T": 40, "D": 64, "ratio": 4, "overlap": 1, "f32": 1, "waiting": 3},
        {"T": 1, "D": 16, "ratio": 4, "overlap": 1, "waiting": 3},
        {"T": 2, "D": 16, "ratio": 4, "overlap": 1, "waiting": 1},
        {"T": 70, "D": 50, "ratio": 32},
        {"T": 130, "D": 128, "ratio": 128, "f32": 1, "waiting": 127},
        {"T": 9, "D": 8, "ratio": 1, "waiting": 0},
        {"T": 5, "D": 3, "ratio": 1, "overlap": 1, "f32": 2},
        {"T": 0, "D": 16, "ratio": 4, "overlap": 1, "waiting": 2},
        {"T": 0, "D": 16, "ratio": 8},
    ),
    bench_dims=(
        {"T": 1, "D": 512, "ratio": 128, "waiting": 64},
        {"T": 4096, "D": 512, "ratio": 4, "overlap": 1},
        {"T": 4096, "D": 512, "ratio": 128},
    ),
    spoil=lambda x: {**x, "ape": x["ape"] * 0.9},
    source="transformers DeepseekV4CSACompressor and DeepseekV4HCACompressor",
    max_err=2**-6,
    result=CompressedKv,
    hidden=(Option("sizes", "ints", None, nullable=False, length=2, sizes=("c", "P")),),
    flops=lambda d: 8.0 * d["T"] * d["D"] * (1 + d.get("overlap", 0)),
    bytes=lambda d: 4.0 * d["T"] * d["D"] * (1 + d.get("overlap", 0)),
)

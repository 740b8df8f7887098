"""How much of what was remembered goes to each residual stream."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsekern.backend import launch
from sparsekern.schema import Arg, Dims, Op, Out


def engram_gate(
    x: Tensor,
    k: Tensor,
    v: Tensor,
    w: Tensor,
    *,
    eps: float,
    token_mask: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Add what was looked up to the residual streams, as far as its key fits them.

        d = sum(w x k) / sqrt(mean(x^2) + eps) / sqrt(mean(k^2) + eps) / sqrt(D), for each token and stream
        out = x + sigmoid(sign(d) sqrt(max(|d|, 1e-6))) v

    w is the product of the weights of both norms. The sign of zero counts, as in the kernels of the source;
    its reference in PyTorch takes 0 for it. A token whose `token_mask` is False keeps x, whatever k and v
    hold. In float32, rounded once.
    """
    result: Tensor = launch(OP, x, k, v, w, token_mask, eps, out)
    return result


def reference(
    x: Tensor, k: Tensor, v: Tensor, w: Tensor, *, eps: float, token_mask: Tensor | None = None
) -> Tensor:
    """The formulas in float64."""
    a, b = x.double(), k.double()
    ra, rb = ((t.square().mean(-1) + eps).rsqrt() for t in (a, b))
    d = (w.double() * a * b).sum(-1) * ra * rb * x.shape[-1] ** -0.5
    gate = torch.copysign(d.abs().clamp_min(1e-6).sqrt(), d).sigmoid()
    y = (a + gate[..., None] * v.double()[:, None]).to(x.dtype)
    return y if token_mask is None else torch.where(token_mask[:, None, None], y, x)


def inputs(dims: Dims, rng: torch.Generator) -> dict[str, Any]:
    """Keys that look like the streams, one way or the other; a token of zeros where there are several."""
    t, n, d = dims["T"], dims["n"], dims["D"]
    dtype = torch.float32 if dims.get("f32") else torch.bfloat16
    streams = torch.randn(t, n, d, generator=rng)
    alike = torch.randn(t, n, 1, generator=rng)
    x: dict[str, Any] = {
        "x": streams.to(dtype),
        "k": (alike * streams + torch.randn(t, n, d, generator=rng)).to(dtype),
        "v": torch.randn(t, d, generator=rng).to(torch.bfloat16 if dims.get("f32") == 2 else dtype),
        "w": torch.rand(n, d, generator=rng) + 0.5,
        "eps": 1e-20,
    }
    if t > 3:
        x["k"][1] = 0
        x["x"][2] = 0
    if dims.get("mask"):
        x["token_mask"] = torch.rand(t, generator=rng) < 0.5
    return x


OP = Op(
    fn=engram_gate,
    family="engram",
    args=(
        Arg("x", "T n D", "f32 bf16", "the residual streams"),
        Arg("k", "T n D", "f32 bf16", "the key of what was looked up, for each stream"),
        Arg("v", "T D", "f32 bf16", "its value"),
        Arg("w", "n D", "f32", "weights of both norms, multiplied"),
        Arg("token_mask", "T", "bool", "False: nothing is added"),
    ),
    outs=(Out("out", "T n D", "x", "the streams behind it"),),
    reference=reference,
    inputs=inputs,
    test_dims=(
        {"T": 5, "n": 4, "D": 37},
        {"T": 4, "n": 4, "D": 600, "mask": 1},
        {"T": 3, "n": 2, "D": 128, "f32": 1},
        {"T": 6, "n": 3, "D": 50, "f32": 2, "mask": 1},
        {"T": 2, "n": 1, "D": 1},
        {"T": 0, "n": 4, "D": 16},
    ),
    bench_dims=({"T": 1, "n": 4, "D": 4096}, {"T": 512, "n": 4, "D": 4096}),
    spoil=lambda x: {**x, "k": -x["k"]},
    source="TileKernels engram_gate",
    max_err=2**-8,
    rows=("x", "k", "v", "token_mask"),
    flops=lambda d: 10.0 * d["T"] * d["n"] * d["D"],
    bytes=lambda d: 2.0 * d["T"] * d["D"] * (3 * d["n"] + 1),
)

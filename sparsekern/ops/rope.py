"""Rotary positions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from sparsekern.backend import launch
from sparsekern.schema import Arg, Dims, DtypeError, Op, Option, Out, ShapeError

Layout = Literal["interleaved", "half"]
YARN = ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow")


def rope(
    x: Tensor,
    positions: Tensor,
    *,
    theta: float,
    rotary_dim: int,
    layout: Layout,
    offset: int,
    inverse: bool = False,
    yarn: Mapping[str, float] | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Rotate pairs of channels by an angle that grows with the token's position.

        angle[t, i] = positions[t] theta^(-2 i / rotary_dim), i < rotary_dim / 2
        (a, b) -> (a cos - b sin, b cos + a sin)

    Pair i is channels (2 i, 2 i + 1) with the layout "interleaved", (i, i + rotary_dim / 2) with "half",
    counted from channel `offset`; the others are copied. `inverse` turns backwards. positions[t] is that of
    x[t], in all its heads.

    `yarn` stretches slow pairs: with its `original_max_position_embeddings`, a pair that turns at most
    `beta_slow` times over them is slowed down by `factor`, one that turns `beta_fast` times is not, and
    between these two pairs, rounded outwards, the share grows evenly. There is no factor on the result.

    Frequencies and angles are rounded to float32 after every step, as models are trained and as transformers
    does it; cosine and sine are then those of that angle, rounded once. Products and sums in float32, the
    result rounded once.
    """
    result: Tensor = launch(
        OP, x, positions, theta, rotary_dim, layout, offset, inverse, *yarn_options("rope", yarn), out
    )
    return result


def yarn_options(op: str, yarn: Mapping[str, float] | None) -> tuple[float | None, ...]:
    """The numbers of YaRN in the order of `YARN`.

    Raises:
        DtypeError, ShapeError: it is no mapping, or has other keys.
    """
    if yarn is None:
        return (None,) * len(YARN)
    if not isinstance(yarn, Mapping):
        raise DtypeError(f"{op}: yarn is {type(yarn).__name__}, expected a dict or None")
    if set(yarn) != set(YARN):
        raise ShapeError(f"{op}: yarn has {', '.join(map(str, yarn))}, expected {', '.join(YARN)}")
    return tuple(yarn[name] for name in YARN)


YARN_OPTIONS = tuple(Option(f"yarn_{name}", "float", None, nullable=True) for name in YARN)


def frequencies(theta: float, rotary_dim: int, yarn: Mapping[str, float] | None) -> Tensor:
    """Of each pair, in float32 after every step."""
    exponent = torch.arange(0, rotary_dim, 2).float() / rotary_dim
    period = (torch.tensor(theta, dtype=torch.float64) ** exponent.double()).float()
    if yarn is None:
        return 1 / period

    def pair(turns: float) -> float:
        return (
            rotary_dim
            * math.log(yarn["original_max_position_embeddings"] / (turns * 2 * math.pi))
            / (2 * math.log(theta))
        )

    low, high = (
        max(math.floor(pair(yarn["beta_fast"])), 0),
        min(math.ceil(pair(yarn["beta_slow"])), rotary_dim - 1),
    )
    ramp = (torch.arange(rotary_dim // 2).float() - low) / (high - low if high != low else 0.001)
    kept = 1 - ramp.clamp(0, 1)
    return 1 / (yarn["factor"] * period) * (1 - kept) + 1 / period * kept


def reference(
    x: Tensor,
    positions: Tensor,
    *,
    theta: float,
    rotary_dim: int,
    layout: Layout,
    offset: int,
    inverse: bool = False,
    yarn: Mapping[str, float] | None = None,
) -> Tensor:
    """Angles in float32, complex numbers in float64."""
    angle = (positions.float()[:, None] * frequencies(theta, rotary_dim, yarn)).double()
    angle = angle.view(len(x), *(1,) * (x.dim() - 2), rotary_dim // 2)
    pairs = x[..., offset : offset + rotary_dim].double()
    pairs = (
        pairs.unflatten(-1, (2, -1)).transpose(-1, -2) if layout == "half" else pairs.unflatten(-1, (-1, 2))
    )
    turned = torch.view_as_real(
        torch.view_as_complex(pairs.contiguous())
        * torch.polar(torch.ones_like(angle), -angle if inverse else angle)
    )
    y = x.clone()
    y[..., offset : offset + rotary_dim] = (
        turned.transpose(-1, -2).flatten(-2) if layout == "half" else turned.flatten(-2)
    ).to(x.dtype)
    return y


def inputs(dims: Dims, rng: torch.Generator) -> dict[str, Any]:
    """Normal rows at positions near and far, as DeepSeek-V4's compressed layers rotate them with `yarn`."""
    t, d, width = dims["T"], dims["D"], dims.get("rotary_dim", dims["D"])
    heads = [dims[h] for h in ("G", "H") if h in dims]
    positions = torch.randint(dims.get("length", 5000), (t,), generator=rng, dtype=torch.int32)
    if t > 1:
        positions[0], positions[1] = 0, -3
    x = {
        "x": torch.randn(t, *heads, d, generator=rng).to(
            torch.float32 if dims.get("f32") else torch.bfloat16
        ),
        "positions": positions,
        "theta": 160000.0 if dims.get("yarn") else 10000.0,
        "rotary_dim": width,
        "layout": "half" if dims.get("half") else "interleaved",
        "offset": dims.get("offset", d - width),
        "inverse": bool(dims.get("inverse")),
    }
    if dims.get("yarn"):
        x["yarn"] = dict(zip(YARN, (16, 65536 >> (dims["yarn"] - 1), 32, 1), strict=True))
    return x


OP = Op(
    fn=rope,
    family="attention",
    args=(
        Arg("x", "... D", "f32 bf16", "rows, one or more for each token: [T, ..., D]"),
        Arg("positions", "T", "i32", "of each token"),
    ),
    outs=(Out("out", "... D", "x", "the rotated rows"),),
    reference=reference,
    inputs=inputs,
    test_dims=(
        {"T": 5, "H": 3, "D": 96, "rotary_dim": 64},
        {"T": 4, "D": 80, "rotary_dim": 64, "half": 1, "offset": 7},
        {"T": 3, "H": 2, "D": 128, "rotary_dim": 64, "yarn": 1, "f32": 1, "length": 1000000},
        {"T": 3, "G": 2, "H": 2, "D": 70, "rotary_dim": 64, "yarn": 5, "inverse": 1, "length": 2**31 - 1},
        {"T": 3, "H": 5, "D": 37, "rotary_dim": 26, "offset": 3, "f32": 1},
        {"T": 2, "D": 50, "rotary_dim": 50},
        {"T": 6, "D": 34, "rotary_dim": 22, "half": 1, "offset": 1, "inverse": 1, "f32": 1},
        {"T": 2, "H": 1, "D": 2},
        {"T": 0, "H": 4, "D": 64},
        {"T": 2, "H": 0, "D": 64},
    ),
    bench_dims=(
        {"T": 1, "H": 128, "D": 512, "rotary_dim": 64, "yarn": 1},
        {"T": 512, "H": 128, "D": 512, "rotary_dim": 64, "yarn": 1},
        {"T": 4096, "D": 512, "rotary_dim": 64, "yarn": 1},
    ),
    spoil=lambda x: {**x, "positions": x["positions"] + 1},
    source="arXiv 2104.09864, 2309.00071",
    max_err=2**-8,
    rows=("x", "positions"),
    apart=("yarn",),
    hidden=YARN_OPTIONS,
    flops=lambda d: 3.0 * d["T"] * d.get("H", 1) * d["rotary_dim"],
    bytes=lambda d: 4.0 * d["T"] * d.get("H", 1) * d["D"],
)

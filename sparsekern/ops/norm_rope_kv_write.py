"""From projected keys to records of a paged KV cache in one pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sparsekern.backend import launch
from sparsekern.ops import kv_write
from sparsekern.ops._kv import KvFormat, ScaleRounding
from sparsekern.ops.rope import YARN, YARN_OPTIONS, Layout, frequencies, yarn_options
from sparsekern.schema import Arg, Dims, Op


def norm_rope_kv_write(
    pool: Tensor,
    slots: Tensor,
    values: Tensor,
    positions: Tensor,
    norm_weight: Tensor | None = None,
    *,
    eps: float,
    theta: float,
    rotary_dim: int,
    layout: Layout,
    offset: int,
    yarn: Mapping[str, float] | None = None,
    format: KvFormat,
    page_size: int,
    scale_rounding: ScaleRounding = "pow2",
    amax_floor: float | None = None,
) -> None:
    """Normalise rows, rotate a part of them and write them as records of the pool, in place.

        y[t, :] = values[t, :], the first W channels as rms_norm(values[t, :W], norm_weight, eps=eps)
        kv_write(pool, slots, rope(y, positions, ...), ...)

    W is the length of norm_weight: all channels in DeepSeek-V4, the latent before the rotated channels in
    V3.2, none where it is not given, as for what `compress_kv` makes. The bytes are those of the three ops
    one after the other, each of which rounds to the dtype of values; nothing is written in between. A slot
    below 0 skips its token, and nothing is computed for it. The options are those of `rope` and `kv_write`.
    """
    numbers = yarn_options("norm_rope_kv_write", yarn)
    rotation = (theta, rotary_dim, layout, offset)
    record = (format, page_size, scale_rounding, amax_floor)
    launch(OP, pool, slots, values, positions, norm_weight, eps, *rotation, *record, *numbers, None)


def reference(
    pool: Tensor,
    slots: Tensor,
    values: Tensor,
    positions: Tensor,
    norm_weight: Tensor | None = None,
    *,
    eps: float,
    theta: float,
    rotary_dim: int,
    layout: Layout,
    offset: int,
    yarn: Mapping[str, float] | None = None,
    format: KvFormat,
    page_size: int,
    scale_rounding: ScaleRounding = "pow2",
    amax_floor: float | None = None,
) -> None:
    """In float32, product by product: codes show the last bit. Cosines and means of squares from float64."""
    y = values.clone()
    if norm_weight is not None:
        x = values[:, : len(norm_weight)]
        mean = x.double().square().mean(1, keepdim=True).float()
        root = (mean + eps).double().sqrt().float()  # torch's own root of float32 is an ulp off now and then
        y[:, : x.shape[1]] = (x.float() * (1 / root) * norm_weight.float()).to(y.dtype)
    angle = (positions.float()[:, None] * frequencies(theta, rotary_dim, yarn)).double()
    cosine, sine = angle.cos().float(), angle.sin().float()
    part = y[:, offset : offset + rotary_dim].float()
    a, b = part.chunk(2, 1) if layout == "half" else (part[:, 0::2], part[:, 1::2])
    turned = torch.stack([a * cosine - b * sine, b * cosine + a * sine], 1 if layout == "half" else 2)
    y[:, offset : offset + rotary_dim] = turned.flatten(1).to(y.dtype)
    kv_write.reference(
        pool,
        slots,
        y,
        format=format,
        page_size=page_size,
        scale_rounding=scale_rounding,
        amax_floor=amax_floor,
    )


def inputs(dims: Dims, rng: torch.Generator) -> dict[str, Any]:
    """As for kv_write, but rows of small integers times powers of two: their squares have exact sums."""
    x = kv_write.inputs(dims, rng)
    t, width = x["values"].shape
    integers = torch.randint(-100, 101, (t, width), generator=rng)
    sizes = torch.randint(-12, 6, (t, 1), generator=rng).float().exp2()
    x["values"] = (integers * sizes).to(x["values"].dtype)
    x["positions"] = torch.randint(-10, 200000, (t,), generator=rng, dtype=torch.int32)
    if dims.get("W"):
        dtype = torch.float32 if dims.get("f32_weight") else torch.bfloat16
        x["norm_weight"] = (torch.rand(dims["W"], generator=rng) + 0.5).to(dtype)
    rotary_dim = dims.get("rotary_dim", 64)
    x |= {
        "eps": 1e-6,
        "theta": 160000.0 if dims.get("yarn") else 10000.0,
        "rotary_dim": rotary_dim,
        "layout": "half" if dims.get("half") else "interleaved",
        "offset": dims.get("offset", width - rotary_dim),
    }
    if dims.get("yarn"):
        x["yarn"] = dict(zip(YARN, (16, 65536, 32, 1), strict=True))
    return x


_MLA656, _MLA584, _MLA528, _INDEX132, _INDEX68, _BF16 = range(6)
_SMALL = {"T": 13, "pages": 4, "page_size": 5, "D": 40}

OP = Op(
    fn=norm_rope_kv_write,
    family="kv",
    args=(
        Arg(
            "pool",
            "pages page_bytes | pages page_size D",
            "u8 bf16 f32",
            "the pages, `kv_page_bytes` each",
            written=True,
        ),
        Arg("slots", "T", "i64 i32", "page * page_size + place of each token, or below 0"),
        Arg("values", "T D", "bf16 f32", "the tokens, as they were projected"),
        Arg("positions", "T", "i32", "of each token"),
        Arg("norm_weight", "W", "f32 bf16", "of the first W channels; none: they are not normalised"),
    ),
    outs=(),
    reference=reference,
    inputs=inputs,
    test_dims=(
        {**_SMALL, "format": _MLA656, "W": 512},
        {"T": 20, "pages": 3, "page_size": 64, "D": 40, "W": 512, "exact": 1, "f32_values": 1, "half": 1},
        {**_SMALL, "format": _MLA584, "W": 512, "yarn": 1},
        {**_SMALL, "format": _MLA584, "W": 512, "f32_weight": 1, "i32": 1, "floor": 1},
        {**_SMALL, "format": _MLA528, "W": 512, "yarn": 1, "f32_values": 1},
        {**_SMALL, "format": _INDEX132, "half": 1, "offset": 0},
        {**_SMALL, "format": _INDEX132, "W": 100, "exact": 1},
        {**_SMALL, "format": _INDEX68, "yarn": 1},
        {**_SMALL, "format": _BF16, "D": 96, "W": 96},
        {**_SMALL, "format": _BF16, "D": 41, "W": 17, "rotary_dim": 22, "f32": 1, "f32_values": 1},
        {**_SMALL, "format": _BF16, "D": 33, "rotary_dim": 6, "offset": 5, "half": 1, "f32": 1},
        {"T": 1, "pages": 1, "page_size": 1, "D": 2, "format": _BF16, "rotary_dim": 2, "W": 1},
        {"T": 0, "pages": 2, "page_size": 3, "D": 1, "format": _MLA584, "W": 512},
    ),
    bench_dims=tuple(
        {"T": t, "pages": 1024, "page_size": 64, "D": 576, "format": f, "W": 512, "yarn": 1}
        for f in (_MLA656, _MLA584, _MLA528)
        for t in (1, 512)
    ),
    spoil=lambda x: {**x, "positions": x["positions"] + 1},
    source="vllm fused_qnorm_rope_kv_insert and compress_norm_rope_store (what they fuse)",
    apart=("yarn",),
    hidden=YARN_OPTIONS,
    bytes=lambda d: 1700.0 * d["T"],
)

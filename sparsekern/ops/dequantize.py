"""FP8 and FP4 back to floating point."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsekern.backend import launch
from sparsekern.ops._small_floats import E2M1_VALUES, scale_value, spread, unpack_nibbles
from sparsekern.schema import Arg, Dims, Op, Out


def dequantize(
    q: Tensor,
    scale: Tensor,
    *,
    block: tuple[int, int] = (1, 128),
    dtype: torch.dtype = torch.bfloat16,
    out: Tensor | None = None,
) -> Tensor:
    """Multiply every code's value by the scale of its block.

        out[n, k] = value(q[n, k]) * scale[n / block[0], k / block[1]]

    in float32, rounded once to `dtype`, which is bfloat16 or float32. A `q` of dtype uint8 is packed FP4, two
    codes a byte, the earlier one in the lower half; its blocks count elements, (1, 32) as a rule. A UE8M0
    scale byte b is 2^(b - 127), but 0 is 0.0 and 255 infinity. NaN codes and NaN scales give NaN.
    """
    result: Tensor = launch(OP, q, scale, block, dtype, out)
    return result


def reference(
    q: Tensor, scale: Tensor, *, block: tuple[int, int] = (1, 128), dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    """The formula."""
    if q.dtype == torch.uint8:
        values = torch.tensor([*E2M1_VALUES, *(-v for v in E2M1_VALUES)])[unpack_nibbles(q).int()]
    else:
        values = q.float()
    return (values * spread(scale_value(scale), block, values.shape)).to(dtype)


def inputs(dims: Dims, rng: torch.Generator) -> dict[str, Any]:
    """All codes; scales of all sizes that are not NaN."""
    e, n, k, rows, cols = (dims[s] for s in ("E", "N", "K", "block_0", "block_1"))
    shape = (e, -(-n // rows), -(-k // cols))
    if dims.get("fp4"):
        q = torch.randint(0, 256, (e, n, k // 2), generator=rng, dtype=torch.uint8)
    else:
        q = torch.randint(0, 256, (e, n, k), generator=rng, dtype=torch.uint8)
        q = torch.where(q & 127 == 127, q - 1, q).view(torch.float8_e4m3fn)
    if dims.get("ue8m0"):
        scale = torch.randint(0, 240, shape, generator=rng, dtype=torch.uint8).view(torch.float8_e8m0fnu)
    else:
        scale = torch.rand(shape, generator=rng) * torch.exp2(torch.randint(-126, 100, shape, generator=rng))
    return {
        "q": q,
        "scale": scale,
        "block": (rows, cols),
        "dtype": torch.float32 if dims.get("f32") else torch.bfloat16,
    }


def _dims(e: int, n: int, k: int, rows: int = 1, cols: int = 128, **flags: int) -> Dims:
    return {"E": e, "N": n, "K": k, "block_0": rows, "block_1": cols, **flags}


OP = Op(
    fn=dequantize,
    family="quant",
    args=(
        Arg("q", "... N K", "e4m3 fp4", "codes"),
        Arg("scale", "... N/block_0 K/block_1", "f32 e8m0", "one scale per block"),
    ),
    outs=(Out("out", "... N K", "dtype", "values"),),
    reference=reference,
    inputs=inputs,
    test_dims=(
        _dims(1, 7, 512),
        _dims(2, 200, 150, 128, 128, f32=1),
        _dims(2, 9, 77, 3, 5, ue8m0=1),
        _dims(1, 5, 17, 1, 1),
        _dims(2, 6, 128, 1, 32, fp4=1, ue8m0=1),
        _dims(2, 7, 90, 2, 30, fp4=1, ue8m0=1, f32=1),
        _dims(1, 3, 2, 1, 32, fp4=1),
        _dims(1, 1, 1),
        _dims(2, 0, 128),
        _dims(1, 3, 0),
    ),
    bench_dims=(
        _dims(1, 4096, 7168),
        _dims(1, 4096, 7168, 128, 128),
        _dims(1, 2048, 7168, 1, 32, fp4=1, ue8m0=1),
    ),
    spoil=lambda x: {**x, "scale": x["scale"].view(torch.uint8).flip(-1).view(x["scale"].dtype)},
    source="TileKernels 36d9e45 cast_back",
    rows=("q", "scale"),
    flops=lambda d: 1.0 * d["E"] * d["N"] * d["K"],
    bytes=lambda d: (
        ((4.0 if d.get("f32") else 2.0) + (0.5 if d.get("fp4") else 1.0)) * d["E"] * d["N"] * d["K"]
    ),
)

"""The records of the paged KV cache, as tables and in plain PyTorch: what the ops and their references share.

A pool is pages of `page_size` records; slot s is place s % page_size of page s // page_size. A record is
quantised values, a scale a tile, and values kept as bf16. Some formats keep the scales inside the record,
others after all records of the page, in its footer.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from sparsekern.ops._small_floats import (
    E2M1_VALUES,
    E4M3_MAX,
    block_amax,
    e2m1_codes,
    pack_nibbles,
    scale_and_inverse,
    scale_value,
    spread,
    unpack_nibbles,
)
from sparsekern.schema import Dims, ShapeError

KvFormat = Literal["mla656", "mla584", "mla528", "index132", "index68", "bf16"]
ScaleRounding = Literal["pow2", "none"]


class Record(NamedTuple):
    """The bytes of one token.

    First the codes of the first `coded` values, last the other values as bf16. The scales lie between them,
    or in the footer of the page.
    """

    dim: int  # values
    coded: int  # of them quantised, the first ones
    tile: int  # coded values with one scale
    codes: int  # bytes of the codes
    scales: int  # bytes of the scales, padding included
    footer: bool  # where the scales are
    fp4: bool = False
    fp32_scales: bool = False
    multiple: int = 1  # of which a page's bytes are

    @property
    def data(self) -> int:
        """Bytes from one record of a page to the next."""
        return self.codes + 2 * (self.dim - self.coded) + (0 if self.footer else self.scales)


# The numbers of csrc/kv/format.h.
RECORDS: dict[str, Record] = {
    "mla656": Record(576, 512, 128, codes=512, scales=16, footer=False, fp32_scales=True),
    "mla584": Record(512, 448, 64, codes=448, scales=8, footer=True, multiple=576),
    "mla528": Record(512, 512, 32, codes=512, scales=16, footer=True, multiple=512),
    "index132": Record(128, 128, 128, codes=128, scales=4, footer=True, fp32_scales=True),
    "index68": Record(128, 128, 32, codes=64, scales=4, footer=True, fp4=True),
}
FORMATS = (*RECORDS, "bf16")  # in the order of KvFormat


def kv_page_bytes(format: KvFormat, page_size: int, *, head_dim: int | None = None) -> int:
    """Bytes of one page: the second dimension of a pool of that format.

    `head_dim` is for "bf16", whose pools have a dimension for it, [pages, page_size, head_dim]. Pages of
    "mla584" are rounded up to a multiple of 576, those of "mla528" to one of 512.

    Raises:
        ShapeError: there is no such format, or a size is not positive.
    """
    if format not in FORMATS:
        raise ShapeError(f"kv_page_bytes: format is {format!r}, expected {' or '.join(map(repr, FORMATS))}")
    if page_size < 1:
        raise ShapeError(f"kv_page_bytes: page_size is {page_size}, expected at least 1")
    if format == "bf16":
        if head_dim is None or head_dim < 1:
            raise ShapeError(f"kv_page_bytes: head_dim is {head_dim}, expected at least 1 for 'bf16'")
        return 2 * head_dim * page_size
    r = RECORDS[format]
    if head_dim not in (None, r.dim):
        raise ShapeError(f"kv_page_bytes: head_dim is {head_dim}, expected {r.dim} or None for {format!r}")
    return -(-page_size * (r.data + r.scales * r.footer) // r.multiple) * r.multiple


def is_index(format: object) -> bool:
    """Whether records of the format are keys of the indexer, gathered as codes and scales."""
    return isinstance(format, str) and format.startswith("index")


def plain(pool: Any) -> tuple[int, torch.dtype]:
    """Width and dtype of the records of a "bf16" pool, whatever the argument is."""
    shape: tuple[int, ...] = tuple(getattr(pool, "shape", ()))
    return (*shape, 0)[len(shape) - 1], pool.dtype if isinstance(pool, Tensor) else torch.float32


# --- for the references -------------------------------------------------------------------------------


def places(r: Record, slots: Tensor, page_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The page of each slot, and in it the places of its data [N, data] and of its scales [N, scales]."""
    page, place = slots // page_size, slots % page_size
    data = place[:, None] * r.data + torch.arange(r.data)
    if r.footer:
        scales = page_size * r.data + place[:, None] * r.scales + torch.arange(r.scales)
    else:
        scales = data[:, r.codes : r.codes + r.scales]
    return page, data, scales


def encode(r: Record, x: Tensor, scale_rounding: str, amax_floor: float | None) -> tuple[Tensor, Tensor]:
    """Records of rows of values: data [N, data] with nothing where the scales go, and scales [N, scales]."""
    if x.dtype == torch.float32:
        x = x.bfloat16().masked_fill(x.isnan(), torch.nan)
    floor = amax_floor if amax_floor is not None else 6 * 2**-126 if r.fp4 else 1e-4
    exact = scale_rounding == "none" and r.fp32_scales
    coded, tile = x[:, : r.coded], (1, r.tile)
    largest = E2M1_VALUES[-1] if r.fp4 else E4M3_MAX
    scale, inverse = scale_and_inverse(block_amax(coded, tile), largest, "fp32" if exact else "ue8m0", floor)
    y = coded.float() * spread(inverse, tile, coded.shape)
    if r.fp4:
        codes = pack_nibbles(e2m1_codes(y))
    else:
        codes = y.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).view(torch.uint8)
    stored = scale if r.fp32_scales else scale.to(torch.float8_e8m0fnu)
    scales = stored.contiguous().view(torch.uint8)
    scales = torch.cat([scales, scales.new_zeros(len(x), r.scales - scales.shape[1])], 1)
    rest = x[:, r.coded :].contiguous().view(torch.uint8)
    gap = scales.new_zeros(len(x), 0 if r.footer else r.scales)
    return torch.cat([codes, gap, rest], 1), scales


def decode(r: Record, data: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows of values of records."""
    codes, count = data[:, : r.codes].contiguous(), r.coded // r.tile
    if r.fp4:
        values = torch.tensor([*E2M1_VALUES, *(-v for v in E2M1_VALUES)])[unpack_nibbles(codes).int()]
    else:
        values = codes.view(torch.float8_e4m3fn).float()
    if r.fp32_scales:
        scale = scales.contiguous().view(torch.float32)
    else:
        scale = scale_value(scales[:, :count].contiguous().view(torch.float8_e8m0fnu))
    coded = (values * spread(scale, (1, r.tile), values.shape)).to(dtype)
    rest = data[:, r.data - 2 * (r.dim - r.coded) :].contiguous().view(torch.bfloat16)
    return torch.cat([coded, rest.to(dtype)], 1)


# --- for the tests' inputs ----------------------------------------------------------------------------


def format_of(dims: Dims) -> KvFormat:
    """Test sizes name a format by its number."""
    return FORMATS[dims.get("format", 0)]  # type: ignore[return-value]


def random_pool(dims: Dims, rng: torch.Generator) -> Tensor:
    """A pool of finite records: any code that is a number, any positive scale."""
    format_, pages, size = format_of(dims), dims["pages"], dims["page_size"]
    if format_ == "bf16":
        dtype = torch.float32 if dims.get("f32") else torch.bfloat16
        return torch.randn(pages, size, dims["D"], generator=rng).to(dtype)
    r = RECORDS[format_]
    pool = torch.randint(256, (pages, kv_page_bytes(format_, size)), generator=rng, dtype=torch.uint8)
    page, data, scales = places(r, torch.arange(pages * size), size)
    codes = torch.randint(256, (pages * size, r.codes), generator=rng, dtype=torch.uint8)
    if not r.fp4:
        codes = torch.where(codes & 127 == 127, codes - 1, codes)
    pool[page[:, None], data[:, : r.codes]] = codes
    rest = torch.randn(pages * size, r.dim - r.coded, generator=rng).bfloat16().view(torch.uint8)
    pool[page[:, None], data[:, r.data - 2 * (r.dim - r.coded) :]] = rest
    count = r.coded // r.tile
    if r.fp32_scales:
        scale = torch.rand(pages * size, count, generator=rng) + 2.0**-20
        scale = torch.where(torch.rand(scale.shape, generator=rng) < 0.5, scale.log2().floor().exp2(), scale)
        bytes_ = scale.view(torch.uint8)
    else:
        bytes_ = torch.randint(60, 180, (pages * size, r.scales), generator=rng, dtype=torch.uint8)
    pool[page[:, None], scales] = bytes_
    return pool


def pool_sizes(dims: Dims) -> dict[str, Any]:
    """The options that every op on records has."""
    return {"format": format_of(dims), "page_size": dims["page_size"]}

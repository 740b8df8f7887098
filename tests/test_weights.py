"""Weights in the forms that the GEMMs take: all of them say the same."""

import re
from typing import Any

import pytest
import torch
from cases import EACH_ISA, run
from torch import Tensor

import sparsekern
from sparsekern import Sparse2to4
from sparsekern.catalogue import OPS
from sparsekern.schema import DtypeError, ShapeError
from sparsekern.testing import assert_same_bits, seeded
from sparsekern.weights import FORMATS, random_weights

KINDS = (torch.float32, torch.bfloat16, torch.float8_e4m3fn)
SPARSE = [name for name in FORMATS if name.endswith("_2to4")]
GEMM = OPS["gemm"]


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("k", [4, 12, 64, 136])
def test_dense_form_of_sparse_weights(dtype: torch.dtype, k: int) -> None:
    w = torch.randn(3, 5, k).to(dtype)
    sparse = sparsekern.sparsify_2to4(w)
    dense = sparse.dense()
    assert dense.dtype == dtype
    stays = dense.float() != 0
    assert (stays.unflatten(-1, (-1, 4)).sum(-1) == 2).all()
    assert_same_bits(dense, torch.where(stays, w.float(), 0).to(dtype))
    smallest_kept = torch.where(stays, w.float().abs(), torch.inf).unflatten(-1, (-1, 4)).amin(-1)
    largest_gone = torch.where(stays, 0, w.float().abs()).unflatten(-1, (-1, 4)).amax(-1)
    assert (smallest_kept >= largest_gone).all()
    assert_same_bits(sparsekern.sparsify_2to4(dense), sparse)


@pytest.mark.parametrize("isa", EACH_ISA)
@pytest.mark.parametrize("rows", [1, 30, 300])
@pytest.mark.parametrize("kind", ["e4m3", "fp4"])
def test_every_code_is_decoded_exactly(kind: str, rows: int, isa: str) -> None:
    codes = torch.arange(256, dtype=torch.uint8).repeat(3)[:, None].repeat(1, 256)
    b = codes.view(torch.float8_e4m3fn) if kind == "e4m3" else codes
    k = 256 if kind == "e4m3" else 512
    a = torch.zeros(rows, k)
    a[:, 77] = 1
    value = sparsekern.reference.gemm(a[:1], b, out_dtype=torch.float32)
    got = run(GEMM, {"a": a, "b": sparsekern.pack_weights(b), "out_dtype": torch.float32}, isa=isa)
    same = (got == value) | (got.isnan() & value.isnan())
    assert same.all()
    bf16 = run(
        GEMM, {"a": a.bfloat16(), "b": sparsekern.pack_weights(b), "out_dtype": torch.float32}, isa=isa
    )
    assert_same_bits(bf16, got)


@pytest.mark.parametrize("isa", EACH_ISA)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("rows", [1, 7, 70, 300])
@pytest.mark.parametrize("name", SPARSE)
def test_sparse_weights_give_the_bits_of_dense_ones(name: str, rows: int, packed: bool, isa: str) -> None:
    rng = seeded(GEMM, {"rows": rows})
    w = random_weights(90, 204, name, rng, block=(8, 68))
    a = torch.randn(rows, 204, generator=rng).bfloat16()
    dense = {"b": w["b"].dense(), "b_scale": w.get("b_scale")}
    if "b_scale" in w:
        dense["b_block"] = w["b_block"] = (8, 68)
    if packed:
        w = {"b": sparsekern.pack_weights(w["b"], w.get("b_scale"), block=w.get("b_block"))}
        assert w["b"].format == name
    options = {"a": a, "out_dtype": torch.float32}
    assert_same_bits(run(GEMM, {**options, **w}, isa=isa), run(GEMM, {**options, **dense}, isa=isa))


@pytest.mark.parametrize("name", FORMATS)
def test_packed_weights_say_what_they_hold(name: str) -> None:
    w = random_weights(64, 256, name, seeded(GEMM, {}), experts=3)
    packed = sparsekern.pack_weights(w["b"], w.get("b_scale"))
    values = w["b"].values if isinstance(w["b"], Sparse2to4) else w["b"]
    assert (packed.format, packed.shape, packed.dtype) == (name, (3, 64, 256), values.dtype)
    of_dense = {"bf16_2to4": 72 / 128, "e4m3_2to4": 40 / 64}.get(name, 1.0)
    dense = w["b"].dense() if isinstance(w["b"], Sparse2to4) else w["b"]
    assert packed.data.nbytes == dense.nbytes * of_dense
    rows, scale = packed.unpack()
    assert isinstance(rows, type(w["b"]))
    assert_same_bits(rows, w["b"])
    assert (scale is None) == ("b_scale" not in w)


# --- sparse weights that are none ---------------------------------------------------------------------------


def sparse(n: int = 8, k: int = 32) -> Sparse2to4:
    return sparsekern.sparsify_2to4(torch.randn(n, k).bfloat16())


def with_mask(mask: int) -> Sparse2to4:
    w = sparse()
    w.metadata[3, 2] = mask
    return w


WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "float32": (sparsekern.sparsify_2to4(torch.randn(8, 32)), DtypeError, "values is torch.float32"),
    "signed masks": (sparse()._replace(metadata=sparse().metadata.view(torch.int8)), DtypeError, "metadata"),
    "no values": (sparse()._replace(values=None), DtypeError, "values is NoneType"),
    "values for other K": (sparse()._replace(values=sparse(8, 64).values), ShapeError, "metadata has shape"),
    "rows for other N": (sparse()._replace(metadata=sparse(4).metadata), ShapeError, "metadata has shape"),
    "one dimension": (Sparse2to4(*(t[0] for t in sparse())), ShapeError, "values have shape"),
    "K of 30": (Sparse2to4(sparse().values[:, :15].contiguous(), sparse().metadata), ShapeError, "K/2"),
    "transposed": (sparse()._replace(values=sparse(16, 16).values.mT), ShapeError, "contiguous"),
    "three bits": (with_mask(0x37), ShapeError, "other than two bits"),
    "one bit": (with_mask(0x13), ShapeError, "other than two bits"),
    "no bit": (with_mask(0x30), ShapeError, "other than two bits"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_sparse_weights(what: str) -> None:
    weights, error, says = WRONG[what]
    a = torch.randn(2, 32).bfloat16()
    out = torch.full((2, 8), 7.0, dtype=torch.bfloat16)
    with pytest.raises(error, match=rf"^gemm: b.*{re.escape(says)}"):
        sparsekern.gemm(a, weights, out=out)
    assert (out == 7).all()
    with pytest.raises(error, match=rf"^pack_weights: b.*{re.escape(says)}"):
        sparsekern.pack_weights(weights)


def test_blocks_that_cut_a_four() -> None:
    w = sparsekern.sparsify_2to4(torch.randn(8, 32).to(torch.float8_e4m3fn))
    with pytest.raises(ShapeError, match=r"^gemm: b is 2:4 with blocks of 6 along K"):
        sparsekern.gemm(torch.randn(2, 32).bfloat16(), w, b_scale=torch.ones(1, 6), b_block=(8, 6))


def test_sparse_weights_of_another_width() -> None:
    with pytest.raises(ShapeError, match=r"^gemm: .*64"):
        sparsekern.gemm(torch.randn(2, 64).bfloat16(), sparse())


def test_sparse_experts() -> None:
    """The whole layer, as an engine would call it."""
    rng = torch.Generator().manual_seed(1)
    t, h, i, e, k = 9, 128, 64, 5, 2
    up, down = (random_weights(n, c, "e4m3_2to4", rng, e) for n, c in ((2 * i, h), (h, i)))
    x = torch.randn(t, h, generator=rng).bfloat16() / 8
    ids = torch.randint(0, e, (t, k), generator=rng).int()
    weights = torch.rand(t, k, generator=rng)

    def layer(first: Tensor | Sparse2to4, second: Tensor | Sparse2to4) -> Tensor:
        scales = {"w13_scale": up["b_scale"], "w2_scale": down["b_scale"]}
        return sparsekern.fused_moe(x, first, second, weights, ids, **scales)

    assert_same_bits(layer(up["b"], down["b"]), layer(up["b"].dense(), down["b"].dense()))

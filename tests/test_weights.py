"""Weights in the forms that the GEMMs take."""

import pytest
import torch

import sparsekern
from sparsekern.testing import assert_same_bits

KINDS = (torch.float32, torch.bfloat16, torch.float8_e4m3fn)


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

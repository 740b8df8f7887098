"""nvcc takes every CUDA source."""

from pathlib import Path

import pytest

from .build import nvcc
from .extension import CSRC, device_sources, ops_on_cuda, ptx_for

pytestmark = pytest.mark.devmodel
# Sources that start others' kernels.
HOST_ONLY = {"kernels/moe_permutation/cuda.cu", "kernels/gemm/cuda.cu"}
SOURCES = {str(p.relative_to(CSRC)): p for p in device_sources(ops_on_cuda())}


@pytest.mark.parametrize("name", SOURCES)
def test_compiles(name: str) -> None:
    if nvcc() is None:
        pytest.skip("no nvcc: CUDA kernels are not compiled")
    ptx = ptx_for(Path(SOURCES[name]), "sm_80")
    assert (".entry" in ptx) == (name not in HOST_ONLY)

"""Kernels with one defect each: the model finds it under every schedule, and nothing where there is none."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from .build import library, nvcc, ptx_of
from .device import POLICIES, Device

# defect -> what the model says, in the kernel `sums`
SUMS = {
    1: "race|uninitialised",
    2: "race",
    3: "uninitialised",
    4: "deadlock",
    5: "divergent barrier",
    6: "out of bounds",
    7: "out of bounds",
    8: "misaligned",
    9: "divergent warp operation",
    10: "race: read after write|uninitialised",
    11: "race",
    16: "unwritten",
    22: "deadlock",
    23: "race",
    24: "race",
}
PRODUCT = {12: "asynchronous write in flight", 13: "race", 14: "race", 15: "misaligned"}
INCREMENTS = {
    17: "deadlock",
    18: "deadlock|race",
    19: "asynchronous write in flight|uninitialised",
    20: "race",
    21: "missing proxy fence",
    25: "race",
    26: "write to what an asynchronous store still reads",
}


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    if nvcc() is None:
        pytest.skip("no nvcc")
    ptx = ptx_of(Path(__file__).parent / "kernels" / "defects.cu", "sm_90a")
    yield Device(library(ptx.read_text(), "defects"))


def found(device: Device, unwritten: int) -> list[str]:
    return [str(e) for e in device.errors()] + ["unwritten"] * bool(unwritten)


def check(said: list[str], wanted: str) -> None:
    assert any(re.match(wanted, s) for s in said), f"expected {wanted!r} among {said}"


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("defect", [0, *SUMS])
def test_sums(device: Device, defect: int, policy: str) -> None:
    n = 250
    device.configure(policy, seed=defect)
    with device.cleared():
        x = device.put(torch.arange(n, dtype=torch.int32) * 7 % 31)
        y, counts = device.empty(n, dtype=torch.int32), device.put(torch.zeros(8, dtype=torch.int32))
        device.launch("sums", 2, 128, x, y, counts, n, defect)
        said = found(device, device.unwritten(y))
        if defect:
            check(said, SUMS[defect])
        else:
            assert said == []
            assert int(counts.sum()) == 256
            assert torch.equal(y, torch.arange(256, dtype=torch.int32).reshape(8, 32).flip(1).flatten()[:n])


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("defect", [0, *PRODUCT])
def test_product(device: Device, defect: int, policy: str) -> None:
    device.configure(policy, seed=defect)
    rng = torch.Generator().manual_seed(0)
    a, b = (torch.randn(m, 80, generator=rng).bfloat16() for m in (16, 8))
    with device.cleared():
        c = device.empty(16, 8)
        device.launch("product", 1, 64, device.put(a), device.put(b), c, 80, defect)
        said = found(device, device.unwritten(c))
        if defect:
            check(said, PRODUCT[defect])
        else:
            assert said == []
            torch.testing.assert_close(c, a.float() @ b.float().T)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("defect", [0, *INCREMENTS])
def test_increments(device: Device, defect: int, policy: str) -> None:
    device.configure(policy, seed=defect)
    with device.cleared():
        x = torch.arange(7 * 32, dtype=torch.int32)
        y = device.empty(7 * 32, dtype=torch.int32)
        device.launch("increments", 1, 64, device.put(x), y, 7, defect)
        said = found(device, device.unwritten(y))
        if defect:
            check(said, INCREMENTS[defect])
        else:
            assert said == []
            assert torch.equal(y, x + 1)


def test_an_error_names_its_source(device: Device) -> None:
    device.configure()
    with device.cleared():
        x, y, counts = (device.put(torch.zeros(n, dtype=torch.int32)) for n in (127, 128, 8))
        device.launch("sums", 1, 128, x, y, counts, 128, 0)
        error = device.errors()[0]
    source = Path(error.file).read_text().splitlines()[error.line - 1]
    assert (
        "x[i]" in source and error.kind == "out of bounds" and "thread 127 of block (0, 0, 0)" in error.text
    )

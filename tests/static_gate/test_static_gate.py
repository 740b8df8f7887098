"""The gate itself, and the kernels against what is checked in."""

import pytest
from devmodel.build import nvcc

from . import gate

needs_nvcc = pytest.mark.skipif(nvcc() is None, reason="no nvcc: CUDA kernels are not compiled")
CHECKED_IN = sorted(p.stem for p in gate.BASELINES.glob("*.json"))


@needs_nvcc
@pytest.mark.devmodel
@pytest.mark.parametrize("arch", CHECKED_IN)
@pytest.mark.parametrize("source", [pytest.param(s, id=f"{s.parent.name}-{s.stem}") for s in gate.sources()])
def test_kernels_are_as_checked_in(source, arch):
    now, known = gate.measure(source, arch), gate.baseline(arch)
    if gate.tool("nvdisasm") is None:  # what only its output tells
        known = {
            n: {k: v for k, v in f.items() if k in {*gate.EXACT, "registers", "roofline"}}
            for n, f in known.items()
        }
    rows = [r for name, facts in now.items() for r in gate.differences(name, known.get(name, {}), facts)]
    assert not rows, "\n" + gate.table(rows)
    assert not [line for name, facts in now.items() for line in gate.broken_rules(name, facts)]


def test_occupancy_is_what_the_calculator_says():
    assert gate.occupancy("sm_90", 113, 128, 16 << 10) == 4
    assert gate.occupancy("sm_90", 168, 384, 213 << 10) == 1
    assert gate.occupancy("sm_80", 32, 256, 0) == 8
    assert gate.occupancy("sm_86", 32, 256, 0) == 6
    assert gate.occupancy("sm_80", 255, 256, 0) == 1


def test_more_registers_and_spills_are_differences():
    old = {"registers": 40, "spilled": 0, "mix": {"tensor": 16}}
    assert not list(gate.differences("k", old, {**old, "registers": 41}))
    rows = list(gate.differences("k", old, {"registers": 60, "spilled": 8, "mix": {}}))
    assert {r[1] for r in rows} == {"registers", "spilled", "mix: tensor"}
    assert "registers" in gate.table(rows)


def test_rules_name_what_is_missing_and_what_must_not_be():
    name = "gemm::tensor_gemm<16, 8, 64>"
    facts = {"spilled": 4, "stack": 0, "mix": {"tensor": 3, "local": 2}}
    said = list(gate.broken_rules(name, facts))
    assert said == [
        f"{name}: 4 bytes spilled",
        f"{name}: no async copy instructions",
        f"{name}: 2 local instructions",
    ]

"""The rules of the design that a compiler does not enforce, read from the sources and from what was built."""

import ast
import os
import re
import subprocess
from pathlib import Path

import pytest
from cases import EACH_OP

from sparsekern import _C
from sparsekern.catalogue import OPS
from sparsekern.config import ISAS
from sparsekern.schema import Op

ROOT = Path(__file__).parents[1]
CSRC = ROOT / "csrc"
PACKAGE = ROOT / "sparsekern"

# Where a file of a layer may include from; what a layer may include is everything below it.
LAYERS = {
    "core": {"core"},
    "simd": {"simd", "core"},
    "gemm": {"gemm", "simd", "core"},
    "moe": {"moe", "simd", "core"},
    "rope": {"rope", "simd", "core"},
    "norm": {"norm", "simd", "core"},
    "hyper": {"hyper", "simd", "core"},
    "quant": {"quant", "simd", "core"},
    "kv": {"kv", "simd", "core"},
    "attention": {"attention", "gemm", "simd", "core"},
    "indexer": {"indexer", "gemm", "simd", "core"},
    "probes": {"probes", "simd", "core"},
    "cuda": {"cuda", "core"},
}
DEVICE = (".cu", ".cuh")


def sources(*suffixes: str) -> list[Path]:
    return sorted(p for p in CSRC.rglob("*") if p.suffix in suffixes)


def includes(path: Path) -> list[tuple[str, str]]:
    """(bracket, name) of every include."""
    return re.findall(r'^\s*#\s*include\s+([<"])([^>"]+)[>"]', path.read_text(), re.MULTILINE)


def layer(path: Path) -> str:
    return path.relative_to(CSRC).parts[0]


# --- C++ sources ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sources(".h", ".cpp", *DEVICE), ids=lambda p: str(p.relative_to(CSRC)))
def test_includes_follow_the_layers(path: Path) -> None:
    own = layer(path)
    for bracket, name in includes(path):
        if bracket == "<":
            continue
        top, *rest = name.split("/")
        assert (CSRC / name).is_file() or name == "SK_ISA_HEADER", f"{name} is not relative to csrc/"
        if own == "bindings":
            good = top in {"bindings", *LAYERS} - {"simd"} or rest[-1] in ("op.h", "probes.h")
        elif own == "kernels":
            same = top == "kernels" and rest[0] == path.parent.name
            good = same or (top in LAYERS and (top != "cuda" or path.suffix in DEVICE))
        else:
            good = top in LAYERS[own] or (top == "cuda" and path.suffix in DEVICE)
        assert good, f"{path.relative_to(CSRC)} includes {name}"


@pytest.mark.parametrize("path", sources(".h", ".cpp"), ids=lambda p: str(p.relative_to(CSRC)))
def test_python_stays_in_the_bindings_and_torch_outside(path: Path) -> None:
    for _, name in includes(path):
        assert not name.startswith(("torch/", "ATen/", "c10/")), name
        if layer(path) != "bindings":
            assert not name.startswith(("pybind11", "Python.h")), name


@pytest.mark.parametrize("path", sources(".h", ".cpp", *DEVICE), ids=lambda p: str(p.relative_to(CSRC)))
def test_cuda_keeps_to_its_places(path: Path) -> None:
    """Its headers in device code and one binding, PTX in one folder, launches in one file."""
    place = str(path.relative_to(CSRC))
    if path.suffix not in DEVICE and place != "bindings/cuda/device.cpp":
        assert not [name for _, name in includes(path) if name.startswith("cuda_")]
    if path.suffix in DEVICE:
        assert "cuda/ptx/" in place or not re.search(r"\basm\b", _code(path))
        assert place == "cuda/launch.cuh" or "<<<" not in _code(path)


def isa_sources() -> list[Path]:
    """What is compiled once per instruction set, and every header that it may include."""
    below = [CSRC / "core" / name for name in ("types.h", "variant.h", "tensor_view.h", "parallel.h")]
    once = {CSRC / "gemm" / "plan.cpp", *(CSRC / "kv" / "store").iterdir()}
    return below + [
        p for p in sources(".h", ".cpp") if layer(p) not in ("bindings", "core") and p not in once
    ]


@pytest.mark.parametrize("path", isa_sources(), ids=lambda p: str(p.relative_to(CSRC)))
def test_kernels_include_no_standard_header(path: Path) -> None:
    """One of its inline functions, compiled for AVX-512, may be the copy that the linker keeps."""
    standard = {name for bracket, name in includes(path) if bracket == "<"}
    assert standard <= {"cstdint", "immintrin.h", "xmmintrin.h"}
    assert not re.search(r"\bstd::|\bthrow\b|\bmalloc\b", _code(path)), "no std::, exceptions, allocation"


def _code(path: Path) -> str:
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)


@pytest.mark.parametrize(
    "path",
    [
        *sources(".h", ".cpp", *DEVICE),
        *sorted(PACKAGE.rglob("*.py")),
        *sorted(Path(__file__).parent.glob("*.py")),
    ],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 500


# --- one op, one folder, one file -------------------------------------------------------------------------


def test_every_op_has_its_folder_and_its_file() -> None:
    folders = {p.parent.name for p in CSRC.glob("kernels/*/op.h")}
    assert {p.name for p in (CSRC / "kernels").iterdir() if p.is_dir()} == folders
    files = {p.stem for p in (PACKAGE / "ops").glob("*.py") if not p.stem.startswith("_")}
    assert files == set(OPS)
    assert files <= folders | SHARED.keys()
    assert folders <= files
    for name, op in OPS.items():
        assert op.fn.__module__ == f"sparsekern.ops.{name}"


# Ops whose kernel is another op's.
SHARED = {
    "grouped_gemm": "gemm",
    "grouped_gemm_masked": "gemm",
    "sparse_mla_prefill": "sparse_attention",
    "indexer_logits_paged": "indexer_logits",
    "indexer_topk_paged": "indexer_topk",
}


@pytest.mark.parametrize("op", EACH_OP)
def test_records_are_complete(op: Op) -> None:
    assert op.fn.__doc__ and op.reference.__doc__ and op.source
    assert all(a.doc for a in op.args) and all(o.doc for o in op.outs)
    assert len(op.test_dims) >= 2 and op.bench_dims
    assert all(op.flops(d) >= 0 and op.bytes(d) >= 0 for d in op.bench_dims)
    assert set(op.rows) <= {a.name for a in op.args}
    told = op.fn.__doc__
    for name in re.findall(r"`(\w+)`", op.fn.__doc__):  # "as in `quantize_fp8`"
        told += (OPS[name].fn.__doc__ or "") if name in OPS else ""
    for o in op.options:
        words = (o.name, o.name.rsplit("_", 1)[0], *(f'"{c}"' for c in o.choices))
        assert o in op.hidden or any(word in told for word in words), (
            f"{op.name} does not say what {o.name} is"
        )


# --- what was built ---------------------------------------------------------------------------------------


def build_folder() -> Path:
    named = os.environ.get("SPARSEKERN_BUILD_DIR")
    found = [Path(named)] if named else sorted(ROOT.glob("build/*/"), key=lambda p: p.stat().st_mtime)
    found = [p for p in found if any(p.glob("CMakeFiles/kernels_*.dir"))]
    if not found:
        pytest.skip("no build folder with objects; name one in SPARSEKERN_BUILD_DIR")
    return found[-1]


def test_kernels_define_no_weak_symbols() -> None:
    """A weak symbol compiled for AVX-512 can replace the portable one and crash older processors."""
    objects = [p for isa in ISAS for p in build_folder().glob(f"CMakeFiles/kernels_{isa}.dir/**/*.o")]
    assert objects
    listed = subprocess.run(
        ["nm", "-A", *map(str, objects)], capture_output=True, text=True, check=True
    ).stdout
    if "__asan_init" in listed:
        pytest.skip("a build with sanitizers is not shipped")
    assert not [line for line in listed.splitlines() if re.search(r" [WVu] ", line)]


def test_library_needs_little() -> None:
    needed = _readelf("-d", str(_C.__file__))
    libraries = re.findall(r"\(NEEDED\).*\[(.*)\]", needed)
    assert "libgomp.so.1" in libraries, "torch's own OpenMP runtime, by the name that torch's copy has"
    allowed = r"lib(gomp|c|m|pthread|dl)\.so\.\d|ld-linux-x86-64\.so\.2|lib(a|ub)san\.so.*"
    assert [name for name in libraries if not re.fullmatch(allowed, name)] == []
    assert not re.search(r"R(UN)?PATH", needed)


def test_library_exports_nothing_of_ours_but_its_entry() -> None:
    symbols = re.findall(
        r" (?:GLOBAL|WEAK) +DEFAULT +\d+ (\S+)", _readelf("--dyn-syms", "-W", str(_C.__file__))
    )
    assert "PyInit__C" in symbols
    assert not [name for name in symbols if re.match(r"_ZN?K?2sk", name)]


def _readelf(*arguments: str) -> str:
    try:
        return subprocess.run(["readelf", *arguments], capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        pytest.skip("no readelf")


def test_stub_tells_what_the_library_has() -> None:
    stub = ast.parse((PACKAGE / "_C.pyi").read_text())
    told = {n.name for n in stub.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    told |= {
        n.target.id for n in stub.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)
    }
    assert told == {name for name in vars(_C) if not name.startswith("__")}

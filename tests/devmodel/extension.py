"""sparsekern._cuda with the model for a GPU: bindings and host code as shipped, kernels translated."""

from __future__ import annotations

import fcntl
import importlib.util
import re
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from sparsekern import backend
from sparsekern.catalogue import OPS
from sparsekern.schema import DTYPES, Op, ShapeError

from .build import CACHE, FLAGS, ROOT, BuildError, call, cuda_home, digest, nvcc, object_of, runtime_objects
from .device import Device

CSRC = ROOT / "csrc"
DEVICE_FLAGS = [
    "-std=c++20",
    "--fmad=false",
    "--expt-relaxed-constexpr",
    "-lineinfo",
    "-DSK_CUDA",
    f"-I{CSRC}",
]


def device_sources(ops: Sequence[str]) -> list[Path]:
    """What nvcc compiles for some ops."""
    folders = {KERNEL_OF.get(op, op) for op in ops} | {f for op in ops for f in RUNS_TOO.get(op, ())}
    own = [p for folder in sorted(folders) for p in CSRC.glob(f"kernels/{folder}/cuda*.cu")]
    shared = [
        p
        for folder in ("gemm", "moe")
        for p in CSRC.glob(f"{folder}/*.cu")
        if any(f'"{folder}/device.h"' in with_includes(s) for s in own)
    ]
    return sorted({*CSRC.glob("cuda/*.cu"), *own, *shared})


# Ops whose kernel is another op's.
KERNEL_OF = {
    "grouped_gemm": "gemm",
    "grouped_gemm_masked": "gemm",
    "sparse_mla_prefill": "sparse_attention",
    "indexer_logits_paged": "indexer_logits",
    "indexer_topk_paged": "indexer_topk",
}
# Ops whose binding runs other ops' kernels.
RUNS_TOO = {"router_gather": ("route_topk", "route_hash", "moe_permutation")}


def ops_on_cuda() -> list[str]:
    """The ops that have a CUDA kernel."""
    folders = {p.parent.name for p in CSRC.glob("kernels/*/cuda*.cu")}
    return sorted(folders | {op for op, folder in KERNEL_OF.items() if folder in folders})


_INCLUDED = re.compile(r'^#include "([^"]+)"', re.MULTILINE)


@cache
def included(source: Path) -> list[Path]:
    """A source of csrc and all of csrc that it includes, directly or not."""
    seen: set[Path] = set()
    todo = [source]
    while todo:
        path = todo.pop()
        if path not in seen and path.exists():
            seen.add(path)
            todo += [CSRC / name for name in _INCLUDED.findall(path.read_text())]
    return sorted(seen)


@cache
def with_includes(source: Path) -> str:
    """What the object of a source depends on."""
    return "".join(path.read_text() for path in included(source))


def _folder(source: Path, arch: str) -> Path:
    known = digest(with_includes(source), arch, *DEVICE_FLAGS)
    return CACHE / f"{source.parent.name}-{source.stem}-{arch}-{known}"


def ptx_for(source: Path, arch: str) -> str:
    """The kernels of a CUDA source as PTX.

    Raises:
        BuildError: there is no nvcc, or it refused.
    """
    compiler, folder = nvcc(), _folder(source, arch)
    if compiler is None:
        raise BuildError("no nvcc")
    ptx = folder / "kernel.ptx"
    if not ptx.exists():
        ptx = folder.with_name(f"{folder.name}.ptx")
    if not ptx.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        partial_ = ptx.with_suffix(".partial")
        call([compiler, *DEVICE_FLAGS, f"-arch={arch}", "-ptx", str(source), "-o", str(partial_)])
        partial_.replace(ptx)
    return ptx.read_text()


def device_objects(source: Path, arch: str) -> tuple[Path, Path, str]:
    """The host half of a CUDA source, its kernels as an object, and their PTX.

    Raises:
        BuildError: there is no nvcc, or it refused.
    """
    compiler = nvcc()
    if compiler is None:
        raise BuildError("no nvcc")
    number = arch.removeprefix("sm_")
    folder = _folder(source, arch)
    host, ptx = folder / "host.o", folder / "kernel.ptx"
    if not ptx.exists():
        folder.mkdir(parents=True, exist_ok=True)
        code = f"arch=compute_{number},code=compute_{number}"
        flags = [*DEVICE_FLAGS, "-Xcompiler", "-fPIC", "-gencode", code, "--keep", "--keep-dir", str(folder)]
        call([compiler, *flags, "-c", str(source), "-o", str(host)])
        made = next(p for p in folder.glob("*.ptx"))
        text = made.read_text()
        for p in folder.iterdir():
            if p != host:
                p.unlink()
        ptx.write_text(text)
    return host, object_of(ptx.read_text(), f"{source.parent.name}-{source.stem}"), ptx.read_text()


def binding_objects(arch: str, ops: Sequence[str]) -> list[Path]:
    """The bindings of `_cuda`, compiled as CMakeLists.txt does."""
    import pybind11

    include = [CSRC, pybind11.get_include(), sysconfig.get_path("include"), cuda_home() / "include"]
    folders = ("bindings", "bindings/cuda", "core")
    sources = [p for folder in folders for p in sorted(CSRC.glob(f"{folder}/*.cpp"))]
    defines = [
        "-DSK_CUDA",
        f'-DSK_CUDA_KERNELS="{" ".join(sorted({KERNEL_OF.get(op, op) for op in ops}))}"',
        f'-DSK_CUDA_ARCHS="model of {arch}"',
    ]

    def one(source: Path) -> Path:
        named = defines if source.name == "module.cpp" else defines[:1]
        used = [*FLAGS, "-O0", "-fvisibility=hidden", "-fopenmp", *named, *(f"-I{p}" for p in include)]
        to = CACHE / f"{source.parent.name}-{source.stem}-{digest(with_includes(source), *used)}.o"
        if not to.exists():
            to.parent.mkdir(parents=True, exist_ok=True)
            partial_ = to.with_suffix(".partial")
            call(["g++", *used, "-c", str(source), "-o", str(partial_)])
            partial_.replace(to)
        return to

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(one, sources))


def build(arch: str, ops: Sequence[str]) -> Path:
    """The module as a shared library; processes take turns."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _build(arch, ops)


def _build(arch: str, ops: Sequence[str]) -> Path:
    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(partial(device_objects, arch=arch), device_sources(ops)))
    objects = [o for host, kernels, _ in made for o in (host, kernels)]
    objects += [*runtime_objects(), *binding_objects(arch, ops)]
    known = digest(*(str(o) for o in objects))
    to = CACHE / f"module-{arch}-{known}" / "_cuda.so"
    if not to.exists():
        to.parent.mkdir(parents=True, exist_ok=True)
        partial_ = to.with_suffix(".partial")
        call(["g++", "-shared", "-Wl,-Bsymbolic", "-fopenmp", *map(str, objects), "-o", str(partial_)])
        partial_.replace(to)
    return to


class ModelGpu:
    """The module and its device. `run` calls an op as users do, on tensors that `put` has moved over."""

    def __init__(self, arch: str = "sm_80", ops: Sequence[str] | None = None) -> None:
        path = build(arch, ops_on_cuda() if ops is None else ops)
        self.device = Device(path)
        self.device.set_architecture(int("".join(c for c in arch if c.isdigit())))
        self.module = _load(path)
        self.module.use_exchange_api(False)
        torch_here = SimpleNamespace(
            Tensor=torch.Tensor, nn=torch.nn, is_grad_enabled=torch.is_grad_enabled, empty=self._empty
        )
        self.module.setup(torch_here, tuple(DTYPES.values()), self._explain, ShapeError, "cpu")
        self.module.use_exchange_api(False)
        self.kernels = {
            name: self.module.define(OPS[name].compiled()) for name in self.module.kernels if name in OPS
        }

    def _empty(self, size: tuple[int, ...], *, dtype: torch.dtype, device: str) -> Tensor:
        return self.device.empty(*size, dtype=dtype)

    def _explain(self, name: str, values: tuple[Any, ...], reason: str) -> Any:
        raise RuntimeError(f"{name}: refused: {reason}")

    @contextmanager
    def instead_of_cpu(self) -> Iterator[None]:
        """Inside, ops run on the model."""
        before = dict(backend._KERNELS)
        backend._KERNELS.update(self.kernels)
        try:
            yield
        finally:
            backend._KERNELS.update(before)

    def run(self, op: Op, arguments: Mapping[str, Any]) -> Any:
        """Call an op on tensors of the model; the result is copied out of it."""
        with self.instead_of_cpu():
            return op.fn(**arguments)


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("sparsekern._cuda", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault("sparsekern._cuda", module)
    spec.loader.exec_module(module)
    return module

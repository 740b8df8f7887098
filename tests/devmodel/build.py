"""From PTX, or from CUDA sources, to a library that runs its kernels here. Built once: names are hashes."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from .ptx import parse
from .translate import Translation, translate

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CACHE = Path(os.environ.get("SPARSEKERN_DEVMODEL_CACHE", ROOT / "build" / "devmodel"))
FLAGS = ["-std=c++20", "-fPIC", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-fno-gnu-unique"]
WARNINGS = ["-Wall", "-Wextra", "-Wno-unused-label", "-Wno-unused-function", "-Wno-psabi"]


class BuildError(Exception):
    """A compiler refused; its words."""


def nvcc() -> str | None:
    """The CUDA compiler, if there is one."""
    home = os.environ.get("CUDA_HOME")
    return shutil.which("nvcc", path=f"{home}/bin" if home else None) or shutil.which("nvcc")


def cuda_home() -> Path:
    """Where the toolkit's headers are.

    Raises:
        BuildError: there is no nvcc, or it does not say.
    """
    compiler = nvcc()
    said = subprocess.run([str(compiler), "--dryrun", "x.cu"], capture_output=True, text=True).stderr
    top = next((line.partition("TOP=")[2] for line in said.splitlines() if "TOP=" in line), None)
    if compiler is None or top is None:
        raise BuildError("no nvcc")
    return Path(top).resolve()


def call(command: Sequence[str]) -> str:
    """Run a compiler.

    Raises:
        BuildError: it failed.
    """
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise BuildError(f"{' '.join(command)}\n{done.stderr[-4000:]}")
    return done.stdout


def digest(*parts: str | bytes) -> str:
    """A name for what these made."""
    h = hashlib.sha256()
    for p in parts:
        h.update(p.encode() if isinstance(p, str) else p)
        h.update(b"\0")
    return h.hexdigest()[:16]


def runtime_headers() -> str:
    """What translated kernels include."""
    return "".join(p.read_text() for p in sorted((HERE / "runtime").glob("*.h")))


def runtime_objects() -> list[Path]:
    """The compiled run time."""
    found = []
    headers = runtime_headers()
    for source in sorted((HERE / "runtime").glob("*.cpp")):
        to = CACHE / f"{source.stem}-{digest(source.read_text(), headers, *FLAGS)}.o"
        compile_cpp(source, to, ["-O2"])
        found.append(to)
    return found


def compile_cpp(source: Path, to: Path, flags: Sequence[str] = ()) -> None:
    """One source to an object, unless it is there."""
    if to.exists():
        return
    to.parent.mkdir(parents=True, exist_ok=True)
    partial = to.with_suffix(f".{os.getpid()}.partial")
    include = ["-I", str(HERE / "runtime")]
    call(["g++", *FLAGS, *WARNINGS, *flags, *include, "-c", str(source), "-o", str(partial)])
    partial.replace(to)


def ptx_of(
    source: Path, arch: str = "sm_80", defines: Sequence[str] = (), include: Sequence[Path] = ()
) -> Path:
    """What nvcc makes of a CUDA source.

    Raises:
        BuildError: there is no nvcc, or it refused.
    """
    compiler = nvcc()
    if compiler is None:
        raise BuildError("no nvcc")
    flags = ["-std=c++20", f"-arch={arch}", "-lineinfo", *defines, *(f"-I{p}" for p in include)]
    known = digest(source.read_text(), *flags, *(_text_below(p) for p in (*include, source.parent)))
    to = CACHE / f"{source.stem}.{arch}-{known}.ptx"
    if not to.exists():
        to.parent.mkdir(parents=True, exist_ok=True)
        partial = to.with_suffix(f".{os.getpid()}.partial")
        call([compiler, *flags, "-ptx", str(source), "-o", str(partial)])
        partial.replace(to)
    return to


def _text_below(folder: Path) -> str:
    return "".join(p.read_text() for p in sorted(folder.rglob("*.cuh")))


def translated(ptx: str) -> Translation:
    """PTX text as C++."""
    return translate(parse(ptx))


def object_of(ptx: str, name: str = "kernels") -> Path:
    """PTX text as an object file."""
    source = CACHE / f"{name}-{digest(ptx, translator_text())}.cpp"
    if not source.exists():
        source.parent.mkdir(parents=True, exist_ok=True)
        partial = source.with_suffix(f".{os.getpid()}.partial")
        partial.write_text(translated(ptx).text)
        partial.replace(source)
    to = CACHE / f"{name}-{digest(source.read_text(), runtime_headers(), *FLAGS)}.o"
    compile_cpp(source, to, ["-O1", "-Wno-unused"])
    return to


TRANSLATOR = ("ptx", "translate", "context", "arithmetic", "memory", "warps")


def translator_text() -> str:
    """The translator's own sources."""
    return "".join((HERE / f"{name}.py").read_text() for name in TRANSLATOR)


def library(ptx: str, name: str = "kernels") -> Path:
    """PTX text as a library that runs it on the model."""
    objects = [object_of(ptx, name), *runtime_objects()]
    to = CACHE / f"lib{name}-{digest(*(o.name for o in objects))}.so"
    if not to.exists():
        partial = to.with_suffix(f".{os.getpid()}.partial")
        call(["g++", "-shared", "-Wl,-Bsymbolic", *map(str, objects), "-o", str(partial)])
        partial.replace(to)
    return to

"""`sparsekern info`: what this build offers on this machine."""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import torch

import sparsekern
from sparsekern import _C, catalogue
from sparsekern.config import ISAS, config
from sparsekern.plan import support


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print what there is."""
    facts = collect()
    print(json.dumps(facts, indent=2) if args.json else page(facts))
    return 0


def collect() -> dict[str, Any]:
    """Everything the page says, as plain data."""
    devices = ("cpu", "cuda")
    return {
        "version": sparsekern.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": machine(),
        "system": f"{platform.system()} {platform.machine()}",
        "compiler": f"GCC {_C.compiler}" if _C.compiler[:1].isdigit() else _C.compiler,
        "isas_built": list(ISAS),
        "isas_here": _C.isas(),
        "isa": config.isa,
        "threads": config.threads,
        "openmp": openmp_runtimes(),
        "exchange_api": _C.use_exchange_api(True),  # the default: use it where torch has it
        "cuda": cuda(),
        "cache_dir": str(config.cache_dir),
        "ops": {
            op.name: {"family": op.family, **{d: support(op.name, device=d)._asdict() for d in devices}}
            for op in catalogue.OPS.values()
        },
    }


def machine() -> str:
    """The processor as its maker numbers it, since virtual machines hide its name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = fields.get("model name", platform.machine())
    if "cpu family" not in fields:
        return name
    return f"{name} (family {fields['cpu family']}, model {fields['model']})"


def openmp_runtimes() -> list[str]:
    """The OpenMP libraries in this process: two would mean two teams of threads in each other's way."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return []
    paths = {line.split()[-1] for line in maps.splitlines() if "/" in line}
    return sorted(p for p in paths if Path(p).name.startswith(("libgomp", "libomp", "libiomp")))


def cuda() -> dict[str, Any]:
    """Whether ops run on a GPU here, and why not."""
    first = next(iter(catalogue.OPS))
    answer = support(first, device="cuda")
    if torch.version.cuda is None:
        torch_says = "this torch is a CPU build"
    elif not torch.cuda.is_available():
        torch_says = f"torch (CUDA {torch.version.cuda}) finds no GPU"
    else:
        torch_says = f"torch (CUDA {torch.version.cuda}) finds {torch.cuda.get_device_name()}"
    return {"ok": answer.ok, "reason": "; ".join(filter(None, (answer.reason, torch_says)))}


def page(facts: dict[str, Any]) -> str:
    """The facts for people."""
    isas = facts["isas_here"]
    rank = f"of {' '.join(isas)}" if facts["isa"] == isas[-1] else f"capped; the best here is {isas[-1]}"
    together = len(facts["openmp"]) == 1
    openmp = "sharing torch's OpenMP runtime" if together else f"OpenMP runtimes: {' '.join(facts['openmp'])}"
    general = {
        "instruction set": f"{facts['isa']} ({rank})",
        "threads": f"{facts['threads']}, {openmp}",
        "torch": facts["torch"],
        "tensors": f"read through {'the DLPack exchange API' if facts['exchange_api'] else 'attributes'}",
        "compiler": facts["compiler"],
        "CUDA": f"{'yes' if facts['cuda']['ok'] else 'no'}: {facts['cuda']['reason']}",
        "cache folder": facts["cache_dir"],
    }
    ops = facts["ops"].items()
    rows = [("op", "family", "runs as")]
    rows += [(name, op["family"], op["cpu"]["implementation"] or op["cpu"]["reason"]) for name, op in ops]
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    return "\n".join(
        [
            f"sparsekern {facts['version']}, Python {facts['python']}, {facts['system']}, {facts['machine']}",
            "",
            *(f"{name:<17}{text}" for name, text in general.items()),
            "",
            *(f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c}" for a, b, c in rows),
        ]
    )

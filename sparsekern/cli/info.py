"""`sparsekern info`: what this build offers on this machine."""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import torch

import sparsekern
from sparsekern import _C, catalogue, config, support
from sparsekern.config import ISAS


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
    """The OpenMP libraries in this process; with more than one, torch's threads and ours get in each other's way."""
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
    better = [isa for isa in facts["isas_here"] if isa != facts["isa"]]
    capped = facts["isa"] != facts["isas_here"][-1]
    isa = f"{facts['isa']}, {'capped; also here' if capped else 'also'}: {', '.join(better)}"
    shared = len(facts["openmp"]) == 1
    openmp = "sharing torch's OpenMP runtime" if shared else f"OpenMP runtimes: {', '.join(facts['openmp'])}"
    reads = "DLPack exchange API" if facts["exchange_api"] else "attribute reads (torch 2.10 and later are faster)"
    general = {
        "instruction set": isa if better else facts["isa"],
        "threads": f"{facts['threads']}, {openmp}",
        "torch": f"{facts['torch']}, tensors read through {reads}",
        "compiler": facts["compiler"],
        "CUDA": f"{'yes' if facts['cuda']['ok'] else 'no'}: {facts['cuda']['reason']}",
        "cache folder": facts["cache_dir"],
    }
    rows = [("op", "family", "runs on cpu as")]
    for name, op in facts["ops"].items():
        rows.append((name, op["family"], op["cpu"]["implementation"] or op["cpu"]["reason"]))
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

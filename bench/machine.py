"""What a number depends on besides the code: the circumstances that every row carries."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

import sparsekern
from sparsekern import _C
from sparsekern.cli.info import machine
from sparsekern.config import config


def circumstances(command: str, versions: Mapping[str, str]) -> dict[str, Any]:
    """What holds for all rows of one run of the command."""
    return {
        "device": machine(),
        "cores": os.cpu_count(),
        "cache_mb": round(cache_bytes() / 2**20),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "compiler": _C.compiler,
        "threads": config.threads,
        "isa": config.isa,
        "commit": commit(),
        "versions": {
            "sparsekern": sparsekern.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            **versions,
        },
        "command": command,
        "date": datetime.date.today().isoformat(),
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


@cache
def commit() -> str:
    """The commit of this checkout, "+" where files differ from it; the version where this is no checkout."""
    folder = Path(__file__).parent

    def git(*words: str) -> str:
        command = ["git", *words]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + "+" * bool(git("status", "--porcelain", "-uno"))
    except (OSError, subprocess.CalledProcessError):
        return sparsekern.__version__


@cache
def cache_bytes() -> int:
    """Of the last cache before memory; 32 MB where the system does not say."""
    sizes = [32 << 20]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        unit = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:], 1)
        sizes.append(int(text.rstrip("KMG")) * unit)
    return max(sizes)

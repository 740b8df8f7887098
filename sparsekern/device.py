"""What this machine is, for records and predictions: a name that its like share, and its caches."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

# AMD's families hold several designs, told apart by ranges of models; Intel's are told apart by what they
# can do.
_AMD = {
    25: (("zen3", (0x00, 0x0F)), ("zen3", (0x20, 0x5F)), ("zen4", (0x10, 0x1F)), ("zen4", (0x60, 0xAF))),
    26: (("zen5", (0x00, 0xFF)),),
    23: (("zen2", (0x30, 0xFF)), ("zen1", (0x00, 0x2F))),
}


@dataclass(frozen=True)
class Cpu:
    """A processor, as far as tuning cares."""

    name: str  # "amd-zen3", "intel-f6m143", "unknown"
    l1: int  # bytes: of a core
    l2: int  # of a core
    l3: int  # of all


@cache
def cpu() -> Cpu:
    """This one. Where the system tells nothing, a name that fits no record and sizes of the usual order."""
    return Cpu(
        _name(_cpuinfo()), *(_cache(level, usual) for level, usual in ((1, 32), (2, 512), (3, 32 << 10)))
    )


def _cpuinfo() -> dict[str, str]:
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first)}


def _name(info: dict[str, str]) -> str:
    vendor = {"AuthenticAMD": "amd", "GenuineIntel": "intel"}.get(info.get("vendor_id", ""))
    family, model = info.get("cpu family", ""), info.get("model", "")
    if vendor is None or not (family.isdigit() and model.isdigit()):
        return "unknown"
    for design, (first, last) in _AMD.get(int(family), ()) if vendor == "amd" else ():
        if first <= int(model) <= last:
            return f"amd-{design}"
    return f"{vendor}-f{family}m{model}"


def _cache(level: int, usual_kb: int) -> int:
    """Bytes of a level's data cache."""
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            here = int((index / "level").read_text())
            kind, size = (index / "type").read_text().strip(), (index / "size").read_text().strip()
        except (OSError, ValueError):
            continue
        number = re.fullmatch(r"(\d+)([KM]?)", size)
        if here == level and kind != "Instruction" and number:
            return int(number[1]) * {"": 1, "K": 1 << 10, "M": 1 << 20}[number[2]]
    return usual_kb << 10

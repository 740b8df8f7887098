"""What ptxas made of our kernels: registers, spills, shared memory, occupancy, instructions, the hot loop."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from devmodel.build import CACHE, BuildError, call, digest, nvcc
from devmodel.extension import device_sources, ops_on_cuda, ptx_for
from devmodel.ptx import parse

HERE = Path(__file__).parent
BASELINES = HERE / "baselines"
RULES: dict[str, dict[str, Any]] = json.loads((HERE / "rules.json").read_text())
TOLERANCE = 0.05  # of counts of instructions: another release of ptxas shuffles them
Facts = dict[str, Any]

# Of a multiprocessor: warps, blocks, bytes of shared memory; its tensor cores' flops a byte of memory.
MACHINES = {
    "sm_80": (64, 32, 164 << 10, 156),
    "sm_86": (48, 16, 100 << 10, 160),
    "sm_89": (48, 24, 100 << 10, 330),
    "sm_90": (64, 32, 228 << 10, 295),
    "sm_100": (64, 32, 228 << 10, 281),
    "sm_120": (48, 24, 100 << 10, 234),
}
FAMILIES = {
    "tensor": r"[HIQ]G?MMA|OMMA|UTC[HQ]MMA",
    "async copy": r"LDGSTS|UTMALDG|UTMASTG|UBLKCP",
    "global": r"LDG|STG|LD|ST",
    "shared": r"LDS|STS|LDSM|STSM",
    "local": r"LDL|STL",
    "barrier": r"BAR|WARPSYNC|SYNCS",
    "atomic": r"ATOM[SG]?|RED",
    "convert": r"F2FP?|I2FP?|F2I|PRMT",
    "double": r"D(ADD|MUL|FMA|SET.*)",
}


def tool(name: str) -> str | None:
    """A program of the toolkit, or of the package nvidia-cuda-nvdisasm."""
    folders = [os.environ.get("CUDA_TOOLS", "")]
    if compiler := nvcc():
        folders.append(str(Path(compiler).resolve().parent))
    return next((p for f in folders if f and (p := shutil.which(name, path=f))), None) or shutil.which(name)


def cubin(source: Path, arch: str) -> tuple[Path, str, str]:
    """The machine code of a CUDA source, what ptxas said, and the PTX of sm_80 that it was made from."""
    ptx = ptx_for(source, "sm_80")
    to = CACHE / f"{source.parent.name}-{source.stem}-{arch}-{digest(ptx, arch)}.cubin"
    said = to.with_suffix(".txt")
    if not said.exists():
        text = to.with_suffix(".ptx")
        text.write_text(ptx)
        assembler = tool("ptxas")
        if assembler is None:
            raise BuildError("no ptxas")
        done = subprocess.run(
            [assembler, "-v", f"-arch={arch}", str(text), "-o", str(to)], capture_output=True, text=True
        )
        text.unlink()
        if done.returncode:
            raise BuildError(done.stderr)
        said.write_text(done.stderr + done.stdout)
    return to, said.read_text(), ptx


def _short(names: Sequence[str]) -> dict[str, str]:
    """Kernels as people write them, without namespaces that say nothing and without parameters."""
    plain = call(["c++filt", *names]).splitlines()
    return {
        name: re.sub(r"\(anonymous namespace\)::|::cuda(?=::)|^void |^sk::|\(int\)|sk::", "", _head(text))
        for name, text in zip(names, plain, strict=True)
    }


def _head(text: str) -> str:
    """The name and template arguments of a demangled function, without its parameters."""
    text = text.replace("(anonymous namespace)::", "").replace("(int)", "")
    depth = 0
    for i, c in enumerate(text):
        depth += (c == "<") - (c == ">")
        if c == "(" and depth == 0:
            return text[:i]
    return text


def occupancy(arch: str, registers: int, threads: int, shared: int) -> int:
    """Blocks that a multiprocessor holds."""
    warps, blocks, memory, _ = MACHINES[arch]
    of_block = -(-threads // 32)
    of_warp = -(-registers * 32 // 256) * 256
    by_registers = 65536 // of_warp // 4 * 4 // of_block if registers else blocks
    return min(warps // of_block, blocks, by_registers, memory // (shared + 1024))


def _sass(path: Path) -> dict[str, list[tuple[str, str, int | None]]]:
    """Instructions of each kernel: opcode, operands, and where a branch goes."""
    disassembler = tool("nvdisasm")
    if disassembler is None:
        return {}
    kernels: dict[str, list[Any]] = {}
    labels: dict[str, int] = {}
    current: list[Any] = []
    for line in call([disassembler, "-c", str(path)]).splitlines():
        if m := re.match(r"\s*\.section\s+\.text\.(\S+?),", line):
            current, labels = kernels.setdefault(m[1], []), {}
        elif m := re.match(r"^(\.L_x?_?\w+):", line):
            labels[m[1]] = len(current)
        elif m := re.match(r"\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+ )?([A-Z][A-Z0-9_.]+)\s*(.*?);", line):
            back = re.search(r"`\((\.L_\w+)\)", m[2]) if m[1].startswith("BRA") else None
            current.append((m[1], m[2], labels.get(back[1]) if back else None))
    return kernels


def _mix(instructions: Sequence[tuple[str, str, int | None]]) -> dict[str, int]:
    counts = Counter(
        family
        for opcode, _, _ in instructions
        for family, pattern in FAMILIES.items()
        if re.fullmatch(pattern, opcode.partition(".")[0])
    )
    return {family: counts[family] for family in FAMILIES if counts[family]}


def _hot_loop(body: Sequence[tuple[str, str, int | None]]) -> Facts:
    """The loop with the densest tensor instructions, else the longest of the innermost."""
    loops = [(to, i + 1) for i, (_, _, to) in enumerate(body) if to is not None and to < i]
    inner = [a for a in loops if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    if not loops:
        return {}

    def tensor(loop: tuple[int, int]) -> int:
        return _mix(body[slice(*loop)]).get("tensor", 0)

    dense = [a for a in loops if tensor(a)]
    best = (
        max(dense, key=lambda a: tensor(a) / (a[1] - a[0]))
        if dense
        else max(inner, key=lambda a: a[1] - a[0])
    )
    length = best[1] - best[0]
    return {
        "length": length,
        "tensor share": round(100 * tensor(best) / length, 1),
        **_mix(body[slice(*best)]),
    }


def measure(source: Path, arch: str) -> dict[str, Facts]:
    """All that is known of a source's kernels."""
    path, said, ptx = cubin(source, arch)
    limits = {k.name: k.limits.get("maxntid", (256,))[0] for k in parse(ptx).kernels}
    short, sass = _short(list(limits)), _sass(path)
    found: dict[str, Facts] = {}
    for m in re.finditer(
        r"Compiling entry function '(\w+)'.*?\n.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers(?:, used (\d+) barriers)?([^\n]*)",
        said,
        re.DOTALL,
    ):
        name, rule = m[1], rule_of(short[m[1]])
        shared = re.search(r"(\d+) bytes smem", m[7])
        bytes_ = int(shared[1]) if shared else 0
        facts: Facts = {
            "registers": int(m[5]),
            "stack": int(m[2]),
            "spilled": int(m[3]) + int(m[4]),
            "shared": bytes_,
            "threads": limits[name],
            "blocks a multiprocessor": occupancy(
                arch, int(m[5]), limits[name], bytes_ + _dynamic(rule, short[name])
            ),
        }
        if name in sass:
            facts |= {
                "instructions": len(sass[name]),
                "mix": _mix(sass[name]),
                "hot loop": _hot_loop(sass[name]),
            }
        if "roofline" in rule:
            facts["roofline"] = _roofline(rule, short[name], arch)
        found[short[name]] = facts
    return found


def rule_of(name: str) -> Facts:
    """What must hold for a kernel: of the rules whose pattern its name begins with, all together."""
    together: Facts = {"required": [], "forbidden": []}
    for pattern, rule in RULES.items():
        if re.match(pattern, name):
            together |= {k: together.get(k, []) + v if isinstance(v, list) else v for k, v in rule.items()}
    return together


def _sizes(name: str) -> dict[str, int]:
    """The template arguments that are numbers, as a, b, c ..."""
    numbers = re.findall(r"\d+", name.partition("<")[2])
    return dict(zip("abcdef", map(int, numbers), strict=False))


def _dynamic(rule: Facts, name: str) -> int:
    return int(eval(rule["dynamic shared"], {}, _sizes(name))) if "dynamic shared" in rule else 0


def _roofline(rule: Facts, name: str, arch: str) -> str:
    flops, bytes_ = (eval(rule["roofline"][k], {}, _sizes(name)) for k in ("flops", "bytes"))
    return "tensor" if flops / bytes_ >= MACHINES[arch][3] else "memory"


def broken_rules(name: str, facts: Facts) -> Iterator[str]:
    """What a kernel must not be, whatever it was before."""
    for what in ("spilled", "stack"):
        if facts[what] > rule_of(name).get(what, 0):
            yield f"{name}: {facts[what]} bytes {what}"
    if "mix" not in facts:
        return
    for family in rule_of(name)["required"]:
        if not facts["mix"].get(family):
            yield f"{name}: no {family} instructions"
    for family in rule_of(name)["forbidden"]:
        if facts["mix"].get(family):
            yield f"{name}: {facts['mix'][family]} {family} instructions"


def differences(
    name: str, old: Mapping[str, Any], new: Mapping[str, Any]
) -> Iterator[tuple[str, str, Any, Any]]:
    """(kernel, what, before, now) of all that is not as it was."""
    for what in {**old, **new}:
        a, b = old.get(what), new.get(what)
        if isinstance(a, dict) or isinstance(b, dict):
            yield from ((name, f"{what}: {w}", x, y) for _, w, x, y in differences(name, a or {}, b or {}))
            continue
        if a == b:
            continue
        numbers = isinstance(a, (int, float)) and isinstance(b, (int, float)) and what not in EXACT
        if not numbers or abs(a - b) > max(2, TOLERANCE * max(a, b)):
            yield name, what, a, b


EXACT = {"stack", "spilled", "shared", "threads", "blocks a multiprocessor"}


def sources() -> list[Path]:
    """Everything that nvcc compiles."""
    return device_sources(ops_on_cuda())


def baseline(arch: str) -> dict[str, Facts]:
    """What was checked in."""
    path = BASELINES / f"{arch}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def table(rows: Sequence[tuple[str, str, Any, Any]]) -> str:
    """Differences for people."""
    cells = [("kernel", "what", "checked in", "now"), *(tuple(map(str, r)) for r in rows)]
    widths = [max(len(r[i]) for r in cells) for i in range(4)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in cells)

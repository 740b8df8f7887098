"""Operands of instructions as C++: registers, literals, special registers, addresses."""

from __future__ import annotations

import re

from .ptx import SIZES, Instruction, number, split

_SPECIAL = {"tid": "current->index", "ctaid": "current->block->index", "ntid": "launching.block"}
_SPECIAL |= {"nctaid": "launching.grid", "cluster_nctaid": "launching.cluster"}
_SCALARS = {
    "%laneid": "current->lane",
    "%warpid": "current->number / 32",
    "%nwarpid": "32u",
    "WARP_SZ": "32u",
    "%smid": "0u",
    "%nsmid": "1u",
    "%gridid": "0u",
    "%clock": "static_cast<u32>(counters.switches)",
    "%clock64": "counters.switches",
    "%globaltimer": "counters.switches",
    "%lanemask_lt": "((1u << current->lane) - 1)",
    "%lanemask_le": "(2u * (1u << current->lane) - 1)",
    "%lanemask_gt": "~(2u * (1u << current->lane) - 1)",
    "%lanemask_ge": "~((1u << current->lane) - 1)",
    "%lanemask_eq": "(1u << current->lane)",
    "%cluster_ctarank": "current->block->rank",
    "%cluster_nctarank": "static_cast<u32>(current->block->cluster->blocks.size())",
    "%dynamic_smem_size": "launching.dynamic_shared",
    "%total_smem_size": "(launching.kernel->static_shared + launching.dynamic_shared)",
}
_LITERAL = re.compile(r"-?(0[xX][0-9a-fA-F]+|\d+)U?")
UNSIGNED = {1: "u8", 2: "u16", 4: "u32", 8: "u64"}


class Unknown(Exception):
    """An instruction, or a form of one, that the model does not have."""


class Context:
    """What an instruction's operands mean where it stands."""

    def __init__(self) -> None:
        self.symbols: dict[str, str] = {}  # variables: their addresses
        self.parameters: dict[str, int] = {}  # offsets
        self.spaces: dict[str, str] = {}

    def raw(self, x: str) -> str:
        """The bits of an operand."""
        if x.startswith("!"):
            return f"!{self.raw(x[1:])}"
        if x in _SCALARS:
            return _SCALARS[x]
        if special := re.fullmatch(r"%(\w+)\.([xyz])", x):
            if special[1] == "cluster_ctaid":
                return f"(current->block->index.{special[2]} % launching.cluster.{special[2]})"
            if special[1] == "clusterid":
                return f"(current->block->index.{special[2]} / launching.cluster.{special[2]})"
            if special[1] == "nclusterid":
                return f"(launching.grid.{special[2]} / launching.cluster.{special[2]})"
            return f"{_SPECIAL[special[1]]}.{special[2]}"
        if x in self.symbols:
            return self.symbols[x]
        if x in self.parameters:
            return f"reinterpret_cast<u64>(parameters + {self.parameters[x]})"
        if x[:2] in ("0f", "0F"):
            return f"{number(x):#x}u"
        if x[:2] in ("0d", "0D"):
            return f"{number(x):#x}ull"
        if _LITERAL.fullmatch(x):
            value = number(x)
            return f"{value}ll" if -(2**63) < value < 2**63 else f"{value & (2**64 - 1)}ull"
        if not re.fullmatch(r"%?[\w$]+", x):
            raise Unknown(f"operand {x}")
        return register(x)

    def value(self, x: str, kind: str) -> str:
        """An operand as a value of a type."""
        return f"as<bool>({self.raw(x)})" if kind == "pred" else f"as<{kind}>({self.raw(x)})"

    def assign(self, to: str, value: str) -> str:
        """A register gets a value."""
        return f"(void)({value});" if to == "_" else f"set({register(to)}, {value});"

    def list(self, operand: str) -> tuple[str, ...]:
        """The parts of `{%r1, %r2}`; a single operand is one."""
        return split(operand[1:-1]) if operand.startswith("{") else (operand,)

    def words(self, operand: str) -> str:
        """Operands in braces as an initialiser of 32-bit words."""
        return "{" + ", ".join(f"as<u32>({self.raw(x)})" for x in self.list(operand)) + "}"

    def address(self, operand: str) -> str:
        """`[%rd1 + 16]` as an integer."""
        inside = operand.strip()
        if not (inside.startswith("[") and inside.endswith("]")):
            raise Unknown(f"address {operand}")
        base, _, offset = inside[1:-1].partition("+")
        base = base.strip()
        return f"({self.raw(base)} + ({offset.strip().rstrip('U')}))" if offset else f"({self.raw(base)})"

    def pointer(self, operand: str, space: str) -> str:
        """The same as a pointer."""
        if space == "shared":
            return f"shared_pointer(static_cast<u32>{self.address(operand)})"
        return f"reinterpret_cast<u8*>(static_cast<u64>{self.address(operand)})"

    def shared(self, operand: str) -> str:
        """The same as a 32-bit address of shared memory."""
        return f"static_cast<u32>{self.address(operand)}"


def register(name: str) -> str:
    """A register's name in C++."""
    return "r_" + name.lstrip("%").replace("$", "_")


def space_of(i: Instruction) -> str:
    """Where a memory instruction goes; "" for generic addresses."""
    for part in i.parts[1:]:
        if part.split("_")[0] in ("shared", "global", "local", "const", "param"):
            return part.split("_")[0]
    return ""


def type_of(i: Instruction) -> str:
    """The last type that the opcode names.

    Raises:
        Unknown: it names none.
    """
    for part in reversed(i.parts):
        if part in SIZES:
            return part
    raise Unknown(i.opcode)

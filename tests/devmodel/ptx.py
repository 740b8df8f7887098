"""PTX text, taken apart: kernels, their parameters and statements, the variables of a module."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

SIZES = {
    "b8": 1,
    "u8": 1,
    "s8": 1,
    "b16": 2,
    "u16": 2,
    "s16": 2,
    "f16": 2,
    "bf16": 2,
    "f16x2": 4,
    "bf16x2": 4,
}
SIZES |= {
    "b32": 4,
    "u32": 4,
    "s32": 4,
    "f32": 4,
    "b64": 8,
    "u64": 8,
    "s64": 8,
    "f64": 8,
    "b128": 16,
    "pred": 1,
}

_TOKENS = re.compile(r"//[^\n]*|/\*.*?\*/|\n|[{};]|\"[^\"]*\"|[^{};\n/\"]+|/", re.DOTALL)
_LABEL = re.compile(r"\s*([$\w]+)\s*:(?!:)")
_INSTRUCTION = re.compile(r"(?:@(!?)(%?[\w$]+)\s+)?([a-z][\w.:]*)\s*(.*)", re.DOTALL)
_VARIABLE = re.compile(
    r"(?:\.(?:extern|visible|weak)\s+)*\.(shared|global|const|local)\s+(?:\.attribute\([^)]*\)\s+)?"
    r"(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([$\w]+)((?:\[\d*\])*)\s*(?:=\s*(.*))?$",
    re.DOTALL,
)
_PARAMETER = re.compile(
    r"\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+(?:\.ptr\s+(?:\.\w+\s+)?(?:\.align\s+\d+\s+)?)?([$\w]+)((?:\[\d+\])?)"
)
_ENTRY = re.compile(r"\.entry\s+([$\w]+)\s*(?:\((.*?)\))?([^{};]*)\{", re.DOTALL)


class PtxError(Exception):
    """The text is not PTX that the model understands."""


@dataclass(frozen=True, slots=True)
class Variable:
    """`.shared .align 16 .b8 tile[4096]`; size 0: its size is given at launch."""

    space: str
    name: str
    align: int
    size: int
    values: tuple[int, ...] = ()  # bytes or words, as wide as `item`
    item: int = 1


@dataclass(frozen=True, slots=True)
class Register:
    """`.reg .b32 %r<19>`: a name, or a range of numbered ones."""

    kind: str
    name: str
    count: int  # 0: the name itself


@dataclass(frozen=True, slots=True)
class Instruction:
    """`@!%p1 add.s32 %r1, %r2, 5;` on a line of the file, made from a line of some source."""

    guard: str
    negated: bool
    opcode: str
    operands: tuple[str, ...]
    line: int
    text: str

    @property
    def parts(self) -> list[str]:
        """The opcode and its modifiers."""
        return self.opcode.replace("::", "_").split(".")


@dataclass(frozen=True, slots=True)
class Label:
    """The place that a branch of its scope names."""

    name: str


@dataclass(frozen=True, slots=True)
class Targets:
    """`.branchtargets`: where a `brx.idx` that names the label before it may go."""

    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Scope:
    """Statements in braces, as inline assembly writes them: their registers and labels are their own."""

    statements: tuple[Statement, ...]


@dataclass(frozen=True, slots=True)
class Location:
    """What follows was made from this line of this file (of `Module.files`)."""

    file: int
    line: int


Statement = Variable | Register | Instruction | Label | Targets | Scope | Location


@dataclass(frozen=True, slots=True)
class Parameter:
    """A kernel's parameter and where it lies among the others."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class Kernel:
    """An entry of the module."""

    name: str
    parameters: tuple[Parameter, ...]
    limits: dict[str, tuple[int, ...]]  # maxntid, reqnctapercluster and the like
    body: Scope


@dataclass(frozen=True)
class Module:
    """A PTX file."""

    target: str
    kernels: tuple[Kernel, ...]
    variables: tuple[Variable, ...]
    files: dict[int, str] = field(default_factory=dict)


def split(text: str) -> tuple[str, ...]:
    """Operands: what commas outside brackets separate."""
    found, depth, word = [], 0, ""
    for c in text:
        depth += (c in "{[(") - (c in "}])")
        if c == "," and depth == 0:
            found.append(word.strip())
            word = ""
        else:
            word += c
    return (*found, word.strip()) if word.strip() else tuple(found)


def parse(text: str) -> Module:
    """Take a file apart.

    Raises:
        PtxError: a statement that is not understood, with its line.
    """
    target = re.search(r"^\.target\s+(\w+)", text, re.MULTILINE)
    files = re.findall(r'^\s*\.file\s+(\d+)\s+"([^"]*)"', text, re.MULTILINE)
    kernels, outside, last = [], [], 0
    for m in _ENTRY.finditer(text):
        if m.start() < last:
            continue
        statements, end = _body(text, m.end(), text.count("\n", 0, m.end()) + 1)
        kernels.append(Kernel(m[1], _parameters(m[2] or ""), _limits(m[3]), Scope(statements)))
        outside.append(text[last : m.start()])
        last = end
    outside.append(text[last:])
    return Module(
        target=target[1] if target else "",
        kernels=tuple(kernels),
        variables=tuple(_variables("".join(outside))),
        files={int(n): name for n, name in files},
    )


def _parameters(text: str) -> tuple[Parameter, ...]:
    found, offset = [], 0
    for align, kind, name, array in _PARAMETER.findall(text):
        size = SIZES[kind] * (int(array[1:-1]) if array else 1)
        by = int(align or SIZES[kind])
        offset = -(-offset // by) * by
        found.append(Parameter(name, offset, size))
        offset += size
    return tuple(found)


def _limits(text: str) -> dict[str, tuple[int, ...]]:
    return {
        name: tuple(int(n) for n in re.findall(r"\d+", numbers))
        for name, numbers in re.findall(r"\.(\w+)([^.]*)", text)
    }


def _variables(text: str) -> Iterator[Variable]:
    code = re.sub(r"//[^\n]*", "", text)
    code = re.sub(r"\.section[^{]*\{[^}]*\}", "", code)
    for statement in code.split(";"):
        at = re.search(r"(?:\.(?:extern|visible|weak)\s+)*\.(?:shared|global|const)\s", statement)
        if at:
            yield variable(statement[at.start() :].strip())


def variable(text: str) -> Variable:
    """A declaration of memory.

    Raises:
        PtxError: it is none.
    """
    m = _VARIABLE.match(text)
    if m is None:
        raise PtxError(f"not a declaration: {text[:80]}")
    space, align, kind, name, array, values = m.groups()
    count = 1
    for n in re.findall(r"\[(\d*)\]", array):
        count *= int(n or 0)
    given = re.findall(r"-?\b(?:0[xX][0-9a-fA-F]+|0[fd][0-9a-fA-F]+|\d+)\b", values or "")
    if values and re.search(r"[A-Za-z_$]{3,}", re.sub(r"0[xXfd][0-9a-fA-F]+", "", values)):
        raise PtxError(f"{name} is initialised with an address: {values[:60]}")
    return Variable(
        space, name, int(align or SIZES[kind]), SIZES[kind] * count, tuple(map(number, given)), SIZES[kind]
    )


def number(text: str) -> int:
    """A literal as the integer of its bits."""
    return int(text[2:], 16) if text[:2] in ("0f", "0d", "0F", "0D") else int(text.rstrip("U"), 0)


def _body(text: str, start: int, line: int) -> tuple[tuple[Statement, ...], int]:
    """Statements up to the brace that closes the one before `start`; and where that is."""
    scopes: list[list[Statement]] = [[]]
    word, first, depth = "", line, 0
    for m in _TOKENS.finditer(text, start):
        token = m[0]
        if token.startswith(("//", "/*")):
            line += token.count("\n")
        elif token == "\n":
            line += 1
            if word.lstrip().startswith((".loc", ".file")):
                if location := re.match(r"\s*\.loc\s+(\d+)\s+(\d+)", word):
                    scopes[-1].append(Location(int(location[1]), int(location[2])))
                word = ""
            elif word.strip():
                word += " "
        elif token == "{" and not word.strip():
            scopes.append([])
        elif token == "{":
            depth += 1
            word += token
        elif token == "}" and depth:
            depth -= 1
            word += token
        elif token == "}":
            inner = tuple(scopes.pop())
            if not scopes:
                return inner, m.end()
            scopes[-1].append(Scope(inner))
        elif token == ";" and not depth:
            scopes[-1].extend(_statement(word, first))
            word = ""
        else:
            if not word.strip():
                word, first = "", line
            word += token
            while label := _LABEL.match(word):
                scopes[-1].append(Label(label[1]))
                word = word[label.end() :]
    raise PtxError("a brace is never closed")


def _statement(text: str, line: int) -> Iterator[Statement]:
    text = " ".join(text.split())
    if text.startswith(".reg"):
        _, kind, names = text.split(None, 2)
        for name in names.split(","):
            m = re.match(r"\s*(%?[\w$]+)(?:<(\d+)>)?", name)
            assert m is not None, text
            yield Register(kind[1:], m[1], int(m[2] or 0))
    elif text.startswith((".shared", ".local")):
        yield variable(text)
    elif text.startswith(".branchtargets"):
        yield Targets(split(text.removeprefix(".branchtargets")))
    elif text.startswith(".") or not text:
        return  # pragmas, parameters of calls
    else:
        m = _INSTRUCTION.fullmatch(text)
        if m is None:
            raise PtxError(f"line {line}: not an instruction: {text[:80]}")
        yield Instruction(m[2] or "", m[1] == "!", m[3], split(m[4]), line, text)

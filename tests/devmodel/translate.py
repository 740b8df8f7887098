"""PTX to C++ over the model's run time: one function per kernel, registers as locals, branches as gotos."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from . import arithmetic, memory, warps
from .context import Context, Unknown, register
from .ptx import SIZES, Instruction, Kernel, Label, Location, Module, Register, Scope, Targets, Variable

HANDLERS = {**arithmetic.HANDLERS, **memory.HANDLERS, **warps.HANDLERS}
_POISON = {
    "bool": "false",
    "u8": "0xc3",
    "u16": "0xc3c3",
    "u32": "0xc3c3c3c3u",
    "u64": "0xc3c3c3c3c3c3c3c3ull",
}
_FIRST_SHARED, _RED_ZONE = 1024, 64  # nothing is at shared address 0, nor between variables


@dataclass(frozen=True)
class Translation:
    """The C++ of a module and what it lacks."""

    text: str
    kernels: tuple[str, ...]
    unknown: Counter[str]


def translate(module: Module) -> Translation:
    """All kernels of a module. Instructions that the model lacks become errors when they are reached."""
    unknown: Counter[str] = Counter()
    parts = ['#include "ptx.h"', "namespace model {", "namespace {"]
    names = {v.name: f"v_{n}" for n, v in enumerate(module.variables) if v.space in ("global", "const")}
    parts += [_initialised(v, names[v.name]) for v in module.variables if v.name in names]
    for n, kernel in enumerate(module.kernels):
        parts.append(_Function(module, kernel, names, unknown).text(f"k_{n}"))
    parts.append("}\n}")
    return Translation("\n".join(parts), tuple(k.name for k in module.kernels), unknown)


def _initialised(v: Variable, name: str) -> str:
    values = ", ".join(f"static_cast<{_unsigned(v.item)}>({x}ull)" for x in v.values)
    size = max(v.size, v.item)
    return (
        f"u64 {name}() {{ static const {_unsigned(v.item)} values[{size // v.item}] = {{{values}}}; "
        f"static u8* const p = allocate_constant(values, {size}); return reinterpret_cast<u64>(p); }}"
    )


def _unsigned(size: int) -> str:
    return {1: "u8", 2: "u16", 4: "u32", 8: "u64"}[size]


class _Function:
    """One kernel on its way to C++."""

    def __init__(
        self, module: Module, kernel: Kernel, globals_: dict[str, str], unknown: Counter[str]
    ) -> None:
        self.module, self.kernel, self.unknown = module, kernel, unknown
        self.context = Context()
        self.context.parameters = {p.name: p.offset for p in kernel.parameters}
        self.context.symbols = {name: f"{function}()" for name, function in globals_.items()}
        self.shared: list[tuple[int, int]] = []
        self.static_shared = 0
        self.scopes = 0
        self.lines: list[tuple[int, int, int]] = []
        self.location = Location(0, 0)
        dynamic = [v for v in module.variables if v.space == "shared" and v.size == 0]
        for v in module.variables:
            if v.space == "shared" and v.size:
                self._share(v)
        for v in _all_variables(kernel.body):
            if v.space == "shared":
                self._share(v)
        align = max([16, *(v.align for v in dynamic)])
        end = sum(self.shared[-1]) if self.shared else _FIRST_SHARED
        # Aligned as declared and no better, lest a kernel rely on it.
        self.dynamic_offset = -(-end // 1024) * 1024 + align % 1024
        self.context.symbols |= {v.name: f"{self.dynamic_offset}u" for v in dynamic}

    def _share(self, v: Variable) -> None:
        self.static_shared = -(-self.static_shared // v.align) * v.align + v.size
        end = sum(self.shared[-1]) + _RED_ZONE if self.shared else _FIRST_SHARED
        self.shared.append((-(-end // v.align) * v.align, v.size))
        self.context.symbols[v.name] = f"{self.shared[-1][0]}u"

    def text(self, name: str) -> str:
        body = "\n".join(self._scope(self.kernel.body, []))
        k = self.kernel
        files = sorted(self.module.files.items())
        where = {number: n for n, (number, _) in enumerate(files)}
        lines = ", ".join(f"{{{a}, {where.get(b, 0)}, {c}}}" for a, b, c in self.lines)
        paths = ", ".join('"' + path + '"' for _, path in files) or '""'
        cluster = ", ".join(map(str, k.limits.get("reqnctapercluster") or (1, 1, 1)))
        parameters = ", ".join(f"{{{p.offset}, {p.size}}}" for p in k.parameters)
        shared = ", ".join(f"{{{a}, {b}}}" for a, b in self.shared)
        threads = 1
        for n in k.limits.get("maxntid") or k.limits.get("reqntid") or (0,):
            threads *= n
        return (
            f"[[gnu::noinline]] void {name}([[maybe_unused]] const uint8_t* parameters) {{\n{body}\n}}\n"
            f"const int lines_{name}[][3] = {{{lines}{', ' if lines else ''}{{0, 0, 0}}}};\n"
            f"const char* const files_{name}[] = {{{paths}}};\n"
            f'const Kernel about_{name} = {{"{k.name}", {name}, {{{parameters}}}, '
            f"{self.static_shared}, {self.dynamic_offset}, {{{shared}}}, {{{cluster}}}, {threads}, "
            f"lines_{name}, files_{name}}};\n"
            f"const bool known_{name} = (define_kernel(&about_{name}), true);"
        )

    def _scope(self, scope: Scope, outer: list[dict[str, str]]) -> Iterator[str]:
        """Statements in order: declarations first, so that no branch jumps over one."""
        self.scopes += 1
        number = self.scopes
        labels = {s.name: f"L{number}_{register(s.name)}" for s in scope.statements if isinstance(s, Label)}
        inside = [*outer, labels]
        for s in scope.statements:
            if isinstance(s, Register):
                yield _declare(s)
            elif isinstance(s, Variable) and s.space == "local":
                self.context.symbols[s.name] = f"reinterpret_cast<u64>(local_{register(s.name)})"
                yield f"alignas({s.align}) u8 local_{register(s.name)}[{s.size}];"
        targets: dict[str, Targets] = {}
        for a, b in zip(scope.statements, scope.statements[1:], strict=False):
            if isinstance(a, Label) and isinstance(b, Targets):
                targets[a.name] = b
        run: list[Instruction] = []
        for s in scope.statements:
            if isinstance(s, Location):
                self.location = s
                continue
            if isinstance(s, Instruction):
                self.lines.append((s.line, self.location.file, self.location.line))
                if _joins(run, s):
                    run.append(s)
                    continue
            if run:
                yield self._emit(partial(warps.mma_run, self.context, run), run[0])
                run = []
            if isinstance(s, Instruction) and _joins(run, s):
                run = [s]
            elif isinstance(s, Instruction):
                yield self._instruction(s, inside, targets)
            elif isinstance(s, Label):
                yield f"{labels[s.name]}: ;"
            elif isinstance(s, Scope):
                yield "{"
                yield from self._scope(s, inside)
                yield "}"
        if run:
            yield self._emit(partial(warps.mma_run, self.context, run), run[0])

    def _emit(self, make: Callable[[], str], i: Instruction) -> str:
        try:
            return make()
        except Unknown:
            self.unknown[i.opcode] += 1
            return f'report("unknown instruction", {i.line}, "%s", "{i.opcode}");'

    def _instruction(self, i: Instruction, labels: list[dict[str, str]], targets: dict[str, Targets]) -> str:
        head = i.parts[0]
        if head == "bra":
            text = f"goto {_find(labels, i.operands[0])};"
        elif head == "brx":
            cases = targets[i.operands[1]].labels
            jumps = " ".join(f"case {n}: goto {_find(labels, x)};" for n, x in enumerate(cases))
            text = f"switch ({self.context.value(i.operands[0], 'u32')}) {{ {jumps} }}"
        elif head in ("ret", "exit"):
            text = "return;"
        elif head == "trap" or (head == "call" and "__assertfail" in i.operands):
            text = f'{{ report("trap", {i.line}, "%s", "the kernel gave up"); return; }}'
        elif head == "call" and "vprintf" in i.operands:
            text = ""
        elif head in HANDLERS:
            text = self._emit(partial(HANDLERS[head], self.context, i), i)
        else:
            self.unknown[i.opcode] += 1
            text = f'report("unknown instruction", {i.line}, "%s", "{i.opcode}");'
        if not i.guard:
            return text
        return f"if ({'!' if i.negated else ''}{register(i.guard)}) {{ {text} }}"


def _joins(run: Sequence[Instruction], i: Instruction) -> bool:
    """Whether an instruction can go into a run of `mma.sync` with these."""
    if i.parts[:2] != ["mma", "sync"] or i.guard or len(run) >= 16:
        return False
    try:
        form = warps.mma_form(i)
    except Unknown:
        return False
    return not run or form == warps.mma_form(run[0])


def _find(labels: list[dict[str, str]], name: str) -> str:
    for scope in reversed(labels):
        if name in scope:
            return scope[name]
    raise KeyError(name)


def _declare(r: Register) -> str:
    kind = "bool" if r.kind == "pred" else _unsigned(SIZES[r.kind])
    names = [f"{r.name}{n}" for n in range(r.count)] if r.count else [r.name]
    return f"[[maybe_unused]] {kind} " + ", ".join(f"{register(n)} = {_POISON[kind]}" for n in names) + ";"


def _all_variables(scope: Scope) -> Iterator[Variable]:
    for s in scope.statements:
        if isinstance(s, Variable):
            yield s
        elif isinstance(s, Scope):
            yield from _all_variables(s)

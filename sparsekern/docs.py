"""Documentation rendered from the ops' records: `docs/ops.md`, and what `help(sparsekern.rms_norm)` shows."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterable

import torch

from sparsekern.schema import DTYPES, Arg, Op, Option, Out
from sparsekern.shapes import Shape

FAMILIES = {
    "quant": "Quantisation, activation and normalisation",
    "moe": "Routing and permutation",
    "gemm": "Matrix products",
    "indexer": "Lightning indexer",
    "attention": "Attention",
    "kv": "Paged KV cache",
    "mhc": "Hyper-connections",
    "engram": "Engram: memory looked up by hashes of n-grams",
}
HEAD = """\
# The ops

Made by `python docs/generate.py` from the records in `sparsekern/ops/`; a test fails when it is stale.

- Shapes name their sizes. `[..., K/128]` has any leading dimensions, and `K/128` columns, rounded up.
- fp4 is `uint8` holding two E2M1 numbers a byte, the first in the low nibble; sizes count numbers, not bytes.
- `int64` is taken wherever `int32` is, and `uint8` wherever `float8_e8m0fnu` is.
- Rows of an argument may lie any distance apart, unless it is marked contiguous.
- `out` takes a tensor, or a tuple of them in the order of the results; the op then allocates nothing.
- Tolerance is how far a result may be from `sparsekern.reference.<op>`, as a part of the largest value of its
  row. Whatever it is, every instruction set and number of threads returns the same bits.
"""


def document(op: Op) -> None:
    """Add to the docstring of the public function what the op's record knows."""
    op.fn.__doc__ = docstring(op)


def docstring(op: Op) -> str:
    """The function's own text, then Args, Returns, Raises and Source."""
    single = len(op.outs) == 1
    sections = {
        "Args": [
            *(f"{a.name}: {forms(a)} {dtypes(op, a)}. {capital(a.doc)}{how(a)}." for a in op.args),
            *(f"{a.name}: {forms(a)} {dtypes(op, a)}. {capital(a.doc)}." for a in arguments(op)),
            *(f"{o.name}: {kind(o)}." for o in visible(op)),
            *(f"{name}: {inspect.signature(op.fn).parameters[name].annotation}." for name in op.apart),
            *["out: where to write the result, instead of into new memory."] * bool(op.outs),
        ],
        "Returns": [
            f"{'' if single else f'{r.name}: '}{shape(r)} {dtype(op, r)}. {capital(r.doc)}." for r in op.outs
        ]
        or ["None."],
        "Raises": [
            "ShapeError: (a ValueError) a shape, layout, index or option does not fit; nothing was written.",
            "DtypeError: (a TypeError) the dtype or type of an argument does not fit; nothing was written.",
        ],
        "Source": [f"{op.source}. {capital(tolerance(op))}."],
    }
    body = (f"{title}:\n" + "\n".join(f"    {line}" for line in lines) for title, lines in sections.items())
    return "\n\n".join([own_text(op), *body]) + "\n"


def page(ops: Iterable[Op]) -> str:
    """All of `docs/ops.md`."""
    by_family: dict[str, list[Op]] = {}
    for op in ops:
        by_family.setdefault(op.family, []).append(op)
    parts = [HEAD]
    for family, members in by_family.items():
        links = ", ".join(f"[{op.name}](#{op.name})" for op in members)
        parts.append(f"**{FAMILIES.get(family, family)}**: {links}\n")
    for family, members in by_family.items():
        parts.append(f"## {FAMILIES.get(family, family)}\n")
        parts += map(entry, members)
    return "\n".join(parts)


def entry(op: Op) -> str:
    """One op of the page."""
    lines = [
        f"### {op.name}\n",
        f"```python\n{signature(op)}\n```\n",
        f"{own_text(op)}\n",
        "| | shape | dtype | |",
        "|---|---|---|---|",
    ]
    lines += [f"| `{a.name}` | {code(forms(a))} | {dtypes(op, a)} | {a.doc}{how(a)} |" for a in op.args]
    for a in arguments(op):
        contiguous = "; contiguous" if a.layout == "dense" else ""
        lines.append(f"| `{a.name}` | {code(forms(a))} | {dtypes(op, a)} | {a.doc}{contiguous} |")
    lines += [f"| → `{r.name}` | {code(shape(r))} | {dtype(op, r)} | {r.doc} |" for r in op.outs]
    lines.append(f"\nTolerance: {tolerance(op)}. Source: {op.source}.\n")
    return "\n".join(lines)


def own_text(op: Op) -> str:
    """The docstring as the op's file has it."""
    return inspect.cleandoc(op.fn.__doc__ or "").partition("\n\nArgs:\n")[0]


def signature(op: Op) -> str:
    """The call, on several lines if it is long."""
    parts, starred = [], False
    for p in inspect.signature(op.fn).parameters.values():
        if p.kind is p.KEYWORD_ONLY and not starred:
            parts.append("*")
            starred = True
        default = "" if p.default is p.empty else f" = {literal(p.default)}"
        parts.append(f"{p.name}: {p.annotation}{default}")
    result = op.fn.__annotations__["return"]
    line = f"{op.name}({', '.join(parts)}) -> {result}"
    if len(line) <= 100:
        return line
    return "\n".join([f"{op.name}(", *(f"    {part}," for part in parts), f") -> {result}"])


def arguments(op: Op) -> list[Arg]:
    """The tensors that the signature shows; others travel inside those."""
    return [a for a in op.args if a.name in inspect.signature(op.fn).parameters]


def visible(op: Op) -> list[Option]:
    """The options that the signature shows."""
    return [o for o in op.options if o not in op.hidden]


def brackets(s: Shape) -> str:
    """A shape as it reads in prose."""
    return f"[{', '.join(s.text.split())}]"


def forms(a: Arg) -> str:
    """The shapes that an argument may have."""
    return " or ".join(map(brackets, a.forms))


def how(a: Arg) -> str:
    """What else is to know about an argument."""
    return "; contiguous" * (a.layout == "dense") + "; written in place" * a.written


def shape(r: Out) -> str:
    """The shape of a result."""
    return brackets(Shape(r.shape))


def torch_name(word: str) -> str:
    """A dtype of a record by the name that torch has for it."""
    return str(DTYPES[word]).removeprefix("torch.") if word in DTYPES else word


def dtypes(op: Op, a: Arg) -> str:
    """The dtypes that an argument may have."""
    return " or ".join([*map(torch_name, a.dtypes.split()), *["None"] * (a.name in op.optional)])


def dtype(op: Op, r: Out) -> str:
    """The dtype of a result: one, that of an argument, or what an option says."""
    arguments = {a.name for a in op.args}
    fixed = {*DTYPES, "fp4"} - arguments
    return ", else ".join(torch_name(w) if w in fixed else f"as `{w}`" for w in r.dtype.split())


def kind(o: Option) -> str:
    """The values that an option may have, and its default."""
    values = {
        "enum": " or ".join(map(repr, o.choices)),
        "dtype": "a torch.dtype",
        "ints": f"{o.length} ints",
    }.get(o.kind, o.kind)
    optional = " or None" if o.nullable else ""
    default = "" if o.default is inspect.Parameter.empty else f", by default {literal(o.default)}"
    return f"{values}{optional}{default}"


def literal(value: object) -> str:
    """A default as one writes it."""
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) if isinstance(value, torch.dtype) else repr(value)


def tolerance(op: Op) -> str:
    """How far off its reference an op may be, in words."""
    return f"within {bound(op)} of the reference" if op.max_err else "the bits of the reference"


def bound(op: Op) -> str:
    """How far off its reference an op may be, as a part of the largest value of a row."""
    if op.max_err == 0:
        return "same bits"
    exponent = math.log2(op.max_err)
    return f"2^{exponent:.0f}" if exponent.is_integer() else f"{op.max_err:.1e}"


def code(text: str) -> str:
    """Every pair of brackets as code."""
    return re.sub(r"\[.*?\]", lambda m: f"`{m[0]}`", text)


def capital(text: str) -> str:
    """A sentence of it."""
    return text[:1].upper() + text[1:]

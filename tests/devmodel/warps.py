"""Instructions that a warp, a block or a cluster does together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .context import Context, Unknown, register, type_of
from .ptx import Instruction


def barrier(c: Context, i: Instruction) -> str:
    """`bar` and `barrier`: of a block, some of its threads, a warp, a cluster."""
    parts, line = i.parts, i.line
    if "warp" in parts:
        return f"join_warp({c.value(i.operands[0], 'u32')}, {line});"
    if "cluster" in parts:
        return f"cluster_{'arrive' if 'arrive' in parts else 'wait'}({line});"
    if "red" in parts:
        how = next(p for p in parts if p in ("popc", "and", "or"))
        to, number, *rest = i.operands
        count = c.value(rest[0], "u32") if len(rest) > 1 else "0"
        name = {"popc": "popc", "and": "and_", "or": "or_"}[how]
        call = f"barrier({c.value(number, 'u32')}, {count}, true, {line}, Reduce::{name}, {c.raw(rest[-1])})"
        return c.assign(to, call) if how == "popc" else f"{c.raw(to)} = {call} != 0;"
    number, *rest = i.operands or ("0",)
    count = c.value(rest[0], "u32") if rest else "0"
    return f"barrier({c.value(number, 'u32')}, {count}, {str('sync' in parts).lower()}, {line});"


def vote(c: Context, i: Instruction) -> str:
    how, (to, predicate, mask) = i.parts[2], i.operands
    if how == "ballot":
        return c.assign(to, f"ballot({c.raw(predicate)}, {c.value(mask, 'u32')}, {i.line})")
    return f"{c.raw(to)} = vote_{how}({c.raw(predicate)}, {c.value(mask, 'u32')}, {i.line});"


def active_mask(c: Context, i: Instruction) -> str:
    """Nothing keeps lanes together here, so the honest answer is the lane alone."""
    return c.assign(i.operands[0], "(1u << current->lane)")


def match(c: Context, i: Instruction) -> str:
    kind = "u" + type_of(i)[1:]
    to, x, mask = i.operands
    arguments = f"{c.value(x, kind)}, {c.value(mask, 'u32')}"
    if "any" in i.parts:
        return c.assign(to, f"match_any<{kind}>({arguments}, {i.line})")
    first, _, second = to.partition("|")
    call = c.assign(first, f"match_all<{kind}>({arguments}, all, {i.line})")
    return f"{{ bool all; {call} {c.raw(second)} = all; }}"


def redux(c: Context, i: Instruction) -> str:
    kind, how = type_of(i), i.parts[2]
    join = how + "_" if how in ("and", "or", "xor") else how
    to, x, mask = i.operands
    function = f"+[]({kind} a, {kind} b) {{ return {join}<{kind}>(a, b); }}"
    operands = f"{c.value(x, kind)}, {function}, {c.value(mask, 'u32')}"
    call = f'redux<{kind}>("redux.sync.{how}", {operands}, {i.line})'
    return c.assign(to, call)


def shuffle(c: Context, i: Instruction) -> str:
    how = {"up": "u", "down": "d", "bfly": "b", "idx": "i"}[i.parts[2]]
    to, *operands = i.operands
    first, _, second = to.partition("|")
    words = ", ".join(c.value(x, "u32") for x in operands)
    inside = f" {c.raw(second)} = inside;" if second else ""
    value, b, bounds, mask = (w for w in words.split(", "))
    call = f"shuffle('{how}', {value}, {b}, {bounds}, {mask}, inside, {i.line})"
    return f"{{ bool inside; {c.assign(first, call)}{inside} }}"


def elect(c: Context, i: Instruction) -> str:
    first, _, second = i.operands[0].partition("|")
    call = c.assign(first, f"elect({c.value(i.operands[1], 'u32')}, chosen)")
    return f"{{ bool chosen; {call} {c.raw(second)} = chosen; }}"


def matrices(c: Context, i: Instruction) -> str:
    """`ldmatrix` and `stmatrix`."""
    if "m8n8" not in i.parts:
        raise Unknown(i.opcode)
    count = next((p[1:] for p in i.parts if p in ("x1", "x2", "x4")), "1")
    arguments = f"<{count}, {str('trans' in i.parts).lower()}>"
    if i.parts[0] == "stmatrix":
        where, values = i.operands
        put = f"const u32 put[] = {c.words(values)};"
        return f"{{ {put} stmatrix{arguments}({c.shared(where)}, put, {i.line}); }}"
    to, where = i.operands
    take = " ".join(c.assign(x, f"got[{n}]") for n, x in enumerate(c.list(to)))
    return f"{{ u32 got[{count}]; ldmatrix{arguments}({c.shared(where)}, got, {i.line}); {take} }}"


def transpose(c: Context, i: Instruction) -> str:
    return c.assign(i.operands[0], f"movmatrix({c.value(i.operands[1], 'u32')}, {i.line})")


_SHAPES = {"m16n8k8": 8, "m16n8k16": 16, "m16n8k32": 32}


def mma_form(i: Instruction) -> tuple[str, str, int]:
    """The element types and k of an `mma.sync`.

    Raises:
        Unknown: the model has no such form.
    """
    parts = [p for p in i.parts if p not in ("kind_f8f6f4",)]
    k, kinds = _SHAPES.get(parts[3], 0), parts[6:]
    small = kinds[1:3] in (["bf16", "bf16"], ["f16", "f16"]) and k in (8, 16)
    fp8 = {*kinds[1:3]} <= {"e4m3", "e5m2"} and k in (16, 32)
    if len(kinds) != 4 or kinds[0] != "f32" or kinds[3] != "f32" or not (small or fp8):
        raise Unknown(i.opcode)
    return kinds[1], kinds[2], k


def mma_run(c: Context, run: Sequence[Instruction]) -> str:
    """Several `mma.sync` of one form in a row: the warp comes together once for all of them."""
    a, b, k = mma_form(run[0])
    places: dict[str, int] = {}
    steps, written = [], set()
    for i in run:
        fields = [
            ", ".join(str(places.setdefault(x, len(places))) for x in c.list(operand))
            for operand in i.operands
        ]
        steps.append("{" + ", ".join(f"{{{f}}}" for f in fields) + "}")
        written |= {*c.list(i.operands[0])}
    if len(places) > 255:
        raise Unknown("mma.sync of too many registers")
    values = ", ".join(f"as<u32>({c.raw(x)})" for x in places)
    back = " ".join(f"{register(x)} = v[{n}];" for x, n in places.items() if x in written)
    return (
        f"{{ static constexpr Mma steps[] = {{{', '.join(steps)}}}; u32 v[] = {{{values}}}; "
        f"mma(Element::{a}, Element::{b}, {k}, steps, {len(run)}, v, {run[0].line}); {back} }}"
    )


def mma(c: Context, i: Instruction) -> str:
    if i.parts[1] != "sync":
        raise Unknown(i.opcode)
    return mma_run(c, [i])


HANDLERS: dict[str, Callable[[Context, Instruction], str]] = {
    **dict.fromkeys(("bar", "barrier"), barrier),
    "vote": vote,
    "activemask": active_mask,
    "match": match,
    "redux": redux,
    "shfl": shuffle,
    "elect": elect,
    **dict.fromkeys(("ldmatrix", "stmatrix"), matrices),
    "movmatrix": transpose,
    "mma": mma,
}

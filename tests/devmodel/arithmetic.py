"""Instructions of one thread that touch no memory."""

from __future__ import annotations

from collections.abc import Callable

from .context import Context, Unknown, type_of
from .ptx import SIZES, Instruction

FLOATS = ("f32", "f64")
SMALL = ("f16", "bf16", "f16x2", "bf16x2")
ROUND = {"rn": "nearest", "rz": "zero", "rm": "down", "rp": "up", "rni": "nearest", "rzi": "zero"}
ROUND |= {"rmi": "down", "rpi": "up", "rna": "nearest"}


def _float(i: Instruction, kind: str, name: str, operands: list[str]) -> str:
    """An operation of floats with its modifiers."""
    parts = i.parts
    if kind == "f32" and "ftz" in parts:
        operands = [f"flush({x})" for x in operands]
    rounding = next((p for p in parts if p in ("rz", "rm", "rp")), None)
    if rounding and kind == "f32":
        wide = ", ".join(f"static_cast<f64>({x})" for x in operands)
        result = f"directed<Round::{ROUND[rounding]}>({name}<f64>({wide}))"
    elif rounding:
        raise Unknown(i.opcode)
    else:
        result = f"{name}<{kind}>({', '.join(operands)})"
    if kind == "f32" and "ftz" in parts:
        result = f"flush({result})"
    return f"saturate({result})" if "sat" in parts else result


def plain(name: str) -> Callable[[Context, Instruction], str]:
    """An operation whose operands all have the instruction's type."""

    def emit(c: Context, i: Instruction) -> str:
        kind = type_of(i)
        to, *operands = i.operands
        values = [c.value(x, kind) for x in operands]
        if kind in FLOATS or kind in SMALL:
            chosen = f"{name}_relu" if "relu" in i.parts and name == "fma" else name
            return c.assign(to, _float(i, kind, chosen, values))
        if {"sat", "cc"} & {*i.parts}:
            raise Unknown(i.opcode)
        return c.assign(to, f"{name}<{'bool' if kind == 'pred' else kind}>({', '.join(values)})")

    return emit


def multiply(c: Context, i: Instruction) -> str:
    """`mul` and `mad`: low half, high half, or all of the product."""
    kind, add = type_of(i), i.parts[0] == "mad"
    if kind in FLOATS or kind in SMALL:
        return plain("fma" if add else "mul")(c, i)
    to, a, b, *rest = i.operands
    values = [c.value(a, kind), c.value(b, kind)]
    if "wide" in i.parts:
        wide = kind[0] + str(16 * SIZES[kind])
        values += [c.value(x, wide) for x in rest]
        return c.assign(to, f"{i.parts[0]}_wide<{wide}>({', '.join(values)})")
    values += [c.value(x, kind) for x in rest]
    name = i.parts[0] + ("_hi" if "hi" in i.parts else "")
    return c.assign(to, f"{name}<{kind}>({', '.join(values)})")


def mul24(c: Context, i: Instruction) -> str:
    kind = type_of(i)
    to, a, b, *rest = i.operands
    product = f"mul24<{kind}>({c.value(a, kind)}, {c.value(b, kind)})"
    return c.assign(to, f"add<{kind}>({product}, {c.value(rest[0], kind)})" if rest else product)


def divide(c: Context, i: Instruction) -> str:
    """Correctly rounded, but for div.approx and div.full."""
    kind = type_of(i)
    if kind == "f32" and {"approx", "full"} & {*i.parts}:
        a, b = (c.value(x, kind) for x in i.operands[1:])
        return c.assign(i.operands[0], f"div_approximately({a}, {b})")
    return plain("div")(c, i)


def extreme(c: Context, i: Instruction) -> str:
    """`min` and `max`, of two or three."""
    kind, nan = type_of(i), "true" if "NaN" in i.parts else "false"
    if "xorsign" in i.parts or "relu" in i.parts:
        raise Unknown(i.opcode)
    to, *operands = i.operands
    result = c.value(operands[0], kind)
    for x in operands[1:]:
        result = f"{i.parts[0]}<{kind}, {nan}>({result}, {c.value(x, kind)})"
    return c.assign(to, result)


def logic(c: Context, i: Instruction) -> str:
    return plain({"and": "and_", "or": "or_", "xor": "xor_", "not": "not_"}[i.parts[0]])(c, i)


def shift(c: Context, i: Instruction) -> str:
    kind = type_of(i)
    to, a, n = i.operands
    return c.assign(to, f"{i.parts[0]}<{kind}>({c.value(a, kind)}, {c.value(n, 'u32')})")


def funnel(c: Context, i: Instruction) -> str:
    to, a, b, n = i.operands
    words = ", ".join(c.value(x, "u32") for x in (a, b, n))
    left, wrap = str("l" in i.parts).lower(), str("wrap" in i.parts).lower()
    return c.assign(to, f"shf({words}, {left}, {wrap})")


def field(c: Context, i: Instruction) -> str:
    """`bfi`, `bfe`: the last two operands are u32."""
    kind = type_of(i)
    to, *operands, position, length = i.operands
    values = [c.value(x, kind) for x in operands] + [c.value(position, "u32"), c.value(length, "u32")]
    return c.assign(to, f"{i.parts[0]}<{kind}>({', '.join(values)})")


def count(c: Context, i: Instruction) -> str:
    """`popc`, `clz`, `brev`."""
    kind = "u" + type_of(i)[1:]
    return c.assign(i.operands[0], f"{i.parts[0]}({c.value(i.operands[1], kind)})")


def find(c: Context, i: Instruction) -> str:
    kind = type_of(i)
    shift_amount = str("shiftamt" in i.parts).lower()
    return c.assign(i.operands[0], f"bfind<{kind}>({c.value(i.operands[1], kind)}, {shift_amount})")


def words(c: Context, i: Instruction) -> str:
    """`lop3`, `prmt`: all operands are 32-bit words."""
    to, *operands = i.operands
    if i.parts[0] == "prmt" and i.parts[1] != "b32":
        raise Unknown(i.opcode)
    return c.assign(to, f"{i.parts[0]}({', '.join(c.value(x, 'u32') for x in operands)})")


def dot(c: Context, i: Instruction) -> str:
    to, *operands = i.operands
    signs = ", ".join(str(p == "s32").lower() for p in i.parts[1:3])
    return c.assign(to, f"dp4a({', '.join(c.value(x, 'u32') for x in operands)}, {signs})")


def function(c: Context, i: Instruction) -> str:
    """Functions that hardware approximates; sqrt and rcp also exist rounded."""
    kind, name = type_of(i), i.parts[0]
    x = c.value(i.operands[1], kind)
    if "ftz" in i.parts:
        x = f"flush({x})"
    if "approx" not in i.parts and name in ("sqrt", "rcp"):
        exact = f"std::sqrt({x})" if name == "sqrt" else f"1 / {x}"
        return c.assign(i.operands[0], exact)
    if kind in SMALL:
        return c.assign(
            i.operands[0], f"by_floats<{kind}>([](f64 v) {{ return {name}(static_cast<f32>(v)); }}, {x})"
        )
    if kind != "f32":
        raise Unknown(i.opcode)
    return c.assign(i.operands[0], f"flush({name}({x}))" if "ftz" in i.parts else f"{name}({x})")


def move(c: Context, i: Instruction) -> str:
    """Also between a register and the parts of one."""
    to, value = i.operands
    if to.startswith("{"):
        parts = c.list(to)
        bits = 8 * SIZES[type_of(i)] // len(parts)
        return (
            f"{{ const u64 all = as<u64>({c.raw(value)}); "
            + " ".join(
                f"set({c.raw(x)}, as<u{bits}>(all >> {n * bits}));" for n, x in enumerate(parts) if x != "_"
            )
            + " }"
        )
    if value.startswith("{"):
        parts = c.list(value)
        bits = 8 * SIZES[type_of(i)] // len(parts)
        joined = " | ".join(f"as<u64>(as<u{bits}>({c.raw(x)})) << {n * bits}" for n, x in enumerate(parts))
        return f"{c.raw(to)} = static_cast<decltype({c.raw(to)})>({joined});"
    return f"{c.raw(to)} = static_cast<decltype({c.raw(to)})>({c.raw(value)});"


def select(c: Context, i: Instruction) -> str:
    to, a, b, p = i.operands
    return f"{c.raw(to)} = static_cast<decltype({c.raw(to)})>({c.raw(p)} ? {c.raw(a)} : {c.raw(b)});"


_ORDERED = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_UNSIGNED = {"lo": "<", "ls": "<=", "hi": ">", "hs": ">="}


def comparison(c: Context, how: str, kind: str, a: str, b: str) -> str:
    """A truth value; comparisons ending in u are true of NaN."""
    if how in _UNSIGNED:
        kind = "u" + kind[1:]
        return f"({c.value(a, kind)} {_UNSIGNED[how]} {c.value(b, kind)})"
    x, y = c.value(a, kind), c.value(b, kind)
    if kind in ("f16", "bf16"):
        x, y = f"widen({x})", f"widen({y})"
    nan = f"({x} != {x} || {y} != {y})"
    if how in ("nan", "num"):
        return nan if how == "nan" else f"!{nan}"
    if how.endswith("u"):
        return f"({nan} || {x} {_ORDERED[how[:-1]]} {y})"
    if how == "ne" and kind in (*FLOATS, "f16", "bf16"):
        return f"(!{nan} && {x} != {y})"
    return f"({x} {_ORDERED[how]} {y})"


def set_predicate(c: Context, i: Instruction) -> str:
    """`setp`, with a second result and a predicate to combine with."""
    kind = type_of(i)
    if kind in ("f16x2", "bf16x2"):
        raise Unknown(i.opcode)
    to, a, b, *with_ = i.operands
    test = comparison(c, i.parts[1], kind, a, b)
    first, _, second = to.partition("|")
    text = f"const bool yes = {test};"
    combined = {"and": "&&", "or": "||", "xor": "!="}.get(i.parts[2])
    for name, value in ((first, "yes"), (second, "!yes")):
        if name and name != "_":
            with_text = f" {combined} {c.raw(with_[0])}" if with_ else ""
            text += f" {c.raw(name)} = ({value}{with_text});"
    return "{ " + text + " }"


def set_mask(c: Context, i: Instruction) -> str:
    """`set`: all ones or 1.0 where true."""
    result, kind = i.parts[-2], i.parts[-1]
    test = comparison(c, i.parts[1], kind, i.operands[1], i.operands[2])
    return c.assign(i.operands[0], f"({test} ? 1.0f : 0.0f)" if result == "f32" else f"({test} ? ~0u : 0u)")


def convert(c: Context, i: Instruction) -> str:
    """`cvt`: between integers, floats and small floats."""
    parts = i.parts
    to, source = parts[-2], parts[-1]
    values = [c.value(x, source) for x in i.operands[1:]]
    x = values[0]
    rounding = ROUND.get(next((p for p in parts[1:] if p in ROUND), "rn"), "nearest")
    relu, target = "relu" in parts, i.operands[0]
    if to in ("e4m3x2", "e5m2x2"):
        high, low = values if source == "f32" else (f"widen(high({x}))", f"widen(low({x}))")
        return c.assign(target, f"static_cast<u16>(to_{to[:4]}({high}) << 8 | to_{to[:4]}({low}))")
    if source in ("e4m3x2", "e5m2x2"):
        code = c.value(i.operands[1], "u16")
        low, high = (f"to_f16(from_{source[:4]}(static_cast<u8>({code} >> {n})))" for n in (0, 8))
        return c.assign(target, f"pair({low}, {high})")
    if to in ("bf16x2", "f16x2") and source == "f32":
        high, low = (f"larger<true>({v}, 0.0f)" if relu else v for v in values)
        how = f"<Round::{rounding}>" if to == "bf16x2" else ""
        return c.assign(target, f"pair(to_{to[:-2]}{how}({low}), to_{to[:-2]}{how}({high}))")
    if to in ("f16", "bf16") and source == "f32":
        how = f"<Round::{rounding}>" if to == "bf16" else ""
        return c.assign(target, f"to_{to}{how}({f'larger<true>({x}, 0.0f)' if relu else x})")
    if source in ("f16", "bf16"):
        x, source = f"widen({x})", "f32"
        if to == "f32":
            return c.assign(target, x)
    if to == "tf32":
        return c.assign(target, f"to_tf32({x})")
    if source in FLOATS and to in FLOATS:
        if any(p in ("rni", "rzi", "rmi", "rpi") for p in parts):
            x = f"to_integral<Round::{rounding}>({x})"
        elif SIZES[to] < SIZES[source] and rounding != "nearest":
            x = f"directed<Round::{rounding}>({x})"
        x = f"static_cast<{to}>({x})"
        x = f"saturate({x})" if "sat" in parts else x
        return c.assign(target, f"flush({x})" if "ftz" in parts else x)
    if source in FLOATS:
        return c.assign(target, f"to_integer<{to}, Round::{rounding}>({x})")
    if to in FLOATS:
        wide = f"static_cast<f64>({x})"
        exact = f"directed<Round::{rounding}>({wide})" if rounding != "nearest" else f"static_cast<{to}>({x})"
        return c.assign(target, exact)
    if to in ("f16", "bf16"):
        return c.assign(target, f"narrow<{to}>(to_odd(static_cast<f64>({x})))")
    return c.assign(target, f"saturate_integer<{to}>({x})" if "sat" in parts else f"static_cast<{to}>({x})")


HANDLERS: dict[str, Callable[[Context, Instruction], str]] = {
    **{name: plain(name) for name in ("add", "sub", "fma", "rem", "neg", "abs")},
    **dict.fromkeys(("mul", "mad"), multiply),
    **dict.fromkeys(("mul24", "mad24"), mul24),
    "div": divide,
    **dict.fromkeys(("min", "max"), extreme),
    **dict.fromkeys(("and", "or", "xor", "not"), logic),
    **dict.fromkeys(("shl", "shr"), shift),
    "shf": funnel,
    **dict.fromkeys(("bfi", "bfe"), field),
    **dict.fromkeys(("popc", "clz", "brev"), count),
    "bfind": find,
    **dict.fromkeys(("lop3", "prmt"), words),
    "dp4a": dot,
    **dict.fromkeys(("ex2", "lg2", "rcp", "sqrt", "rsqrt", "tanh", "sin", "cos"), function),
    "mov": move,
    "selp": select,
    "setp": set_predicate,
    "set": set_mask,
    "cvt": convert,
}

"""Instructions that reach memory, or copy it behind the threads' backs."""

from __future__ import annotations

import re
from collections.abc import Callable

from .context import UNSIGNED, Context, Unknown, space_of, type_of
from .ptx import SIZES, Instruction

_ATOMIC_READS = {"volatile", "relaxed", "acquire"}
_ATOMIC_WRITES = {"volatile", "relaxed", "release"}


def load(c: Context, i: Instruction) -> str:
    kind, to, got = UNSIGNED[SIZES[type_of(i)]], c.list(i.operands[0]), "got[{}]"
    if type_of(i) in ("s8", "s16", "s32"):  # registers may be wider
        kind, got = type_of(i), "static_cast<s64>(got[{}])"
    take = " ".join(c.assign(x, got.format(n)) for n, x in enumerate(to) if x != "_")
    space = space_of(i)
    if space == "param":
        name = re.fullmatch(r"\[([\w$]+)(?:\+(\d+))?\]", i.operands[1])
        if name and name[1] in c.parameters:
            at = c.parameters[name[1]] + int(name[2] or 0)
            return f"{{ {kind} got[{len(to)}]; memcpy(got, parameters + {at}, sizeof got); {take} }}"
        if name:
            return ""  # the result of a call
    atomic = bool(_ATOMIC_READS & {*i.parts})
    how = ", Access::relaxed_read" if atomic else ""
    text = f"{kind} got[{len(to)}]; load({c.pointer(i.operands[1], space)}, got, {i.line}{how}); {take}"
    return f"{{ {text}{' after_polling();' if atomic else ''} }}"


def store(c: Context, i: Instruction) -> str:
    kind, values = UNSIGNED[SIZES[type_of(i)]], c.list(i.operands[1])
    if space_of(i) == "param":
        return ""  # an argument of a call
    how = ", Access::atomic" if _ATOMIC_WRITES & {*i.parts} else ""
    put = ", ".join(f"static_cast<{kind}>({c.raw(x)})" for x in values)
    where = c.pointer(i.operands[0], space_of(i))
    return f"{{ const {kind} put[] = {{{put}}}; store({where}, put, {i.line}{how}); }}"


_UPDATES = {
    "add": "add(old, {0})",
    "min": "min(old, {0})",
    "max": "max(old, {0})",
    "and": "and_(old, {0})",
    "or": "or_(old, {0})",
    "xor": "xor_(old, {0})",
    "exch": "{0}",
    "inc": "old >= {0} ? 0u : old + 1",
    "dec": "old == 0 || old > {0} ? {0} : old - 1",
    "cas": "bits(old) == bits({0}) ? {1} : old",
}


def atomic(c: Context, i: Instruction) -> str:
    """`atom` and `red`, also of several values next to each other."""
    kind = type_of(i)
    name = next((p for p in i.parts[1:] if p in _UPDATES), None)
    if name is None:
        raise Unknown(i.opcode)
    to, where, *operands = i.operands if i.parts[0] == "atom" else ("_", *i.operands)
    pointer = c.pointer(where, space_of(i))
    text = ""
    for n, (t, *values) in enumerate(
        zip(c.list(to) * len(c.list(operands[0])), *map(c.list, operands), strict=False)
    ):
        new = _UPDATES[name].format(*(c.value(x, kind) for x in values))
        update = f"[&]({kind} old) -> {kind} {{ return {new}; }}"
        call = f"read_modify_write<{kind}>({pointer} + {n * SIZES[kind]}, {i.line}, {update})"
        text += c.assign(t, call)
    return text + (" after_polling();" if name == "cas" else "")


def to_generic(c: Context, i: Instruction) -> str:
    """`cvta`: only shared addresses are not their own generic ones."""
    to, x = i.operands
    if not any(p.startswith("shared") for p in i.parts):
        return f"{c.raw(to)} = static_cast<decltype({c.raw(to)})>({c.raw(x)});"
    if "to" in i.parts:
        return c.assign(to, f"shared_address(reinterpret_cast<const void*>({c.value(x, 'u64')}))")
    return c.assign(to, f"reinterpret_cast<u64>(shared_pointer({c.value(x, 'u32')}))")


def map_shared(c: Context, i: Instruction) -> str:
    """`mapa`: this block's shared address as another block's of the cluster."""
    to, x, rank = i.operands
    if "shared_cluster" not in i.parts:
        raise Unknown(i.opcode)
    return c.assign(to, f"(({c.value(rank, 'u32')} + 1) << 24 | ({c.value(x, 'u32')} & 0xffffffu))")


def copy(c: Context, i: Instruction) -> str:
    """`cp.async` and `cp.async.bulk`."""
    parts, line = i.parts, i.line
    if parts[1] != "async":
        raise Unknown(i.opcode)
    if "bulk" in parts:
        return _bulk(c, i)
    if "mbarrier" in parts:
        counted = str("noinc" not in parts).lower()
        return f"copy_arrive({c.shared(i.operands[0])}, {counted}, {line});"
    if "commit_group" in parts:
        return f"copy_commit({line});"
    if "wait_group" in parts or "wait_all" in parts:
        return f"copy_wait({i.operands[0] + 'u' if i.operands else '~0u'}, {line});"
    to, source, size, *rest = i.operands
    if len(rest) > 1:
        raise Unknown(i.opcode)
    read = c.value(rest[0], "u32") if rest else f"{size}u"
    if rest and rest[0].startswith("%p"):  # ignore-src
        read = f"({c.raw(rest[0])} ? 0u : {size}u)"
    return f"copy_async({c.shared(to)}, {c.pointer(source, '')}, {size}u, {read}, {line});"


def _bulk(c: Context, i: Instruction) -> str:
    parts, line = i.parts, i.line
    if "commit_group" in parts:
        return "bulk_commit();"
    if "wait_group" in parts:
        return f"bulk_wait({i.operands[0]}u, {line});"
    if "tensor" in parts or "prefetch" in parts or "reduce" in parts:
        raise Unknown(i.opcode)
    if parts[3].startswith("shared") and parts[4] == "global":
        to, source, size, barrier, *rest = i.operands
        multicast = c.value(rest[0], "u32") if "multicast_cluster" in parts else "0"
        return (
            f"bulk_load({c.shared(to)}, {c.pointer(source, '')}, {c.value(size, 'u32')}, "
            f"{c.shared(barrier)}, {multicast}, {line});"
        )
    if parts[3] == "global":
        to, source, size, *_ = i.operands
        return f"bulk_store({c.pointer(to, '')}, {c.shared(source)}, {c.value(size, 'u32')}, {line});"
    raise Unknown(i.opcode)


def mbarrier(c: Context, i: Instruction) -> str:
    """`mbarrier.*`, whose first operands are results."""
    parts, line, name = i.parts, i.line, i.parts[1]
    if name == "init":
        return f"mbarrier_init({c.shared(i.operands[0])}, {c.value(i.operands[1], 'u32')}, {line});"
    if name == "inval":
        return f"mbarrier_invalidate({c.shared(i.operands[0])}, {line});"
    if name in ("try_wait", "test_wait"):
        to, where, what, *_ = i.operands
        by, kind = ("parity", "u32") if "parity" in parts else ("state", "u64")
        blocks = str(name == "try_wait").lower()
        call = f"mbarrier_wait_{by}({c.shared(where)}, {c.value(what, kind)}, {blocks}, {line})"
        return f"{c.raw(to)} = {call};"
    operands = list(i.operands)
    to = operands.pop(0) if not operands[0].startswith("[") else "_"
    where = c.shared(operands[0])
    if "noComplete" in parts or name == "arrive_drop":
        raise Unknown(i.opcode)
    if "expect_tx" in parts:
        arrives = str(name == "arrive").lower()
        call = f"mbarrier_expect({where}, {c.value(operands[1], 'u32')}, {arrives}, {line})"
    elif name == "arrive":
        count = c.value(operands[1], "u32") if len(operands) > 1 else "1u"
        call = f"mbarrier_arrive({where}, {count}, {line})"
    elif name == "complete_tx":
        return f"mbarrier_complete({where}, {c.value(operands[1], 'u32')}, {line});"
    else:
        raise Unknown(i.opcode)
    return c.assign(to, call)


def fence(c: Context, i: Instruction) -> str:
    """Fences order what a block's threads do by barriers anyway; only the proxies' fence is modelled."""
    if i.parts[:3] == ["fence", "proxy", "async"] or ("proxy" in i.parts and "async" in i.opcode):
        return "fence_proxy_async();"
    return ""


def nothing(c: Context, i: Instruction) -> str:
    """Hints."""
    return ""


HANDLERS: dict[str, Callable[[Context, Instruction], str]] = {
    **dict.fromkeys(("ld", "ldu"), load),
    "st": store,
    **dict.fromkeys(("atom", "red"), atomic),
    "cvta": to_generic,
    "mapa": map_shared,
    "cp": copy,
    "mbarrier": mbarrier,
    **dict.fromkeys(("fence", "membar"), fence),
    **dict.fromkeys(("prefetch", "prefetchu", "discard", "applypriority", "createpolicy"), nothing),
    **dict.fromkeys(("setmaxnreg", "griddepcontrol", "nanosleep", "pmevent"), nothing),
}

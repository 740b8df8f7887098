"""Every instruction of one thread against results worked out by hand, from the words of the PTX manual."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from .arithmetic import HANDLERS
from .build import library
from .device import Device
from .ptx import SIZES

NAN, INF = 0x7FFFFFFF, 0x7F800000


def f(x: float) -> int:
    """A float32's bits."""
    return int(torch.tensor(x, dtype=torch.float32).view(torch.int32).item()) & 0xFFFFFFFF


def d(x: float) -> int:
    """A float64's bits."""
    return int(torch.tensor(x, dtype=torch.float64).view(torch.int64).item()) & (2**64 - 1)


def h(x: float) -> int:
    """A float16's bits."""
    return int(torch.tensor(x, dtype=torch.float16).view(torch.int16).item()) & 0xFFFF


def b(x: float) -> int:
    """A bfloat16's bits."""
    return int(torch.tensor(x, dtype=torch.bfloat16).view(torch.int16).item()) & 0xFFFF


M1 = 0xFFFFFFFF
# instruction with D and A, B, C for operands; the registers' types, D's first; (operands..., result)
VECTORS: list[tuple[str, str, list[tuple[int, ...]]]] = [
    ("ld.global.s32 D, [from]", "b64 b32", [(M1, 2**64 - 1), (5, 5)]),
    ("ld.global.s8 D, [from]", "b32 b32", [(0x1280, 0xFFFFFF80), (0x127F, 0x7F)]),
    ("ld.global.u16 D, [from]", "b64 b32", [(0xFFFF8000, 0x8000)]),
    ("add.s32 D, A, B", "b32 b32 b32", [(1, 2, 3), (0x7FFFFFFF, 1, 0x80000000), (M1, M1, 0xFFFFFFFE)]),
    ("add.u16 D, A, B", "b16 b16 b16", [(0xFFFF, 2, 1)]),
    ("add.s64 D, A, B", "b64 b64 b64", [(2**63 - 1, 1, 2**63)]),
    (
        "add.f32 D, A, B",
        "f32 f32 f32",
        [(f(1), f(2**-24), f(1)), (f(1), f(2**-23), f(1 + 2**-23)), (INF, f(-1e38), INF)],
    ),
    ("add.f32 D, A, B", "f32 f32 f32", [(INF, 0xFF800000, NAN), (f(2**-140), f(2**-140), f(2**-139))]),
    ("add.ftz.f32 D, A, B", "f32 f32 f32", [(f(1e-40), f(1e-40), 0), (f(-1e-40), 0x80000000, 0x80000000)]),
    (
        "add.rz.f32 D, A, B",
        "f32 f32 f32",
        [(f(1), f(2**-24 * 1.5), f(1)), (f(-1), f(-(2**-24) * 1.5), f(-1))],
    ),
    ("add.rp.f32 D, A, B", "f32 f32 f32", [(f(1), f(2**-40), f(1 + 2**-23))]),
    ("add.rm.f32 D, A, B", "f32 f32 f32", [(f(1), f(-(2**-40)), f(1 - 2**-24))]),
    ("add.sat.f32 D, A, B", "f32 f32 f32", [(f(1), f(2), f(1)), (f(-1), f(0.5), 0), (NAN, f(1), 0)]),
    ("add.rn.bf16x2 D, A, B", "b32 b32 b32", [(b(1) | b(2) << 16, b(2**-9) | b(3) << 16, b(1) | b(5) << 16)]),
    (
        "add.f16 D, A, B",
        "b16 b16 b16",
        [(h(2048), h(1), h(2048)), (h(2050), h(1), h(2052)), (h(65504), h(16), h(float("inf")))],
    ),
    ("sub.s32 D, A, B", "b32 b32 b32", [(3, 5, 0xFFFFFFFE)]),
    ("sub.f32 D, A, B", "f32 f32 f32", [(f(3), f(5), f(-2))]),
    ("sub.f64 D, A, B", "f64 f64 f64", [(d(1), d(2**-60), d(1))]),
    ("mul.lo.s32 D, A, B", "b32 b32 b32", [(M1, 7, 0xFFFFFFF9), (0x10000, 0x10000, 0)]),
    ("mul.hi.s32 D, A, B", "b32 b32 b32", [(M1, 7, M1), (0x10000, 0x10000, 1)]),
    ("mul.hi.u32 D, A, B", "b32 b32 b32", [(M1, 7, 6)]),
    ("mul.hi.u64 D, A, B", "b64 b64 b64", [(2**64 - 1, 2**64 - 1, 2**64 - 2)]),
    ("mul.wide.s32 D, A, B", "b64 b32 b32", [(M1, 7, 2**64 - 7)]),
    ("mul.wide.u32 D, A, B", "b64 b32 b32", [(M1, 7, 7 * M1)]),
    ("mul.wide.u16 D, A, B", "b32 b16 b16", [(0xFFFF, 0xFFFF, 0xFFFE0001)]),
    ("mul.f32 D, A, B", "f32 f32 f32", [(f(3), f(0.1), 0x3E99999A)]),
    ("mul.rz.f32 D, A, B", "f32 f32 f32", [(f(1 + 2**-23), f(1 + 2**-23), f(1 + 2**-22))]),
    ("mul.bf16x2 D, A, B", "b32 b32 b32", [(b(3) | b(5) << 16, b(7) | b(-2) << 16, b(21) | b(-10) << 16)]),
    ("mad.lo.s32 D, A, B, C", "b32 b32 b32 b32", [(M1, 7, 3, 0xFFFFFFFC)]),
    ("mad.wide.s32 D, A, B, C", "b64 b32 b32 b64", [(M1, 2, 5, 3)]),
    ("mad.hi.u32 D, A, B, C", "b32 b32 b32 b32", [(M1, 7, 4, 10)]),
    ("mul24.lo.u32 D, A, B", "b32 b32 b32", [(0xFF000003, 5, 15)]),
    ("mad24.lo.s32 D, A, B, C", "b32 b32 b32 b32", [(0x00FFFFFF, 5, 7, 2)]),
    ("fma.rn.f32 D, A, B, C", "f32 f32 f32 f32", [(f(1 + 2**-23), f(1 + 2**-23), f(-1), f(2**-22 + 2**-46))]),
    ("fma.rn.f64 D, A, B, C", "f64 f64 f64 f64", [(d(3), d(4), d(5), d(17))]),
    (
        "fma.rn.bf16x2 D, A, B, C",
        "b32 b32 b32 b32",
        [(b(3) | b(5) << 16, b(2) | b(2) << 16, b(1) | b(-1) << 16, b(7) | b(9) << 16)],
    ),
    (
        "fma.rn.relu.bf16x2 D, A, B, C",
        "b32 b32 b32 b32",
        [(b(-3) | b(5) << 16, b(2) | b(2) << 16, 0, b(10) << 16)],
    ),
    # 1 + 2^-7 + 2^-8 is a tie of bf16, and the 2^-20 that a float keeps breaks it upwards
    ("fma.rn.bf16 D, A, B, C", "b16 b16 b16 b16", [(b(2**-20), b(1), b(1), b(1))]),
    ("div.s32 D, A, B", "b32 b32 b32", [(7, 0xFFFFFFFE, 0xFFFFFFFD), (0x80000000, M1, 0x80000000)]),
    ("div.u32 D, A, B", "b32 b32 b32", [(7, 2, 3)]),
    ("div.rn.f32 D, A, B", "f32 f32 f32", [(f(1), f(3), 0x3EAAAAAB), (f(1), 0, INF), (0, 0, NAN)]),
    ("div.approx.f32 D, A, B", "f32 f32 f32", [(f(1), f(4), f(0.25))]),
    ("rem.s32 D, A, B", "b32 b32 b32", [(0xFFFFFFF9, 3, M1), (7, 3, 1)]),
    ("rem.u64 D, A, B", "b64 b64 b64", [(10**18, 7, 10**18 % 7)]),
    ("neg.s32 D, A", "b32 b32", [(5, 0xFFFFFFFB), (0x80000000, 0x80000000)]),
    ("neg.f32 D, A", "f32 f32", [(f(1), f(-1)), (0, 0x80000000)]),
    ("abs.s32 D, A", "b32 b32", [(0xFFFFFFFB, 5)]),
    ("abs.f32 D, A", "f32 f32", [(f(-2), f(2))]),
    ("abs.bf16x2 D, A", "b32 b32", [(b(-2) | b(3) << 16, b(2) | b(3) << 16)]),
    ("min.s32 D, A, B", "b32 b32 b32", [(M1, 1, M1)]),
    ("min.u32 D, A, B", "b32 b32 b32", [(M1, 1, 1)]),
    ("max.s64 D, A, B", "b64 b64 b64", [(2**64 - 1, 1, 1)]),
    (
        "min.f32 D, A, B",
        "f32 f32 f32",
        [(NAN, f(1), f(1)), (f(1), NAN, f(1)), (0, 0x80000000, 0x80000000), (NAN, NAN, NAN)],
    ),
    (
        "max.f32 D, A, B",
        "f32 f32 f32",
        [(NAN, f(-1), f(-1)), (0, 0x80000000, 0), (0x80000000, 0, 0), (f(3), f(2), f(3))],
    ),
    ("max.NaN.f32 D, A, B", "f32 f32 f32", [(NAN, f(-1), NAN), (f(3), f(2), f(3))]),
    ("max.bf16x2 D, A, B", "b32 b32 b32", [(b(-2) | b(3) << 16, b(1) | b(2) << 16, b(1) | b(3) << 16)]),
    ("and.b32 D, A, B", "b32 b32 b32", [(0xF0F0, 0xFF00, 0xF000)]),
    ("or.b32 D, A, B", "b32 b32 b32", [(0xF0F0, 0xFF00, 0xFFF0)]),
    ("xor.b64 D, A, B", "b64 b64 b64", [(0xF0F0, 0xFF00, 0x0FF0)]),
    ("not.b16 D, A", "b16 b16", [(0xF0F0, 0x0F0F)]),
    ("shl.b32 D, A, B", "b32 b32 b32", [(3, 4, 48), (1, 32, 0), (1, 255, 0)]),
    ("shr.u32 D, A, B", "b32 b32 b32", [(0x80000000, 31, 1), (M1, 32, 0)]),
    ("shr.s32 D, A, B", "b32 b32 b32", [(0x80000000, 31, M1), (0x80000000, 40, M1)]),
    ("shr.s64 D, A, B", "b64 b64 b32", [(2**63, 63, 2**64 - 1)]),
    ("shf.l.wrap.b32 D, A, B, C", "b32 b32 b32 b32", [(0x80000000, 1, 1, 3), (0x80000000, 1, 33, 3)]),
    ("shf.r.clamp.b32 D, A, B, C", "b32 b32 b32 b32", [(0x80000000, 1, 1, 0xC0000000), (5, 6, 40, 6)]),
    ("bfi.b32 D, A, B, 8, 4", "b32 b32 b32", [(0xFF, 0, 0xF00), (0, M1, 0xFFFFF0FF)]),
    ("bfe.u32 D, A, 8, 4", "b32 b32", [(0xABCD, 0xB)]),
    ("bfe.s32 D, A, 8, 4", "b32 b32", [(0xABCD, 0xFFFFFFFB)]),
    ("popc.b32 D, A", "b32 b32", [(0xF0F0, 8)]),
    ("popc.b64 D, A", "b32 b64", [(2**64 - 1, 64)]),
    ("clz.b32 D, A", "b32 b32", [(1, 31), (0, 32)]),
    ("brev.b32 D, A", "b32 b32", [(1, 0x80000000), (0x0F, 0xF0000000)]),
    ("bfind.u32 D, A", "b32 b32", [(0x00F0, 7), (0, M1)]),
    ("bfind.shiftamt.u32 D, A", "b32 b32", [(1, 31)]),
    ("bfind.s32 D, A", "b32 b32", [(0xFFFFFFF0, 3), (M1, M1)]),
    ("lop3.b32 D, A, B, C, 0x96", "b32 b32 b32 b32", [(0xF0, 0xCC, 0xAA, 0x96)]),
    ("lop3.b32 D, A, B, C, 0xE8", "b32 b32 b32 b32", [(0xF0, 0xCC, 0xAA, 0xE8)]),
    (
        "prmt.b32 D, A, B, C",
        "b32 b32 b32 b32",
        [(0x33221100, 0x77665544, 0x7531, 0x77553311), (0x80, 0, 0x8, 0x808080FF)],
    ),
    ("dp4a.s32.s32 D, A, B, C", "b32 b32 b32 b32", [(0xFF010203, 0x01020304, 10, 10 - 1 + 2 + 6 + 12)]),
    ("ex2.approx.f32 D, A", "f32 f32", [(f(3), f(8)), (f(-200), 0), (0xFF800000, 0)]),
    ("lg2.approx.f32 D, A", "f32 f32", [(f(8), f(3)), (0, 0xFF800000), (f(-1), NAN)]),
    ("rcp.rn.f32 D, A", "f32 f32", [(f(3), 0x3EAAAAAB)]),
    ("rcp.approx.ftz.f32 D, A", "f32 f32", [(f(4), f(0.25))]),
    ("sqrt.rn.f32 D, A", "f32 f32", [(f(2), 0x3FB504F3), (f(-1), NAN)]),
    ("rsqrt.approx.f32 D, A", "f32 f32", [(f(4), f(0.5))]),
    ("tanh.approx.f32 D, A", "f32 f32", [(0, 0)]),
    ("sin.approx.f32 D, A", "f32 f32", [(0, 0)]),
    ("cos.approx.f32 D, A", "f32 f32", [(0, f(1))]),
    ("mov.b32 D, A", "b32 b32", [(M1, M1)]),
    ("mov.f32 D, 0fC0490FDB", "f32", [(0xC0490FDB,)]),
    ("mov.b32 D, {A, B}", "b32 b16 b16", [(0x1234, 0x5678, 0x56781234)]),
    ("mov.b64 {_, D}, A", "b32 b64", [(0x1234567800000000, 0x12345678)]),
    ("cvt.s64.s32 D, A", "b64 b32", [(M1, 2**64 - 1)]),
    ("cvt.u64.u32 D, A", "b64 b32", [(M1, M1)]),
    ("cvt.u32.u16 D, A", "b32 b16", [(0xFFFF, 0xFFFF)]),
    ("cvt.s32.s8 D, A", "b32 b32", [(0x180, 0xFFFFFF80)]),
    ("cvt.sat.u8.s32 D, A", "b32 b32", [(300, 255), (M1, 0)]),
    ("cvt.rn.f32.s32 D, A", "f32 b32", [(M1, f(-1)), (16777217, f(16777216))]),
    ("cvt.rz.f32.u32 D, A", "f32 b32", [(16777219, f(16777218))]),
    ("cvt.rn.f32.u64 D, A", "f32 b64", [(2**63, f(2.0**63))]),
    ("cvt.rzi.s32.f32 D, A", "b32 f32", [(f(-1.7), M1), (f(3e9), 0x7FFFFFFF), (NAN, 0)]),
    ("cvt.rni.s32.f32 D, A", "b32 f32", [(f(2.5), 2), (f(3.5), 4)]),
    ("cvt.rmi.s32.f32 D, A", "b32 f32", [(f(-1.5), 0xFFFFFFFE)]),
    ("cvt.rni.f32.f32 D, A", "f32 f32", [(f(2.5), f(2)), (f(-0.5), 0x80000000)]),
    ("cvt.f64.f32 D, A", "f64 f32", [(f(1.5), d(1.5))]),
    ("cvt.rn.f32.f64 D, A", "f32 f64", [(d(0.1), f(0.1))]),
    (
        "cvt.rn.bf16.f32 D, A",
        "b16 f32",
        [(f(1 + 2**-8), b(1)), (f(1 + 2**-8 + 2**-20), b(1 + 2**-7)), (NAN, 0x7FFF), (f(3.4e38), 0x7F80)],
    ),
    ("cvt.rz.bf16.f32 D, A", "b16 f32", [(f(1.999), 0x3FFF)]),
    ("cvt.rn.bf16x2.f32 D, A, B", "b32 f32 f32", [(f(2), f(1), b(2) << 16 | b(1))]),
    (
        "cvt.rn.f16.f32 D, A",
        "b16 f32",
        [(f(65519), h(65504)), (f(65520), 0x7C00), (f(2**-25), 0), (f(2**-24 * 1.5), 2), (f(1e-9), 0)],
    ),
    ("cvt.rn.f16x2.f32 D, A, B", "b32 f32 f32", [(f(2), f(1), h(2) << 16 | h(1))]),
    ("cvt.f32.f16 D, A", "f32 b16", [(h(1.5), f(1.5)), (1, f(2**-24)), (0x7C00, INF), (0xFC00, 0xFF800000)]),
    ("cvt.f32.bf16 D, A", "f32 b16", [(b(1.5), f(1.5))]),
    (
        "cvt.rn.satfinite.e4m3x2.f32 D, A, B",
        "b16 f32 f32",
        [
            (f(1), f(-448), 0x38FE),
            (f(1e9), NAN, 0x7E7F),
            (f(2**-9), f(2**-10), 0x0100),
            (f(2**-10 * 1.01), f(0.0), 0x0100),
            (f(17), f(18), 0x5858 | 1),
            (f(0.0147), f(464.1), 0x087E),
        ],
    ),
    (
        "cvt.rn.satfinite.e5m2x2.f32 D, A, B",
        "b16 f32 f32",
        [(f(1), f(-57344), 0x3CFB), (f(1e9), f(2**-16), 0x7B01)],
    ),
    (
        "cvt.rn.f16x2.e4m3x2 D, A",
        "b32 b16",
        [(0x3801, h(1) << 16 | h(2**-9)), (0x7EFE, h(448) << 16 | h(-448)), (0x7F00, 0x7FFF0000)],
    ),
    ("cvt.rn.f16x2.e5m2x2 D, A", "b32 b16", [(0x3C01, h(1) << 16 | h(2**-16)), (0x7C00, 0x7C000000)]),
    ("selp.b32 D, A, B, 1", "b32 b32 b32", [(5, 6, 5)]),
    ("set.lt.u32.s32 D, A, B", "b32 b32 b32", [(M1, 0, M1), (1, 0, 0)]),
    ("set.gt.f32.f32 D, A, B", "f32 f32 f32", [(f(2), f(1), f(1))]),
    # comparisons give 1 or 0 through selp
    ("setp.lt.s32 P, A, B", "b32 b32 b32", [(M1, 0, 1), (0, 0, 0)]),
    ("setp.lo.u32 P, A, B", "b32 b32 b32", [(M1, 0, 0), (0, 1, 1)]),
    ("setp.hs.u64 P, A, B", "b32 b64 b64", [(2**64 - 1, 0, 1)]),
    ("setp.eq.f32 P, A, B", "b32 f32 f32", [(0, 0x80000000, 1), (NAN, NAN, 0)]),
    ("setp.ne.f32 P, A, B", "b32 f32 f32", [(f(1), f(2), 1), (NAN, f(1), 0)]),
    ("setp.neu.f32 P, A, B", "b32 f32 f32", [(NAN, NAN, 1), (f(1), f(1), 0)]),
    ("setp.gtu.f32 P, A, B", "b32 f32 f32", [(NAN, f(1), 1), (f(2), f(1), 1), (f(1), f(2), 0)]),
    ("setp.nan.f32 P, A, B", "b32 f32 f32", [(NAN, f(1), 1), (f(1), f(1), 0)]),
    ("setp.num.f32 P, A, B", "b32 f32 f32", [(NAN, f(1), 0), (f(1), f(1), 1)]),
    ("setp.lt.bf16 P, A, B", "b32 b16 b16", [(b(-1), b(1), 1)]),
    ("setp.lt.and.s32 P, A, B, Q", "b32 b32 b32", [(0, 1, 1), (1, 0, 0)]),
    ("setp.lt.xor.s32 P, A, B, Q", "b32 b32 b32", [(0, 1, 0), (1, 0, 1)]),
    ("setp.lt.s32 R|P, A, B", "b32 b32 b32", [(0, 1, 0), (1, 0, 1)]),
    # across labels and scopes
    (
        "{ .reg .b32 t; mov.b32 t, 0; W: add.s32 t, t, 3; setp.lt.s32 P, t, A; @P bra W; mov.b32 D, t; }",
        "b32 b32",
        [(7, 9)],
    ),
    (
        "{ setp.eq.s32 P, A, 1; @!P bra W; mov.b32 D, 10; bra E; W: mov.b32 D, 20; E: mov.b32 D, D; }",
        "b32 b32",
        [(1, 10), (2, 20)],
    ),
]


def kernel(number: int, instruction: str, kinds: list[str]) -> str:
    """An entry whose thread i reads its operands from in + 64 i and writes the result to out + 8 i."""
    names = ["D", "A", "B", "C"][: len(kinds)]
    registers = "".join(f".reg .{kind} {name}; " for kind, name in zip(kinds, names, strict=True))
    loads = "".join(
        f"ld.global.{'u' if kind[0] == 'b' else 'f'}{kind[1:]} {name}, [from+{8 * i}];\n"
        for i, (kind, name) in enumerate(zip(kinds[1:], names[1:], strict=True))
    )
    bits = 8 * SIZES[kinds[0]]
    scope = instruction.startswith("{")
    predicate = "selp.b32 D, 1, 0, P;\n" if instruction.startswith("setp") else ""
    return f"""
.visible .entry t{number}(.param .u64 source, .param .u64 result)
{{
{registers}
.reg .b64 from, to, at; .reg .b32 thread; .reg .pred P, Q, R;
mov.u32 thread, %tid.x; setp.eq.s32 Q, 0, 0;
ld.param.u64 from, [source]; ld.param.u64 to, [result];
mul.wide.u32 at, thread, 64; add.s64 from, from, at; mul.wide.u32 at, thread, 8; add.s64 to, to, at;
{loads}{instruction}{"" if scope else ";"}
{predicate}st.global.{"u" if kinds[0][0] == "b" else "f"}{bits} [to], D;
ret;
}}"""


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    entries = [kernel(n, text, kinds.split()) for n, (text, kinds, _) in enumerate(VECTORS)]
    yield Device(library(".version 9.0\n.target sm_90a\n.address_size 64\n" + "\n".join(entries), "opcodes"))


@pytest.mark.parametrize("number", range(len(VECTORS)), ids=lambda n: f"{n}-{VECTORS[n][0]}")
def test_instruction(device: Device, number: int) -> None:
    _, kinds, vectors = VECTORS[number]
    operands = torch.zeros(len(vectors), 8, dtype=torch.int64)
    for i, (*given, _) in enumerate(vectors):
        for j, x in enumerate(given):
            operands[i, j] = x - 2**64 if x >= 2**63 else x
    with device.cleared():
        result = device.put(torch.zeros(len(vectors), dtype=torch.int64))
        device.launch(f"t{number}", 1, len(vectors), device.put(operands), result)
        assert device.errors() == []
        mask = 2 ** (8 * SIZES[kinds.split()[0]]) - 1
        got = [hex(x & mask) for x in result.tolist()]
    assert got == [hex(v[-1]) for v in vectors]


def test_every_instruction_has_vectors() -> None:
    tried: set[Any] = {text.split()[0].split(".")[0] for text, _, _ in VECTORS}
    assert set(HANDLERS) <= tried

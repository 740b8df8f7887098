"""Instructions of whole warps, on 32 lanes with numbers of their own, against the PTX manual's pictures."""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from .build import library
from .device import POLICIES, Device
from .warps import HANDLERS

Lanes = list[int]

# Lane i brings A = x[i] and gets D; L is the lane, P and Q predicates. What D must be, of all of x.
EXCHANGES: list[tuple[str, Callable[[Lanes], Lanes]]] = [
    ("shfl.sync.up.b32 D, A, 3, 0, -1", lambda x: [x[i - 3] if i >= 3 else x[i] for i in range(32)]),
    ("shfl.sync.down.b32 D, A, 5, 31, -1", lambda x: [x[i + 5] if i < 27 else x[i] for i in range(32)]),
    ("shfl.sync.bfly.b32 D, A, 9, 31, -1", lambda x: [x[i ^ 9] for i in range(32)]),
    ("shfl.sync.idx.b32 D, A, 7, 31, -1", lambda x: [x[7]] * 32),
    ("shfl.sync.idx.b32 D, A, 3, 0x181f, -1", lambda x: [x[(i & 24) + 3] for i in range(32)]),  # width 8
    ("shfl.sync.down.b32 D|P, A, 5, 31, -1; selp.b32 D, 1, 0, P", lambda x: [int(i < 27) for i in range(32)]),
    (
        "setp.gt.s32 P, A, 50; vote.sync.ballot.b32 D, P, -1",
        lambda x: [sum((v > 50) << i for i, v in enumerate(x))] * 32,
    ),
    ("setp.gt.s32 P, A, 1000; vote.sync.any.pred Q, P, -1; selp.b32 D, 1, 0, Q", lambda x: [0] * 32),
    ("setp.gt.s32 P, A, -1; vote.sync.all.pred Q, P, -1; selp.b32 D, 1, 0, Q", lambda x: [1] * 32),
    ("setp.gt.s32 P, A, 50; vote.sync.uni.pred Q, P, -1; selp.b32 D, 1, 0, Q", lambda x: [0] * 32),
    (
        "and.b32 A, A, 3; match.any.sync.b32 D, A, -1",
        lambda x: [sum((v & 3 == x[i] & 3) << j for j, v in enumerate(x)) for i in range(32)],
    ),
    ("match.all.sync.b32 D|P, 5, -1; selp.b32 D, D, 0, P", lambda x: [2**32 - 1] * 32),
    ("redux.sync.add.s32 D, A, -1", lambda x: [sum(x)] * 32),
    ("redux.sync.max.u32 D, A, -1", lambda x: [max(x)] * 32),
    ("redux.sync.min.s32 D, A, -1", lambda x: [min(x)] * 32),
    ("redux.sync.or.b32 D, A, -1", lambda x: [127] * 32),
    ("elect.sync D|P, -1; selp.b32 D, 1, 0, P", lambda x: [1] + [0] * 31),
    ("activemask.b32 D", lambda x: [1 << i for i in range(32)]),
    ("bar.warp.sync -1; mov.b32 D, A", lambda x: x),
    ("bar.sync 0; mov.b32 D, A", lambda x: x),
    ("barrier.sync.aligned 3, 32; mov.b32 D, A", lambda x: x),
    ("setp.gt.s32 P, A, 50; bar.red.popc.u32 D, 0, P", lambda x: [sum(v > 50 for v in x)] * 32),
    ("setp.gt.s32 P, A, 50; bar.red.and.pred Q, 0, P; selp.b32 D, 1, 0, Q", lambda x: [0] * 32),
    # half the warp
    (
        "setp.lt.u32 P, L, 16; mov.b32 D, 0; @P redux.sync.add.s32 D, A, 0xffff",
        lambda x: [sum(x[:16])] * 16 + [0] * 16,
    ),
]

EXCHANGE = """
.visible .entry t{n}(.param .u64 source, .param .u64 result)
{{
.reg .b32 D, A, L; .reg .b64 from, to, at; .reg .pred P, Q;
mov.u32 L, %laneid; mul.wide.u32 at, L, 4; ld.param.u64 from, [source]; ld.param.u64 to, [result];
add.s64 from, from, at; add.s64 to, to, at;
ld.global.u32 A, [from]; {text}; st.global.u32 [to], D; ret;
}}"""

# The lane's words go to shared memory, rows of 16 bytes; matrices come from there, or go there.
MATRICES = """
.visible .entry {name}(.param .u64 source, .param .u64 result)
{{
.reg .b32 L, a, A<4>; .reg .b64 from, to, at; .shared .align 16 .b8 tile[512];
mov.u32 L, %laneid; mul.wide.u32 at, L, 16; ld.param.u64 from, [source]; ld.param.u64 to, [result];
add.s64 from, from, at; add.s64 to, to, at;
ld.global.v4.u32 {{A0, A1, A2, A3}}, [from];
mov.u32 a, tile; mad.lo.u32 a, L, 16, a;
{text}
st.global.v4.u32 [to], {{A0, A1, A2, A3}}; ret;
}}"""
LOAD = """
st.shared.v4.u32 [a], {{A0, A1, A2, A3}}; bar.warp.sync -1;
ldmatrix.sync.aligned.m8n8.x4{}.shared.b16 {{A0, A1, A2, A3}}, [a];"""
STORE = """
stmatrix.sync.aligned.m8n8.x4{}.shared.b16 [a], {{A0, A1, A2, A3}}; bar.warp.sync -1;
ld.shared.v4.u32 {{A0, A1, A2, A3}}, [a];"""

# A, B and C in the registers of 32 lanes: 4, 2 and 4 words each.
MMA = """
.visible .entry {name}(.param .u64 source, .param .u64 result)
{{
.reg .b32 L, A<4>, B<2>; .reg .f32 C<4>; .reg .b64 from, to, at;
mov.u32 L, %laneid; mul.wide.u32 at, L, 48; ld.param.u64 from, [source]; add.s64 from, from, at;
mul.wide.u32 at, L, 16; ld.param.u64 to, [result]; add.s64 to, to, at;
ld.global.v4.u32 {{A0, A1, A2, A3}}, [from]; ld.global.v2.u32 {{B0, B1}}, [from+16];
ld.global.v4.f32 {{C0, C1, C2, C3}}, [from+32];
mma.sync.aligned.{form} {{C0, C1, C2, C3}}, {{{a}}}, {{{b}}}, {{C0, C1, C2, C3}};
st.global.v4.f32 [to], {{C0, C1, C2, C3}}; ret;
}}"""
FORMS = {
    "bf16_16": ("m16n8k16.row.col.f32.bf16.bf16.f32", torch.bfloat16, 16),
    "bf16_8": ("m16n8k8.row.col.f32.bf16.bf16.f32", torch.bfloat16, 8),
    "f16_16": ("m16n8k16.row.col.f32.f16.f16.f32", torch.float16, 16),
    "e4m3_32": ("m16n8k32.row.col.f32.e4m3.e4m3.f32", torch.float8_e4m3fn, 32),
    "e5m2_32": ("m16n8k32.row.col.f32.e5m2.e5m2.f32", torch.float8_e5m2, 32),
}


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    entries = [EXCHANGE.format(n=n, text=text) for n, (text, _) in enumerate(EXCHANGES)]
    for trans in ("", ".trans"):
        for name, text in (("load", LOAD), ("store", STORE)):
            entries.append(MATRICES.format(name=name + trans[1:], text=text.format(trans)))
    move = " ".join(f"movmatrix.sync.aligned.m8n8.trans.b16 A{i}, A{i};" for i in range(4))
    entries.append(MATRICES.format(name="move", text=move))
    for name, (form, _, k) in FORMS.items():
        half = k == 8
        entries.append(
            MMA.format(
                name=name, form=form, a="A0, A1" if half else "A0, A1, A2, A3", b="B0" if half else "B0, B1"
            )
        )
    yield Device(library(".version 9.0\n.target sm_90a\n.address_size 64\n" + "\n".join(entries), "warps"))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("number", range(len(EXCHANGES)), ids=lambda n: f"{n}-{EXCHANGES[n][0]}")
def test_exchange(device: Device, number: int, policy: str) -> None:
    x = [(37 * i + 11) % 101 for i in range(32)]
    device.configure(policy)
    with device.cleared():
        result = device.empty(32, dtype=torch.int32)
        device.launch(f"t{number}", 1, 32, device.put(torch.tensor(x, dtype=torch.int32)), result)
        assert device.errors() == []
        assert [v & 0xFFFFFFFF for v in result.tolist()] == EXCHANGES[number][1](x)


def run(device: Device, name: str, words: Tensor) -> Tensor:
    with device.cleared():
        result = device.empty(32, 4, dtype=torch.int32)
        device.launch(name, 1, 32, device.put(words), result)
        assert device.errors() == []
        return result.clone()


def fragments(matrices: Tensor) -> Tensor:
    """Four 8x8 matrices of 16 bits as registers: lane l holds row l / 4, columns 2 (l % 4) and the next."""
    return matrices.reshape(4, 32, 2).permute(1, 0, 2).contiguous().view(torch.int32).reshape(32, 4)


@pytest.mark.parametrize("trans", ["", "trans"])
def test_ldmatrix_and_stmatrix(device: Device, trans: str) -> None:
    matrices = torch.arange(256, dtype=torch.int16).reshape(4, 8, 8)
    rows = matrices.reshape(32, 8).view(torch.int32)
    held = fragments(matrices.transpose(1, 2).contiguous() if trans else matrices)
    assert torch.equal(run(device, "load" + trans, rows), held)
    assert torch.equal(run(device, "store" + trans, held), rows)


def test_movmatrix(device: Device) -> None:
    matrices = torch.arange(256, dtype=torch.int16).reshape(4, 8, 8)
    got = run(device, "move", fragments(matrices))
    assert torch.equal(got, fragments(matrices.transpose(1, 2).contiguous()))


@pytest.mark.parametrize("truncating", [False, True])
@pytest.mark.parametrize("name", FORMS)
def test_mma(device: Device, name: str, truncating: bool) -> None:
    _, dtype, k = FORMS[name]
    rng = torch.Generator().manual_seed(k)
    a, b = (torch.randn(n, k, generator=rng).to(dtype) for n in (16, 8))
    c = torch.randn(16, 8, generator=rng)
    per_word = 4 // dtype.itemsize
    words = torch.zeros(32, 12, dtype=torch.int32)
    bits_a, bits_b = (x.view(torch.uint8).reshape(len(x), -1).view(torch.int32) for x in (a, b))
    for lane, r in product(range(32), range(4)):
        group, place = lane // 4, lane % 4
        row, column = group + 8 * (r % 2), place + 4 * (r // 2)  # in words of k
        if column < k // per_word:
            words[lane, r] = bits_a[row, column]
        if r < 2 and place + 4 * r < k // per_word:
            words[lane, 4 + r] = bits_b[group, place + 4 * r]
        words[lane, 8 + r] = c.view(torch.int32)[group + 8 * (r // 2), 2 * place + r % 2]
    device.configure(truncating=truncating)
    result = run(device, name, words).view(torch.float32)
    d = torch.empty(16, 8)
    for lane, r in product(range(32), range(4)):
        d[lane // 4 + 8 * (r // 2), 2 * (lane % 4) + r % 2] = result[lane, r]
    exact = c.double() + a.double() @ b.double().T
    assert (d.double() - exact).abs().max() < 2e-6 * exact.abs().max()
    if truncating:
        assert (d.double().abs() <= exact.abs()).all()


def test_every_instruction_is_tried() -> None:
    tried: set[Any] = {word.split(".")[0] for text, _ in EXCHANGES for word in text.split()}
    assert set(HANDLERS) <= tried | {"ldmatrix", "stmatrix", "movmatrix", "mma"}

"""`router_gather` beside the ops that it does the work of: the same bits, whatever the sizes."""

from typing import Any

import pytest
import torch
from torch import Tensor

import sparsekern
from sparsekern.schema import ShapeError
from sparsekern.testing import assert_same_bits, guarded, raw

LINE = 64


def tokens(t: int, h: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    rng = torch.Generator().manual_seed(t * 1000 + h)
    return (torch.randn(t, h, generator=rng) * torch.randn(t, 1, generator=rng).exp()).to(dtype)


def logits_of(t: int, e: int) -> Tensor:
    return 2 * torch.randn(t, e, generator=torch.Generator().manual_seed(t * 1000 + e))


def piece_by_piece(x: Tensor, routing: Any, experts: int, **how: Any) -> sparsekern.RoutedTokens:
    """The same by separate ops, from the routing on."""
    places = {name: how.pop(name) for name in ("alignment", "num_rows") if name in how}
    rows = sparsekern.moe_permutation(routing.ids, num_experts=experts, **places)
    parts: tuple[Tensor, ...] = (x,)
    if how.pop("quantize", "fp8") == "fp8":
        parts = sparsekern.quantize_fp8(x, **how)
    gathered = [sparsekern.moe_gather(part, rows.row_token) for part in parts]
    return sparsekern.RoutedTokens(gathered[0], (*gathered, None)[1], *routing, *rows)


HOW: list[dict[str, Any]] = [
    {},
    {"scale_format": "ue8m0", "alignment": 16},
    {"group_size": 48, "num_rows": 3000},
    {"group_size": 5000, "alignment": 3},
    {"group_size": 1},
    {"quantize": "none", "alignment": 7, "num_rows": 3000},
]


@pytest.mark.parametrize("how", HOW, ids=str)
@pytest.mark.parametrize("hidden", [1, 63, 128, 1000])
@pytest.mark.parametrize("t", [1, 2, 130])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_from_logits(dtype: torch.dtype, t: int, hidden: int, how: dict[str, Any]) -> None:
    x, z, bias = tokens(t, hidden, dtype), logits_of(t, 64), logits_of(1, 64)[0]
    chosen = {"top_k": 6, "bias": bias, "n_group": 8, "topk_group": 3, "scale": 2.5}
    want = piece_by_piece(x, sparsekern.route_topk(z, **chosen), 64, **how)
    assert_same_bits(sparsekern.router_gather(x, logits=z, **chosen, **how), want)


@pytest.mark.parametrize("how", HOW, ids=str)
def test_from_a_table(how: dict[str, Any]) -> None:
    t, e = 90, 40
    x, z = tokens(t, 256), logits_of(t, e)
    rng = torch.Generator().manual_seed(0)
    token_ids, table = torch.randint(30, (t,), generator=rng), torch.randint(e, (30, 6), generator=rng)
    want = piece_by_piece(x, sparsekern.route_hash(z, token_ids, table), e, **how)
    given = {"token_ids": token_ids, "table": table, "top_k": 6}
    assert_same_bits(sparsekern.router_gather(x, logits=z, **given, **how), want)


def test_results_larger_than_the_caches() -> None:
    """They are written past them, in whole lines where the memory allows it."""
    t, hidden, k = 700, 6144, 8
    x, z = tokens(t, hidden), logits_of(t, 32)
    want = piece_by_piece(x, sparsekern.route_topk(z, top_k=k), 32)
    assert want.x.numel() > 32 << 20
    assert_same_bits(sparsekern.router_gather(x, logits=z, top_k=k), want)
    for shift in (0, LINE // 2):
        room = torch.zeros(want.x.numel() + 2 * LINE, dtype=torch.uint8)
        start = -room.data_ptr() % LINE + shift
        rows = room[start : start + want.x.numel()].view(want.x.dtype).view(want.x.shape)
        out = (rows, *(torch.empty_like(part) for part in want[1:]))
        assert_same_bits(sparsekern.router_gather(x, logits=z, top_k=k, out=out), want)
        assert not room[:start].any() and not room[start + want.x.numel() :].any()


# --- the router's products ----------------------------------------------------------------------------------


@pytest.mark.parametrize("router_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("e", "hidden"), [(1, 1), (3, 31), (65, 33), (70, 2080), (256, 4097)])
def test_logits_of_the_router_are_right(
    e: int, hidden: int, dtype: torch.dtype, router_dtype: torch.dtype
) -> None:
    """A softmax over all experts gives the logits away, up to a constant."""
    t, k = 35, min(e, 32)
    x = torch.randn(t, hidden, generator=torch.Generator().manual_seed(e)).to(dtype)
    weight = torch.randn(e, hidden, generator=torch.Generator().manual_seed(hidden)) * hidden**-0.5
    router = weight.to(router_dtype)
    got = sparsekern.router_gather(
        x, router=router, top_k=k, scoring="softmax", renormalize=False, quantize="none"
    )
    exact = x.double() @ router.double().T
    want = exact.softmax(-1).gather(1, got.ids.long())
    assert (got.weights / want - 1).abs().max() < 4e-6
    assert (exact.gather(1, got.ids.long()).diff() < 4e-6).all(), "best first"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_token_is_routed_alike_in_any_batch(dtype: torch.dtype) -> None:
    """Alone, in a few and in many, which are multiplied in other tiles and on other threads."""
    t, e, hidden = 300, 90, 2100
    x, router = tokens(t, hidden, dtype), tokens(e, hidden)
    how = {"router": router, "top_k": 7, "scoring": "softmax", "quantize": "none"}
    many = sparsekern.router_gather(x, **how)
    for threads in (1, 3):
        with sparsekern.config.using(threads=threads):
            for some in (slice(0, 1), slice(5, 38), slice(100, 250), slice(0, t)):
                few = sparsekern.router_gather(x[some], **how)
                assert_same_bits((few.weights, few.ids), (many.weights[some], many.ids[some]))


def test_bad_numbers_stay_in_their_row() -> None:
    x, router = tokens(40, 300), tokens(20, 300)
    want = sparsekern.router_gather(x, router=router, top_k=3)
    x[7, 100], x[21, 5] = torch.nan, torch.inf
    got = sparsekern.router_gather(x, router=router, top_k=3)
    good = torch.tensor([i for i in range(40) if i not in (7, 21)])
    assert_same_bits((got.weights[good], got.ids[good]), (want.weights[good], want.ids[good]))
    assert got.weights.isfinite().all() and ((got.ids >= 0) & (got.ids < 20)).all()
    for j in range(3):
        a, b = (raw(r.x[r.slot_row[good, j].long()]) for r in (got, want))
        assert torch.equal(a, b)


def test_nothing_is_read_outside_the_tensors() -> None:
    for t, e, hidden in ((1, 5, 37), (70, 3, 65)):
        x, router = tokens(t, hidden), tokens(e, hidden)
        want = sparsekern.router_gather(x, router=router, top_k=2)
        for at in ("start", "end"):
            fenced = [guarded(v, at, writable=False) for v in (x, router)]
            assert_same_bits(sparsekern.router_gather(fenced[0], router=fenced[1], top_k=2), want)


# --- what does not go together ------------------------------------------------------------------------------


def test_wrong_combinations() -> None:
    x, router, z = tokens(4, 16), tokens(8, 16), logits_of(4, 8)
    ids, table = torch.zeros(4, dtype=torch.int32), torch.zeros(2, 2, dtype=torch.int32)
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, "router and logits are both None"),
        ({"router": router, "logits": z}, "router and logits are both given"),
        ({"logits": z, "table": table}, "token_ids is None"),
        ({"logits": z, "token_ids": ids}, "table is None"),
        ({"logits": z, "token_ids": ids, "table": table, "bias": z[0]}, "bias"),
        ({"logits": z, "token_ids": ids, "table": table, "n_group": 2}, "n_group"),
        ({"logits": z, "token_ids": ids - 1, "table": table}, "token_ids[0] is -1"),
        ({"logits": z, "token_ids": ids, "table": table + 8}, "table[0, 0] is 8"),
        ({"logits": z, "top_k": 9}, "top_k is 9"),
        ({"logits": z, "top_k": 0}, "top_k is 0"),
        ({"logits": z, "n_group": 4, "topk_group": 1, "top_k": 3}, "top_k is 3"),
        ({"logits": z, "num_rows": 7}, "num_rows is 7"),
        ({"logits": z, "alignment": 0}, "alignment is 0"),
        ({"logits": z, "scale": float("nan")}, "scale is"),
    ]
    for arguments, says in cases:
        with pytest.raises(ShapeError) as caught:
            sparsekern.router_gather(x, **{"top_k": 2, **arguments})
        message = str(caught.value)
        assert message.startswith("router_gather: ") and says in message, message


def test_too_few_rows_leave_out_untouched() -> None:
    x, z = tokens(4, 16), logits_of(4, 8)
    good = sparsekern.router_gather(x, logits=z, top_k=2, num_rows=9)
    out = tuple(raw(t).fill_(3).view(t.dtype).view(t.shape) if t is not None else None for t in good)
    with pytest.raises(ShapeError, match="num_rows is 7"):
        sparsekern.router_gather(x, logits=z, top_k=2, num_rows=7, out=out)
    assert all(bool((raw(t) == 3).all()) for t in out)

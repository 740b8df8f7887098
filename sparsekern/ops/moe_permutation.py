"""The order in which tokens visit their experts."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparsekern.backend import launch
from sparsekern.schema import Arg, Dims, Op, Out


class Permutation(NamedTuple):
    """Rows sorted by expert: expert e owns rows `expert_offsets[e]` to `expert_offsets[e + 1]`."""

    expert_offsets: Tensor
    row_token: Tensor
    row_slot: Tensor
    slot_row: Tensor


def moe_permutation(
    ids: Tensor,
    *,
    num_experts: int,
    alignment: int = 1,
    num_rows: int | None = None,
    out: tuple[Tensor, Tensor, Tensor, Tensor] | None = None,
) -> Permutation:
    """Sort the slots of a routing by expert.

    row_slot[r] = t * k + j and row_token[r] = t  where  slot_row[t, j] = r

    Rows of one expert ascend by slot. Each expert's rows are padded with -1 up to a multiple of
    `alignment`. Ids below 0 or from `num_experts` on are dropped: their slot_row is -1. There are
    expert_offsets[num_experts] rows, or `num_rows` if given, of which those past that offset are -1; too
    small a `num_rows` is an error.
    """
    result: Permutation = launch(OP, ids, num_experts, alignment, num_rows, out)
    return result


def reference(
    ids: Tensor, *, num_experts: int, alignment: int = 1, num_rows: int | None = None
) -> Permutation:
    """Expert by expert."""
    flat = ids.reshape(-1)
    offsets, rows = [0], []
    for e in range(num_experts):
        slots = (flat == e).nonzero().flatten()
        rows += [slots, slots.new_full((-len(slots) % alignment,), -1)]
        offsets.append(offsets[-1] + len(slots) + len(rows[-1]))
    tail = 0 if num_rows is None else num_rows - offsets[-1]
    row_slot = torch.cat([*rows, torch.full((tail,), -1)])
    row_token = torch.where(row_slot < 0, -1, row_slot // max(ids.shape[1], 1))
    slot_row = torch.full_like(flat, -1, dtype=torch.int64)
    slot_row[row_slot[row_slot >= 0]] = (row_slot >= 0).nonzero().flatten()
    tensors = (torch.tensor(offsets), row_token, row_slot, slot_row.reshape(ids.shape))
    return Permutation(*(t.int() for t in tensors))


def inputs(dims: Dims, rng: torch.Generator) -> dict[str, Any]:
    """Distinct experts a token; some "drops" are not here, "spare" rows are more than can be needed."""
    e, drops, alignment = dims["E"], dims.get("drops", 0), dims.get("alignment", 1)
    ids = torch.rand(dims["T"], e + 2 * drops, generator=rng).argsort(-1)[:, : dims["k"]] - drops
    return {
        "ids": ids.to(torch.int64 if dims.get("i64") else torch.int32),
        "num_experts": e,
        "alignment": alignment,
        "num_rows": dims["T"] * dims["k"] + e * (alignment - 1) + dims["spare"] if "spare" in dims else None,
    }


OP = Op(
    fn=moe_permutation,
    family="moe",
    args=(Arg("ids", "T k", "i32", "the experts of every token"),),
    outs=(
        Out("expert_offsets", "num_experts+1", "i32", "where each expert's rows begin; last, where they end"),
        Out("row_token", "P", "i32", "the token of each row, -1 on padding"),
        Out("row_slot", "P", "i32", "the slot of each row, -1 on padding"),
        Out("slot_row", "T k", "i32", "the row of each slot, -1 where dropped"),
    ),
    reference=reference,
    inputs=inputs,
    test_dims=(
        {"T": 50, "k": 6, "E": 16},
        {"T": 33, "k": 4, "E": 7, "alignment": 16, "i64": 1},
        {"T": 2000, "k": 8, "E": 64, "drops": 9, "alignment": 4},
        {"T": 5, "k": 2, "E": 8, "alignment": 8, "spare": 7},
        {"T": 3, "k": 1, "E": 1500},
        {"T": 1, "k": 1, "E": 1},
        {"T": 0, "k": 2, "E": 4},
    ),
    bench_dims=tuple({"T": t, "k": 8, "E": 256} for t in (1, 64, 4096)),
    spoil=lambda x: {**x, "ids": x["ids"].flip(0), "alignment": x["alignment"] + 1, "num_rows": None},
    source="TileKernels get_fused_mapping, in ascending order",
    result=Permutation,
    bytes=lambda d: 4.0 * (5 * d["T"] * d["k"] + d["E"]),
    dynamic={"P": "num_rows"},
)

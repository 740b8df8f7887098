"""The suite of the router: routing alone, and tokens laid out for the experts; sizes of DeepSeek-V3."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

import sparsekern
from sparsekern import _C
from sparsekern.catalogue import OPS
from sparsekern.schema import Dims, Op

from .case import OURS, Case, Work
from .check import truth
from .opcase import inputs, op_case

LEAST = "one read of x, one write of the rows"
TOKENS = (1, 64, 4096)
SIZES = {"H": 7168, "E": 256, "k": 8, "groups": 8, "kept": 4}


def cases(tokens: Iterable[int], takes: Callable[[Op], bool], compile: bool) -> Iterator[Case]:
    """Every part that was asked for, at every number of tokens."""
    route, gather = OPS["route_topk"], OPS["router_gather"]
    for t in tokens:
        dims, name = {"T": t, **SIZES}, f"{t} token{'s' * (t > 1)}"
        if takes(route):
            routed = {key: size for key, size in dims.items() if key != "H"}
            yield op_case("router", f"routing of {name}", route, routed, compile=compile)
        if takes(gather):
            yield _from_logits(f"rows from logits of {name}", dims)
            yield op_case("router", f"rows from {name}", gather, {**dims, "router": 0}, compile=compile)


def _from_logits(name: str, dims: Dims) -> Case:
    op = OPS["router_gather"]
    return Case("router", name, lambda: _in_pieces(dims), dims, about={"op": op.name})


def _in_pieces(dims: Dims) -> Work:
    """The fused op beside the ops whose work it does, in both orders, and beside the least traffic."""
    op = OPS["router_gather"]
    x = inputs(op, dims)
    hidden, logits = x["x"], x["logits"]
    how = {name: x[name] for name in ("top_k", "scale", "bias", "n_group", "topk_group")}
    made = sparsekern.router_gather(**x)
    rows, scales, out = made.x, made.x_scale, tuple(made)
    assert scales is not None
    routing = made.weights, made.ids
    permutation = made.expert_offsets, made.row_token, made.row_slot, made.slot_row
    quantised, wide = sparsekern.quantize_fp8(hidden), sparsekern.moe_gather(hidden, made.row_token)
    no_row, one = torch.zeros_like(made.row_token), quantised[0][:1].view(torch.uint8)

    def route() -> Any:
        sparsekern.route_topk(logits, **how, out=routing)
        sparsekern.moe_permutation(made.ids, num_experts=dims["E"], out=permutation)

    def quantise_first(_: int) -> Any:
        route()
        sparsekern.quantize_fp8(hidden, out=quantised)
        sparsekern.moe_gather(quantised[0], made.row_token, out=rows)
        sparsekern.moe_gather(quantised[1], made.row_token, out=scales)
        return made

    def gather_first(_: int) -> Any:
        route()
        sparsekern.quantize_fp8(sparsekern.moe_gather(hidden, made.row_token, out=wide), out=(rows, scales))
        return made

    def least(_: int) -> None:
        _C.probe_read(hidden.view(-1))
        sparsekern.moe_gather(one, no_row, out=rows.view(torch.uint8))

    contenders = {
        f"{OURS}, out=": lambda _: sparsekern.router_gather(**x, out=out),
        f"{OURS}: route, quantise, permute, gather": quantise_first,
        f"{OURS}: route, permute, gather, quantise": gather_first,
        LEAST: least,
    }
    needed = dict.fromkeys(contenders, op.bytes(dims))
    return Work(contenders, needed, truth=truth(op, x, dims), unlike={LEAST: "another's rows"})

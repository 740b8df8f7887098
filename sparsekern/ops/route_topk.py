"""Top-k routing: which experts a token goes to, and with what weight."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from sparsekern.backend import launch
from sparsekern.schema import Arg, Dims, Op, Out

Scoring = Literal["sigmoid", "softmax", "sqrtsoftplus"]


class Routing(NamedTuple):
    """Where each token goes: `ids[t, j]` with `weights[t, j]`."""

    weights: Tensor
    ids: Tensor


def route_topk(
    logits: Tensor,
    *,
    top_k: int,
    scoring: Scoring = "sigmoid",
    bias: Tensor | None = None,
    n_group: int = 1,
    topk_group: int = 1,
    renormalize: bool = True,
    scale: float = 1.0,
    out: tuple[Tensor, Tensor] | None = None,
) -> Routing:
    """Choose the best experts of each token and weigh them by their scores.

    s = score(logits);  ids = the top_k largest of s + bias;  weights = s[ids] / (1e-20 + sum s[ids]) * scale

    `sqrtsoftplus` is sqrt(ln(1 + e^z)), above z = 20 sqrt(z). A softmax runs over all experts; it selects
    by logit + bias rather than by probability + bias. The bias never enters the weights. The sum runs in
    slot order; without `renormalize` nothing is divided by it.

    With `n_group` > `topk_group` experts form groups of consecutive ones, and only those of the topk_group
    best groups can be chosen. A group is as good as the sum of its two best s + bias (groups of one: that
    one); a second best of -inf counts there as the lowest finite number. At most 1024 experts and a top_k
    of 32.

    Experts come in descending order, equal ones by ascending id; of equal groups the first are kept. NaN
    selects like -inf and weighs 0. An infinite logit scores like the largest finite one. So ids are always
    valid and distinct, and no weight is NaN.
    """
    result: Routing = launch(OP, logits, bias, top_k, scoring, n_group, topk_group, renormalize, scale, out)
    return result


def scores(logits: Tensor, scoring: Scoring) -> Tensor:
    """Scores in float32, NaN where the logit is."""
    z = logits.float().clamp(torch.finfo(torch.float32).min, torch.finfo(torch.float32).max)
    if scoring == "sigmoid":
        return torch.sigmoid(logits.float())
    if scoring == "sqrtsoftplus":
        return F.softplus(z, threshold=20.0).sqrt()
    return torch.softmax(z.masked_fill(z.isnan(), -torch.inf), -1).masked_fill(z.isnan(), torch.nan)


def weigh(chosen: Tensor, renormalize: bool, scale: float) -> Tensor:
    """Weights from the scores of the chosen experts."""
    w = chosen.nan_to_num(0.0)
    if renormalize:
        total = w.new_full((len(w),), 1e-20)
        for j in range(w.shape[1]):  # in slot order
            total = total + w[:, j]
        w = w / total[:, None]
    return w * scale


def reference(
    logits: Tensor,
    *,
    top_k: int,
    scoring: Scoring = "sigmoid",
    bias: Tensor | None = None,
    n_group: int = 1,
    topk_group: int = 1,
    renormalize: bool = True,
    scale: float = 1.0,
) -> Routing:
    """Stable sorts of float32 scores."""
    s = scores(logits, scoring)
    choice = logits.float() if scoring == "softmax" else s
    choice = choice if bias is None else choice + bias
    choice = choice.masked_fill(choice.isnan(), -torch.inf)
    ids = torch.arange(choice.shape[1]).expand(choice.shape)
    if topk_group < n_group:
        shape = (len(choice), n_group, choice.shape[1] // n_group)
        best = choice.reshape(shape).sort(-1, descending=True).values[..., :2]
        best[..., 1:].clamp_(min=torch.finfo(torch.float32).min)
        order = best.sum(-1).sort(dim=-1, descending=True, stable=True).indices
        kept = order[:, :topk_group].sort(-1).values  # ascending, so that equal experts stay so
        ids = ids.reshape(shape).gather(1, kept[..., None].expand(-1, -1, shape[2])).flatten(1)
        choice = choice.gather(1, ids)
    order = choice.sort(dim=-1, descending=True, stable=True).indices[:, :top_k]
    ids = ids.gather(1, order)
    return Routing(weigh(s.gather(1, ids), renormalize, scale), ids.int())


def inputs(dims: Dims, rng: torch.Generator) -> dict[str, Any]:
    """Normal logits; "grid" rounds them, so that experts tie, "wild" puts NaN and infinities among them."""
    t, e = dims["T"], dims["E"]
    logits = 2 * torch.randn(t, e, generator=rng)
    if dims.get("grid"):
        logits = logits.round()
    if dims.get("wild"):
        lottery = torch.rand(t, e, generator=rng)
        for i, value in enumerate((torch.nan, torch.inf, -torch.inf, 3e38, -3e38, 0.0, -0.0)):
            logits[(lottery > 0.08 * i) & (lottery < 0.08 * i + 0.08)] = value
    return {
        "logits": logits.to(torch.bfloat16 if dims.get("bf16") else torch.float32),
        "top_k": dims["k"],
        "scoring": ("sigmoid", "softmax", "sqrtsoftplus")[dims.get("scoring", 0)],
        "bias": None if dims.get("grid") else 0.2 * torch.randn(e, generator=rng),
        "n_group": dims.get("groups", 1),
        "topk_group": dims.get("kept", 1),
        "scale": 2.5,
    }


OP = Op(
    fn=route_topk,
    family="moe",
    args=(
        Arg("logits", "T E", "f32 bf16", "one row per token; E at most 1024"),
        Arg("bias", "E", "f32", "added to the scores for selection only; none: 0"),
    ),
    outs=(
        Out("weights", "T top_k", "f32", "in the order of ids"),
        Out("ids", "T top_k", "i32", "experts, best first"),
    ),
    reference=reference,
    inputs=inputs,
    test_dims=(
        {"T": 37, "E": 256, "k": 8, "groups": 8, "kept": 4},
        {"T": 9, "E": 384, "k": 6, "scoring": 2},
        {"T": 6, "E": 128, "k": 8, "scoring": 1, "bf16": 1},
        {"T": 5, "E": 72, "k": 6, "groups": 8, "kept": 3, "scoring": 2, "bf16": 1},
        {"T": 7, "E": 160, "k": 6, "groups": 20, "kept": 9, "scoring": 1},
        {"T": 4, "E": 30, "k": 7, "groups": 30, "kept": 11},
        {"T": 17, "E": 257, "k": 32, "grid": 1},
        {"T": 13, "E": 64, "k": 16, "groups": 16, "kept": 5, "grid": 1, "scoring": 1},
        {"T": 21, "E": 100, "k": 9, "wild": 1},
        {"T": 21, "E": 96, "k": 9, "groups": 12, "kept": 2, "scoring": 1, "wild": 1},
        {"T": 21, "E": 40, "k": 32, "scoring": 2, "wild": 1},
        {"T": 2, "E": 1024, "k": 32, "scoring": 1},
        {"T": 3, "E": 1, "k": 1},
        {"T": 0, "E": 8, "k": 2},
    ),
    bench_dims=(
        *({"T": t, "E": 256, "k": 8, "groups": 8, "kept": 4} for t in (1, 64, 4096)),
        *({"T": t, "E": 384, "k": 6, "scoring": 2} for t in (1, 64, 4096)),
    ),
    spoil=lambda x: {**x, "bias": torch.arange(x["logits"].shape[1]) / 16.0, "scale": 2.0},
    source="TileKernels top2_sum_gate; arXiv 2412.19437, section 2.1.2",
    max_err=2**-19,
    rows=("logits",),
    result=Routing,
    flops=lambda d: 30.0 * d["T"] * d["E"],
    bytes=lambda d: (2.0 if d.get("bf16") else 4.0) * d["T"] * d["E"] + 8.0 * d["T"] * d["k"],
)

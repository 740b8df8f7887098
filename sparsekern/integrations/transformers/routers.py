"""Routers on `route_topk` and `route_hash`.

Each forward returns what the class it stands in for returns: (logits, weights in the dtype of the logits,
int64 ids). The logits are the model's own matrix product, bit for bit, so that a near tie falls to the same
expert as before; a batch-invariant model multiplies by `gemm`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import SqrtSoftplusActivation

from sparsekern import gemm, route_hash, route_topk
from sparsekern.integrations.transformers.packed import HfModule, Unsupported
from sparsekern.ops.route_topk import Scoring

Routed = tuple[Tensor, Tensor, Tensor]


def deepseek_v4(self: HfModule, hidden_states: Tensor) -> Routed:
    """Route by biased scores, weigh by the scores."""
    logits = _logits(self, hidden_states)
    routing = route_topk(
        logits,
        top_k=self.top_k,
        scoring=_scoring(self),
        bias=self.e_score_correction_bias.float(),
        scale=self.routed_scaling_factor,
    )
    return logits, routing.weights.to(logits.dtype), routing.ids.long()


def deepseek_v4_hash(self: HfModule, hidden_states: Tensor, input_ids: Tensor) -> Routed:
    """Route by token id, weigh by the scores."""
    logits = _logits(self, hidden_states)
    routing = route_hash(
        logits, input_ids.reshape(-1), self.tid2eid, scoring=_scoring(self), scale=self.routed_scaling_factor
    )
    return logits, routing.weights.to(logits.dtype), routing.ids.long()


def deepseek_v3(self: HfModule, hidden_states: Tensor) -> Routed:
    """Route by biased sigmoids within the best groups, in fp32 whatever the model's dtype."""
    logits = _logits(self, hidden_states.float())
    routing = route_topk(
        logits,
        top_k=self.top_k,
        scoring="sigmoid",
        bias=self.e_score_correction_bias.float(),
        n_group=self.num_group,
        topk_group=self.topk_group,
        renormalize=bool(self.norm_topk_prob),
        scale=self.routed_scaling_factor,
    )
    return logits, routing.weights, routing.ids.long()


def qwen3_moe(self: HfModule, hidden_states: Tensor) -> Routed:
    """Route by softmax."""
    logits = _logits(self, hidden_states)
    routing = route_topk(logits, top_k=self.top_k, scoring="softmax", renormalize=bool(self.norm_topk_prob))
    return logits, routing.weights.to(logits.dtype), routing.ids.long()


# By name, because a class that merely looks alike may rank or weigh otherwise.
FORWARDS: dict[str, Callable[..., Routed]] = {
    "DeepseekV3TopkRouter": deepseek_v3,
    "DeepseekV32TopkRouter": deepseek_v3,
    "DeepseekV4HashRouter": deepseek_v4_hash,
    "DeepseekV4TopKRouter": deepseek_v4,
    "Qwen3MoeTopKRouter": qwen3_moe,
}


def is_router(module: nn.Module) -> bool:
    """Tell whether this is one of transformers' routers listed in FORWARDS."""
    return type(module).__name__ in FORWARDS and type(module).__module__.startswith("transformers.models.")


def check(module: HfModule) -> None:
    """Raise Unsupported unless the router's scores are ones the ops have."""
    if hasattr(module, "score_fn"):
        _scoring(module)


def convert(module: HfModule, *, exactly: bool = False) -> None:
    """Give this instance its forward; the module keeps its class, so recorded router logits still are.

    Args:
        module: a checked router.
        exactly: make the logits of a token the same bits in any batch, rather than the model's own product.
    """
    module.forward = partial(FORWARDS[type(module).__name__], module)
    module.multiply = gemm_rows if exactly else F.linear


def gemm_rows(x: Tensor, weight: Tensor) -> Tensor:
    """Return `x @ weight.T` in the dtype of x, each row by itself."""
    return gemm(x, weight, out_dtype=x.dtype)


def _logits(self: HfModule, x: Tensor) -> Tensor:
    logits: Tensor = self.multiply(x.reshape(-1, self.hidden_dim), self.weight.to(x.dtype))
    return logits


def _scoring(module: HfModule) -> Scoring:
    known: list[tuple[type, Scoring]] = [(SqrtSoftplusActivation, "sqrtsoftplus"), (nn.Sigmoid, "sigmoid")]
    for kind, name in known:
        if isinstance(module.score_fn, kind):
            return name
    raise Unsupported(f"it scores by {type(module.score_fn).__name__}")

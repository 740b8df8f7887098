"""Norms and gated MLPs of the DeepSeek models, on `rms_norm` and `swiglu`."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from sparsekern import rms_norm, swiglu
from sparsekern.integrations.transformers.packed import HfModule, Unsupported

NORMS = ("DeepseekV3RMSNorm", "DeepseekV32RMSNorm", "DeepseekV4RMSNorm")
MLPS = ("DeepseekV3MLP", "DeepseekV32MLP", "DeepseekV4MLP")


def is_norm(module: nn.Module) -> bool:
    """Tell whether this is one of transformers' norms listed in NORMS."""
    return type(module).__name__ in NORMS


def is_mlp(module: nn.Module) -> bool:
    """Tell whether this is one of transformers' gated MLPs listed in MLPS."""
    return type(module).__name__ in MLPS


def check_mlp(module: HfModule) -> None:
    """Raise Unsupported unless `swiglu` is its activation."""
    if not isinstance(module.act_fn, nn.SiLU) and type(module.act_fn).__name__ != "SiLUActivation":
        raise Unsupported(f"its activation is {type(module.act_fn).__name__}")


def convert_norm(module: HfModule) -> None:
    """Give this instance its forward."""
    module.forward = partial(norm, module)


def convert_mlp(module: HfModule) -> None:
    """Give this instance its forward."""
    module.forward = partial(mlp, module)


def norm(self: HfModule, hidden_states: Tensor) -> Tensor:
    """Divide by the root mean square and scale."""
    return rms_norm(hidden_states, self.weight, eps=self.variance_epsilon)


def mlp(self: HfModule, x: Tensor) -> Tensor:
    """Gate, multiply, project."""
    gate_up = torch.cat([self.gate_proj(x), self.up_proj(x)], -1)
    down: Tensor = self.down_proj(swiglu(gate_up, limit=getattr(self, "limit", None)))
    return down

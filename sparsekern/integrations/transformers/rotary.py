"""Rotary embeddings of transformers' models, as options of `rope`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsekern import rope
from sparsekern.integrations.transformers.packed import Unsupported

YARN = ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow")


def options(parameters: dict[str, Any], inv_freq: Tensor) -> dict[str, Any]:
    """Return theta, rotary_dim and yarn of one kind of rotation.

    Args:
        parameters: transformers' description of it.
        inv_freq: the frequencies transformers made of that, which ours must equal.

    Raises:
        Unsupported: `rope` would rotate otherwise.
    """
    kind = parameters.get("rope_type", "default")
    made: dict[str, Any] = {"theta": float(parameters["rope_theta"]), "rotary_dim": 2 * inv_freq.numel()}
    if kind == "yarn":
        defaults = {"beta_fast": 32.0, "beta_slow": 1.0}
        made["yarn"] = {name: float(parameters.get(name) or defaults[name]) for name in YARN}
    elif kind != "default":
        raise Unsupported(f"its rotary embedding is of type {kind}")
    _check(made, inv_freq.float())
    return made


def _check(made: dict[str, Any], inv_freq: Tensor) -> None:
    pairs = torch.tensor([1.0, 0.0]).repeat(inv_freq.numel())[None].repeat(2, 1)
    positions = torch.tensor([1, 100], dtype=torch.int32)
    turned = rope(pairs, positions, layout="interleaved", offset=0, **made)
    angles = positions[:, None].float() * inv_freq  # a frequency rounded otherwise shows a hundredfold
    if not torch.allclose(turned[:, 0::2], angles.cos(), atol=1e-4, rtol=0):
        raise Unsupported("its rotary embedding has frequencies of its own")

"""Hyper-connections: what the record's tests do not ask."""

from typing import Any

import pytest
import torch
from cases import EACH_ISA, inputs, run
from torch import Tensor

import sparsekern
from sparsekern.catalogue import OPS
from sparsekern.schema import Dims
from sparsekern.testing import assert_close, assert_same_bits

FUSED = OPS["mhc_post_pre"]


@pytest.mark.parametrize("isa", EACH_ISA)
@pytest.mark.parametrize("tokens", [1, 16, 17, 40])
@pytest.mark.parametrize("dims", FUSED.test_dims, ids=str)
def test_fused_is_one_after_the_other(dims: Dims, tokens: int, isa: str) -> None:
    x = inputs(FUSED, {**dims, "T": min(dims["T"], 1) * tokens})
    mixer = {name: x.pop(name) for name in ("fn", "scale", "base", "iters", "post_mult", "rms_eps", "eps")}
    for threads in (1, 2, 5):
        with sparsekern.config.using(isa=isa, threads=threads):
            streams = sparsekern.mhc_post(**x)
            want = (streams, *sparsekern.mhc_pre(streams, **mixer))
            assert_same_bits(tuple(sparsekern.mhc_post_pre(**x, **mixer)), want)


@pytest.mark.parametrize("op", ["mhc_pre", "mhc_post", "mhc_post_pre", "mhc_head"])
@pytest.mark.parametrize("tokens", [3, 40])
def test_float32_stays_exact(op: str, tokens: int) -> None:
    """Nothing is rounded to bf16 on the way, and thousands of products lose next to nothing."""
    x = inputs(OPS[op], {"T": tokens, "n": 4, "D": 2048, "f32": 1})
    got, want = OPS[op].fn(**x), OPS[op].reference(**x)
    assert_close(got, want, 2e-6)


def test_long_rows_of_one_sign() -> None:
    """Sums that only grow are where a single chain of additions would show."""
    x = inputs(OPS["mhc_head"], {"T": 2, "n": 4, "D": 7168, "f32": 1})
    x = {**x, "x": x["x"].abs(), "fn": x["fn"].abs() / 64}
    assert_close(sparsekern.mhc_head(**x), OPS["mhc_head"].reference(**x), 2e-6)


def test_sinkhorn_is_doubly_stochastic() -> None:
    x = torch.randn(1000, 4, 4, generator=torch.Generator().manual_seed(0))
    m = sparsekern.sinkhorn(x, iters=200, eps=1e-6)
    for axis in (1, 2):
        torch.testing.assert_close(m.sum(axis), torch.ones(1000, 4), atol=1e-3, rtol=0)
    once = sparsekern.sinkhorn(x, iters=1, eps=0.0)
    assert (once.sum(2) - 1).abs().max() > 0.1, "one iteration is not enough for the rows"


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_sinkhorn_follows_the_formula_where_it_is_not_a_number(bad: float) -> None:
    x = torch.randn(33, 4, 4, generator=torch.Generator().manual_seed(1))
    x[5, 2, 1] = bad
    x[20, 1] = bad
    got, want = sparsekern.sinkhorn(x, iters=20, eps=1e-6), OPS["sinkhorn"].reference(x, iters=20, eps=1e-6)
    assert_close(got, want, OPS["sinkhorn"].max_err)
    assert got[[5, 20]].isnan().any() and got[[4, 6, 19, 21]].isfinite().all()


@pytest.mark.parametrize(
    ("op", "change", "says"),
    [
        ("sinkhorn", {"iters": 0}, "iters is 0, expected 1 to 1000"),
        ("sinkhorn", {"eps": -1.0}, "eps is -1"),
        ("sinkhorn", {"eps": float("nan")}, "eps is nan"),
        ("sinkhorn", {"logits": torch.zeros(2, 17, 17)}, "17, expected 1 to 16"),
        ("sinkhorn", {"logits": torch.zeros(2, 0, 0)}, "0, expected 1 to 16"),
        ("mhc_pre", {"iters": 0}, "iters is 0"),
        ("mhc_pre", {"post_mult": float("inf")}, "post_mult is inf"),
        ("mhc_pre", {"rms_eps": -1e-6}, "rms_eps is -"),
        ("mhc_post_pre", {"eps": float("inf")}, "eps is inf"),
        ("mhc_head", {"rms_eps": float("nan")}, "rms_eps is nan"),
        (
            "mhc_post",
            {
                "y": torch.zeros(1, 8),
                "x": torch.zeros(1, 17, 8),
                "post": torch.zeros(1, 17),
                "comb": torch.zeros(1, 17, 17),
            },
            "x.shape[1], is 17, expected 1 to 16",
        ),
    ],
)
def test_bad_values(op: str, change: dict[str, Any], says: str) -> None:
    x = {**inputs(OPS[op], OPS[op].test_dims[0]), **change}
    with pytest.raises(sparsekern.schema.ShapeError) as caught:
        OPS[op].fn(**x)
    assert str(caught.value).startswith(f"{op}: ") and says in str(caught.value)


# --- a second opinion ---------------------------------------------------------------------------------------


def config() -> Any:
    transformers = pytest.importorskip("transformers", "5.0")
    return transformers.DeepseekV4Config(hidden_size=96, hc_mult=4, num_hidden_layers=2)


def filled(module: Any) -> Any:
    rng = torch.Generator().manual_seed(2)
    for p in module.parameters():
        p.data = torch.randn(p.shape, generator=rng) * (0.1 if p.dim() > 1 else 1.0)
    return module.requires_grad_(False)


def streams(tokens: int = 21) -> Tensor:
    return torch.randn(tokens, 4, 96, generator=torch.Generator().manual_seed(3))


def test_pre_agrees_with_transformers() -> None:
    from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4HyperConnection

    c = config()
    module, x = filled(DeepseekV4HyperConnection(c)), streams()
    post, comb, layer_in = (t[0] for t in module(x[None]))
    options = {"iters": c.hc_sinkhorn_iters, "post_mult": 2.0, "rms_eps": c.rms_norm_eps, "eps": c.hc_eps}
    got = sparsekern.mhc_pre(x, module.fn, module.scale, module.base, **options)
    assert_close(tuple(got), (layer_in, post, comb), 2e-6)


def test_head_agrees_with_transformers() -> None:
    from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4HyperHead

    c = config()
    module, x = filled(DeepseekV4HyperHead(c)), streams()
    weights = (module.hc_fn, module.hc_scale, module.hc_base)
    got = sparsekern.mhc_head(x, *weights, rms_eps=c.rms_norm_eps, eps=c.hc_eps)
    assert_close(got, module(x[None])[0], 2e-6)


def test_post_agrees_with_the_formula_of_transformers() -> None:
    x = inputs(OPS["mhc_post"], {"T": 21, "n": 4, "D": 96, "f32": 1})
    want = x["post"][..., None] * x["y"][:, None] + torch.matmul(x["comb"].transpose(-1, -2), x["x"])
    assert_close(run(OPS["mhc_post"], x), want, 2e-6)

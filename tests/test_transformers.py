"""`optimize` against transformers' own eager models: tiny configurations, no weight and no buffer zero."""

import copy
import io
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

transformers = pytest.importorskip("transformers")

from transformers.integrations.finegrained_fp8 import (  # noqa: E402
    FP8Experts,
    FP8Linear,
    replace_with_fp8_linear,
)
from transformers.quantizers.quantizer_finegrained_fp8 import FineGrainedFP8HfQuantizer  # noqa: E402
from transformers.utils.quantization_config import FineGrainedFP8Config  # noqa: E402

import sparsekern  # noqa: E402
from sparsekern.integrations.transformers import keep_fp8, optimize  # noqa: E402

VOCAB = 128
LUT = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])

SHARED = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "moe_intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_experts_per_tok": 3,
    "max_position_embeddings": 512,
    "eos_token_id": None,
    "bos_token_id": None,
}
MLA = {
    "intermediate_size": 96,
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "q_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "n_routed_experts": 16,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
}
# Sizes that leave ragged blocks of 128, and sparsity that bites within 40 tokens. Sixteen index heads: with
# fewer, many keys score exactly 0 and eager breaks those ties by row length, so that it differs from itself.
CONFIGS: dict[str, tuple[str, dict[str, object]]] = {
    "v4": (
        "DeepseekV4",
        SHARED
        | {
            "num_hidden_layers": 4,
            "layer_types": [
                "sliding_attention",
                "heavily_compressed_attention",
                "compressed_sparse_attention",
                "compressed_sparse_attention",
            ],
            "num_hash_layers": 1,
            "head_dim": 32,
            "q_lora_rank": 32,
            "n_routed_experts": 8,
            "o_groups": 2,
            "o_lora_rank": 32,
            "index_n_heads": 16,
            "index_head_dim": 16,
            "index_topk": 4,
            "sliding_window": 16,
            "compress_rate_csa": 4,
            "compress_rate_hca": 8,
            "swiglu_limit": 0.5,
        },
    ),
    "v32": (
        "DeepseekV32",
        SHARED | MLA | {"index_topk": 8, "index_n_heads": 16, "index_head_dim": 32, "hidden_size": 192},
    ),
    "v3": ("DeepseekV3", SHARED | MLA | {"moe_intermediate_size": 160, "norm_topk_prob": False}),
    "qwen3": (
        "Qwen3Moe",
        SHARED | {"num_experts": 8, "num_key_value_heads": 2, "head_dim": 16, "norm_topk_prob": True},
    ),
}
MODELS = sorted(CONFIGS)


def config_of(name: str) -> transformers.PreTrainedConfig:
    prefix, options = CONFIGS[name]
    return getattr(transformers, f"{prefix}Config")(**options)


def assert_near(got: Tensor, want: Tensor, tolerance: float = 1e-5) -> None:
    """Within `tolerance`, of the largest logit if that is above 1.

    Logits reach 6 here, and eager in fp32 is 5e-6 to 3e-5 from itself in fp64, by model.
    """
    assert (got - want).abs().max() <= tolerance * max(1.0, float(want.abs().max()))


def fill(model: nn.Module, seed: int = 0) -> None:
    """Seed every parameter and every buffer a checkpoint would bring, none of them zero."""
    generator = torch.Generator().manual_seed(seed)
    state = dict(model.named_parameters()) | {k: v for k, v in model.named_buffers() if "inv_freq" not in k}
    with torch.no_grad():
        for name, tensor in state.items():
            if tensor.dtype == torch.int64:
                tensor.random_(0, CONFIGS["v4"][1]["n_routed_experts"], generator=generator)
            elif name.endswith("norm.weight"):
                tensor.uniform_(0.5, 1.5, generator=generator)
            else:
                tensor.normal_(0, 1.5 * tensor.shape[-1] ** -0.5, generator=generator)


def build(name: str, dtype: torch.dtype = torch.float32, config: object = None) -> nn.Module:
    prefix, _ = CONFIGS[name]
    model = getattr(transformers, f"{prefix}ForCausalLM")(config or config_of(name)).eval()
    model.generation_config.pad_token_id = 0
    fill(model)
    model.set_experts_implementation("eager")
    return model.to(dtype)


def tokens(batch: int = 2, length: int = 40) -> Tensor:
    return torch.randint(1, VOCAB, (batch, length), generator=torch.Generator().manual_seed(7))


@torch.no_grad()
def logits(model: nn.Module, **inputs: Tensor) -> Tensor:
    return model(**(inputs or {"input_ids": tokens()})).logits


def naive_fp8(w: Tensor) -> Tensor:
    out = torch.empty_like(w)
    for i in range(0, w.shape[-2], 128):
        for j in range(0, w.shape[-1], 128):
            tile = w[..., i : i + 128, j : j + 128]
            amax = tile.abs().amax((-2, -1), keepdim=True).clamp_min(1e-4)
            codes = (tile * (torch.full_like(amax, 448) / amax)).to(torch.float8_e4m3fn)
            out[..., i : i + 128, j : j + 128] = codes.float() * (amax / 448)
    return out


def naive_fp4(w: Tensor) -> Tensor:
    groups = w.unflatten(-1, (-1, 32))
    scale = torch.exp2(torch.ceil(torch.log2(groups.abs().amax(-1, keepdim=True) / 6)))
    x = groups / scale
    distance = (x.abs()[..., None] - LUT).abs()
    return (LUT[distance.argmin(-1)] * x.sign() * scale).flatten(-2)


def naively_quantised(model: nn.Module, quantise: Callable[[Tensor], Tensor]) -> nn.Module:
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "mlp.experts." in name:
                parameter.copy_(quantise(parameter))
    return model


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_routing_are_those_of_eager(name: str) -> None:
    eager, ours = build(name), optimize(build(name))
    with sparsekern.trace() as calls:
        got = logits(ours)
    layers = sum(isinstance(m, nn.Module) and hasattr(m, "_apply_gate") for m in ours.modules())
    assert calls["fused_moe"] == layers > 0
    assert calls["route_topk"] + calls["route_hash"] == layers
    assert_near(got, logits(eager))


@pytest.mark.parametrize("name", MODELS)
def test_generate_with_left_padding_gives_the_tokens_of_eager_without(name: str) -> None:
    """Eager V4 counts padding into its compressed windows: a padded sequence is not the sequence alone."""
    ids = tokens(2, 33)
    mask = torch.ones_like(ids)
    ids[0, :9], mask[0, :9] = 0, 0
    eager, ours = build(name), optimize(build(name))
    got = ours.generate(ids, attention_mask=mask, max_new_tokens=20, do_sample=False)
    close = logits(ours, input_ids=ids, attention_mask=mask)
    for row, start in ((0, 9), (1, 0)):
        alone = ids[row : row + 1, start:]
        want = eager.generate(alone, max_new_tokens=20, do_sample=False)
        assert torch.equal(got[row : row + 1, start:], want)
        assert_near(close[row, start:], logits(eager, input_ids=alone)[0])


@pytest.mark.parametrize(("weights", "quantise"), [("fp8", naive_fp8), ("fp4", naive_fp4)])
@pytest.mark.parametrize("name", MODELS)
def test_quantised_experts_match_naive_dequantisation(
    name: str, weights: str, quantise: Callable[[Tensor], Tensor]
) -> None:
    model = build(name)
    want = naively_quantised(model, quantise)
    assert (logits(want) - logits(model)).abs().max() > 1e-3, "the quantisation must be visible"
    got = optimize(model, weights)
    assert_near(logits(got), logits(want))
    ids = tokens(1, 20)
    assert torch.equal(*(m.generate(ids, max_new_tokens=8, do_sample=False) for m in (got, want)))


def test_bf16_weights_match_rounding_the_experts() -> None:
    want = naively_quantised(build("v4"), lambda w: w.bfloat16().float())
    assert (logits(optimize(build("v4"), "bf16")) - logits(want)).abs().max() <= 1e-5


@pytest.mark.parametrize("name", MODELS)
def test_bf16_models_round_no_more_than_eager(name: str) -> None:
    model = build(name, torch.bfloat16)
    naive = naively_quantised(copy.deepcopy(model).float(), naive_fp8)
    exact = logits(naive)
    theirs = (logits(naive.to(torch.bfloat16)).float() - exact).abs().mean()
    ours = logits(optimize(model, "fp8"))
    assert ours.dtype == torch.bfloat16
    assert (ours.float() - exact).abs().mean() <= 1.5 * theirs


def test_linears_too() -> None:
    model = build("v4")
    want = copy.deepcopy(model)
    kept = [f"{part}.{x}_proj" for part in ("compressor", "indexer") for x in ("kv", "gate")] + [
        "weights_proj"
    ]
    with torch.no_grad():
        for name, module in want.named_modules():
            if isinstance(module, nn.Linear) and not name.endswith((*kept, "lm_head")):
                rows = module.weight.shape[0] // getattr(module, "n_groups", 1)
                blocks = module.weight.view(-1, rows, module.weight.shape[1])
                module.weight.copy_(naive_fp8(blocks).view_as(module.weight))
    want = naively_quantised(want, naive_fp8)
    with sparsekern.trace() as calls:
        got = logits(optimize(model, "fp8", linears=True))
    assert (got - logits(want)).abs().max() <= 1e-5
    assert calls["gemm"] > 0
    assert calls["grouped_gemm"] == 4


# Checkpoints in FP8 and FP4: transformers' own modules, filled with codes and scales.


def codes_and_scale(parameter: Tensor, scale: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    shape = parameter.shape
    if parameter.dtype == torch.int8:
        codes = torch.randint(-128, 128, shape, dtype=torch.int8, generator=generator)
        powers = torch.randint(-6, -3, scale.shape, generator=generator)
    else:
        codes = torch.randn(shape, generator=generator).mul_(60).to(torch.float8_e4m3fn)
        powers = torch.randint(-11, -8, scale.shape, generator=generator)
    factors = torch.exp2(powers.float())
    if scale.dtype == torch.float32 and parameter.dtype != torch.int8:
        factors *= 1 + torch.rand(scale.shape, generator=generator)
    return codes, factors.to(scale.dtype)


def dequantised(codes: Tensor, scale: Tensor, block: tuple[int, int]) -> Tensor:
    if codes.dtype == torch.int8:
        nibbles = torch.stack([codes & 15, (codes >> 4) & 15], -1).flatten(-2).long()
        values, block = LUT[nibbles & 7] * torch.where(nibbles > 7, -1.0, 1.0), (1, 32)
    else:
        values = codes.float()
    rows, cols = torch.arange(values.shape[-2]) // block[0], torch.arange(values.shape[-1]) // block[1]
    return values * scale.float()[..., rows, :][..., cols]


def fp8_checkpoint(name: str, config: FineGrainedFP8Config) -> tuple[nn.Module, nn.Module]:
    """Return a model of transformers' FP8 modules, and the plain model of the same weights."""
    model, plain = build(name), build(name)
    keep = ["lm_head", *(model._keep_in_fp32_modules or [])]
    replace_with_fp8_linear(model, modules_to_not_convert=keep, quantization_config=config)
    generator = torch.Generator().manual_seed(3)
    for path, module in model.named_modules():
        if not isinstance(module, FP8Linear | FP8Experts):
            continue
        for field in ("weight",) if isinstance(module, FP8Linear) else ("gate_up_proj", "down_proj"):
            parameter, scale = getattr(module, field), getattr(module, f"{field}_scale_inv")
            codes, scale = codes_and_scale(parameter, scale, generator)
            setattr(module, field, nn.Parameter(codes, requires_grad=False))
            setattr(module, f"{field}_scale_inv", nn.Parameter(scale, requires_grad=False))
            block = config.weight_block_size or codes.shape
            if groups := getattr(module, "n_groups", 0):
                codes, scale = (t.unflatten(0, (groups, -1)) for t in (codes, scale))
            weight = dequantised(codes, scale.reshape(1, 1) if scale.ndim == 0 else scale, block)
            target = getattr(plain.get_submodule(path), field).data
            target.copy_(weight.reshape(target.shape))
    return model.eval(), plain


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "layout",
    [
        {"weight_block_size": (32, 32)},
        {"weight_block_size": (32, 16), "scale_fmt": "ue8m0"},
        {"weight_block_size": (32, 32), "scale_fmt": "ue8m0", "expert_dtype": "fp4"},
        {"weight_block_size": (32, 32), "expert_dtype": "fp4"},
    ],
    ids=["fp32", "ue8m0", "fp4-ue8m0", "fp4-fp32"],
)
def test_fp8_checkpoints_run_as_they_are(name: str, layout: dict[str, object]) -> None:
    model, plain = fp8_checkpoint(name, FineGrainedFP8Config(**layout))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with sparsekern.trace() as calls:
        got = logits(optimize(model))
    assert calls["fused_moe"] > 0
    assert calls["gemm"] > 0
    assert (got - logits(plain)).abs().max() <= 1e-5 * max(1.0, got.abs().max().item())
    after = model.state_dict()
    assert after.keys() == before.keys()
    for key, value in before.items():
        assert after[key].shape == value.shape, key
        assert torch.equal(after[key].float(), value.float()), key


@pytest.mark.parametrize("expert_dtype", ["fp8", "fp4"])
def test_an_fp8_checkpoint_on_disk(tmp_path: Path, expert_dtype: str) -> None:
    layout = FineGrainedFP8Config(weight_block_size=(32, 32), scale_fmt="ue8m0", expert_dtype=expert_dtype)
    model, plain = fp8_checkpoint("v4", layout)
    model.config.quantization_config = layout
    model.save_pretrained(tmp_path)
    before = FineGrainedFP8HfQuantizer.validate_environment
    with keep_fp8():
        loaded = type(model).from_pretrained(tmp_path, dtype=torch.float32)
    assert any(isinstance(module, FP8Experts) for module in loaded.modules())
    assert (logits(optimize(loaded)) - logits(plain)).abs().max() <= 1e-5
    assert FineGrainedFP8HfQuantizer.validate_environment is before, "the change ends with the block"


def test_rows_of_scales_beyond_the_weight_are_padding() -> None:
    """2 x 32 rows are one block of 128, for which transformers allocates two rows of scales."""
    options = CONFIGS["qwen3"][1] | {"moe_intermediate_size": 32}
    config = FineGrainedFP8Config(weight_block_size=(128, 128))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CONFIGS, "qwen3", ("Qwen3Moe", options))
        model, plain = fp8_checkpoint("qwen3", config)
    scale = model.model.layers[0].mlp.experts.gate_up_proj_scale_inv
    assert scale.shape[-2] == 2
    with torch.no_grad():
        scale[:, 1] = torch.nan
    assert (logits(optimize(model)) - logits(plain)).abs().max() <= 1e-5


# What stays as it was.


@pytest.mark.parametrize("name", MODELS)
def test_other_models_stay_as_they_were(name: str) -> None:
    config = config_of(name)
    first, second = build(name, config=config), build(name, config=config)
    second.set_experts_implementation("grouped_mm")
    third = copy.deepcopy(second)
    before = logits(second)
    ours = optimize(first, "fp8")
    assert ours is first
    with sparsekern.trace() as calls:
        assert torch.equal(logits(second), before)
        assert torch.equal(logits(third), before)
    assert not sum(calls.values())
    assert second.config is config
    assert config._experts_implementation == "grouped_mm"
    assert ours.config._experts_implementation == ours.model.config._experts_implementation == "sparsekern"
    assert ours.config is ours.model.config
    assert all(p.requires_grad for p in second.parameters())


def test_a_copy_of_an_optimised_model_works() -> None:
    ours = optimize(build("v4"), "fp8")
    want = logits(ours)
    twin, file = copy.deepcopy(ours), io.BytesIO()
    torch.save(ours, file)
    file.seek(0)
    del ours
    assert torch.equal(logits(twin), want)
    assert torch.equal(logits(torch.load(file, weights_only=False)), want)


def test_recorded_router_logits() -> None:
    want, got = (
        m(input_ids=tokens(), output_router_logits=True).router_logits
        for m in (build("qwen3"), optimize(build("qwen3")))
    )
    assert len(got) == len(want) == 3
    for a, b in zip(got, want, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_grad_modes_agree() -> None:
    ours = optimize(build("v4"))
    want = logits(ours)
    assert torch.equal(ours(input_ids=tokens()).logits, want)
    with torch.inference_mode():
        assert torch.equal(ours(input_ids=tokens()).logits, want)


def test_state_dict_is_that_of_the_model_it_came_from(tmp_path: Path) -> None:
    model, fresh = build("v4"), build("v4")
    before = {key: (value.shape, value.dtype) for key, value in model.state_dict().items()}
    exact = optimize(copy.deepcopy(model)).state_dict()
    assert all(torch.equal(exact[key], value) for key, value in model.state_dict().items())
    state = optimize(model, "fp8").state_dict()
    assert {key: (value.shape, value.dtype) for key, value in state.items()} == before
    fresh.load_state_dict(state)
    assert (logits(fresh) - logits(model)).abs().max() <= 1e-5
    model.save_pretrained(tmp_path)
    loaded = type(fresh).from_pretrained(tmp_path, experts_implementation="eager")
    assert torch.equal(logits(loaded), logits(fresh))
    with pytest.raises(RuntimeError, match=r"packed by sparsekern: load weights before optimize\(\)"):
        model.load_state_dict(state)


def test_bytes_are_counted() -> None:
    model = build("v32")
    experts = sum(p.nbytes for name, p in model.named_parameters() if "mlp.experts." in name)
    others = model.get_memory_footprint() - experts
    packed = optimize(model, "fp8").get_memory_footprint() - others
    assert experts / 4 <= packed <= experts / 3, "about one byte for each fp32 number"


def test_a_cast_afterwards_is_right_or_an_error() -> None:
    ours = optimize(build("v4"), "fp8")
    want, packed = logits(ours), ours.model.layers[0].mlp.experts.down_proj
    held = list(packed.buffers())
    cast = logits(ours.to(torch.bfloat16)).float()
    assert all(a is b for a, b in zip(held, packed.buffers(), strict=True))
    assert (cast - want).abs().mean() < 0.1 * want.abs().mean() + 0.1
    with pytest.raises((TypeError, ValueError, RuntimeError)):
        logits(optimize(build("v4")).to(torch.bfloat16))


def test_part_of_a_model() -> None:
    model = build("v4")
    want = logits(optimize(copy.deepcopy(model), "fp8"))
    for layer in model.model.layers:
        optimize(layer, "fp8")
    optimize(model)  # its attention, a matter of all layers
    assert torch.equal(logits(model), want)


# What cannot be taken.


def test_errors_name_the_problem() -> None:
    with pytest.raises(ValueError, match="weights is 'int8', expected None, 'bf16', 'fp8' or 'fp4'"):
        optimize(build("v4"), "int8")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="already"):
        optimize(optimize(build("v4")))
    with pytest.raises(ValueError, match="Linear: it has no routed experts"):
        optimize(nn.Linear(4, 4))
    with pytest.raises(ValueError, match=r"float16: convert the model to float32 or bfloat16"):
        optimize(build("v4", torch.float16))
    with pytest.raises(ValueError, match="meta device"):
        optimize(build("v4").to("meta"))
    with pytest.raises(ValueError, match="multiple of 32 numbers, these have 48"):
        model = transformers.Qwen3MoeForCausalLM(
            transformers.Qwen3MoeConfig(**(CONFIGS["qwen3"][1] | {"moe_intermediate_size": 48}))
        )
        optimize(model, "fp4")
    with pytest.raises(ValueError, match="fp8 already: pass weights=None"):
        optimize(fp8_checkpoint("v4", FineGrainedFP8Config(weight_block_size=(32, 32)))[0], "fp4")


def test_gpt_oss_is_refused_with_the_reason() -> None:
    config = transformers.GptOssConfig(
        **SHARED | {"intermediate_size": 32, "num_local_experts": 4, "head_dim": 16, "num_key_value_heads": 2}
    )
    model = transformers.GptOssForCausalLM(config)
    with pytest.raises(ValueError, match=r"GptOssForCausalLM: .*experts because its experts have biases"):
        optimize(model)


def test_the_name_alone_is_an_error() -> None:
    model = build("v4")
    model.set_experts_implementation("sparsekern")
    with pytest.raises(RuntimeError, match=r"call sparsekern.integrations.transformers.optimize\(model\)"):
        logits(model)


def test_what_no_op_expresses_stays_with_transformers(caplog: pytest.LogCaptureFixture) -> None:
    def odd() -> nn.Module:
        model = build("v4")
        model.model.layers[1].mlp.experts.act_fn = nn.GELU()
        model.model.layers[2].mlp.gate.score_fn = nn.Softmax(dim=-1)
        return model

    want = logits(odd())
    with caplog.at_level(logging.INFO):
        ours = optimize(odd())
    (line,) = [r.message for r in caplog.records if r.name.startswith("sparsekern")]
    assert "layers.1.mlp.experts because its gate is not" in line
    assert "layers.2.mlp.gate because it scores by Softmax" in line
    with sparsekern.trace() as calls:
        assert (logits(ours) - want).abs().max() <= 1e-5
    assert calls["fused_moe"] == calls["route_topk"] + calls["route_hash"] == 3

"""The model of the demo, and the processes that run it: one per side, so that each has its own peak memory.

    python -m sparsekern.cli._demo_model '{"role": "transformers", ...}'

prints one line of JSON and leaves its logits in a file.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DeepseekV4Config, DeepseekV4ForCausalLM
from transformers.initialization import no_init_weights

from sparsekern import reference, trace
from sparsekern.integrations.transformers import optimize
from sparsekern.integrations.transformers.packed import FP4_BLOCK, FP8_BLOCK, Format, HfModule

ROUNDS = 5
PATIENCE = 10.0  # seconds after which no further round begins
DECODED = 8  # tokens after a long context

Model: HfModule = DeepseekV4ForCausalLM  # whose own annotations stop short of what is called here


@dataclass(frozen=True)
class Job:
    """What a child process is asked to do."""

    role: str  # "transformers", "sparsekern" or "check"
    hidden: int
    weights: Format | None
    ids: list[int]
    prefill: int
    logits: str  # the file to leave them in
    context: list[int] = field(default_factory=list)  # another, longer text to read

    def dumps(self) -> str:
        """Write the job as an argument."""
        return json.dumps(asdict(self))


class Bar:
    """A bar on stderr: how far a job is."""

    def __init__(self, label: str, total: int) -> None:
        """Draw an empty bar of `total` steps."""
        self.label, self.total, self.done = label, total, -1
        self.step()

    def step(self) -> None:
        """Draw one step more."""
        self.done += 1
        filled = 40 * self.done // self.total
        end = "\n" if self.done == self.total else ""
        print(f"\r{self.label:12} [{'#' * filled:40}]", end=end, file=sys.stderr, flush=True)


def config_of(hidden: int) -> DeepseekV4Config:
    """Return DeepSeek-V4-Flash in small: its ratios of widths, its kinds of layers, bytes for tokens."""
    kinds = ["sliding", "compressed_sparse", "heavily_compressed", "compressed_sparse", "heavily_compressed"]
    return DeepseekV4Config(
        vocab_size=256,
        hidden_size=hidden,
        moe_intermediate_size=hidden // 2,
        num_hidden_layers=len(kinds),
        layer_types=[f"{kind}_attention" for kind in kinds],
        mlp_layer_types=["hash_moe"] * 2 + ["moe"] * 3,
        n_routed_experts=64,
        num_experts_per_tok=6,
        num_attention_heads=16,
        head_dim=hidden // 8,
        q_lora_rank=hidden // 4,
        o_groups=4,
        o_lora_rank=hidden // 4,
        index_n_heads=16,
        index_head_dim=64,
        index_topk=64,
        max_position_embeddings=1 << 16,
        bos_token_id=None,
        eos_token_id=None,
    )


def build(
    config: DeepseekV4Config, dtype: torch.dtype, each_layer: Callable[[nn.Module], object]
) -> HfModule:
    """Return the seeded model, with `each_layer` applied as soon as a layer has its weights.

    The numbers are bf16 numbers whatever the dtype. Memory is touched only as weights are drawn, so that a
    model whose layers are packed one by one never lies in memory whole.
    """
    with no_init_weights():
        model = Model._from_config(config, dtype=dtype).eval()
    for name, tensor in _tensors(model):
        if set(model._keep_in_fp32_modules_strict) & set(name.split(".")):
            tensor.data = tensor.data.float()
    rest = [pair for pair in _tensors(model) if not pair[0].startswith("model.layers.")]
    _seed(rest, config.n_routed_experts, torch.Generator().manual_seed(0))
    for i, layer in enumerate(model.model.layers):
        _seed(_tensors(layer), config.n_routed_experts, torch.Generator().manual_seed(1 + i))
        each_layer(layer)
    return model


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


@torch.no_grad()
def _seed(tensors: list[tuple[str, Tensor]], num_experts: int, generator: torch.Generator) -> None:
    for name, tensor in tensors:
        if "inv_freq" in name:
            continue
        if name.endswith("tid2eid"):
            draw = torch.rand(tensor.shape[0], num_experts, generator=generator)
            tensor.copy_(draw.topk(tensor.shape[1]).indices)
        elif name.endswith("norm.weight") or name.endswith("scale"):
            tensor.fill_(1)
        else:
            # Unit variance in, unit variance out; biases and sinks small.
            bound = (3 / tensor.shape[-1]) ** 0.5 if tensor.ndim > 1 else 0.02
            drawn = tensor.dtype == torch.bfloat16
            draw = tensor if drawn else torch.empty_like(tensor, dtype=torch.bfloat16)
            tensor.copy_(draw.uniform_(-bound, bound, generator=generator))


def timed(job: Job) -> dict[str, Any]:
    """Read and decode the text in bf16, as it is or optimised; return the figures of the table."""
    ids, config, decode = torch.tensor([job.ids]), config_of(job.hidden), len(job.ids) - job.prefill
    bar, counted = Bar(job.role, config.num_hidden_layers + ROUNDS + decode), []

    def each_layer(layer: nn.Module) -> None:
        counted.append(sum(p.numel() for p in layer.parameters()))
        if job.role == "sparsekern":
            optimize(layer, job.weights)
        bar.step()

    model = build(config, torch.bfloat16, each_layer)
    if job.role == "sparsekern":
        optimize(model)  # its attention, which is a matter of all layers
    _, routes = _run(model, ids[:, : job.prefill])  # warms up, too
    prefill: list[float] = []
    steps: list[float] = []
    logits: list[Tensor] = []
    for _ in range(ROUNDS):
        bar.step()
        if sum(prefill) > PATIENCE:
            continue
        start = time.perf_counter()
        out = model(ids[:, : job.prefill], use_cache=True)
        prefill.append(time.perf_counter() - start)
    logits.append(out.logits)
    for i in range(job.prefill, len(job.ids)):
        start = time.perf_counter()
        out = model(ids[:, i : i + 1], past_key_values=out.past_key_values, use_cache=True)
        steps.append(time.perf_counter() - start)
        logits.append(out.logits)
        bar.step()
    torch.save(torch.cat(logits, 1)[0].float(), job.logits)
    # Medians, because a shared machine pauses now and then.
    return {
        "prefill_tokens_per_s": job.prefill / statistics.median(prefill),
        "decode_tokens_per_s": 1 / statistics.median(steps) if steps else None,
        "weight_bytes": model.get_memory_footprint(),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "expert_load": [_load(ids, config.n_routed_experts) for ids in routes],
        "layer_parameters": sum(counted),
        "context": long_context(model, job.context) if job.context else None,
    }


# What the time of a long context goes into, by op.
STAGES = {
    "indexer with top-k": ("indexer_topk",),
    "attention": ("sparse_mla_decode",),
    "compression": ("compress_kv", "rope", "kv_write"),
    "hyper-connections": ("mhc_pre", "mhc_post_pre", "mhc_post", "mhc_head"),
    "routers and experts": ("route_topk", "route_hash", "fused_moe"),
}


def long_context(model: HfModule, ids: list[int]) -> dict[str, Any]:
    """Read a long text once and decode a few bytes after it."""
    steps, start = [], time.perf_counter()
    with trace() as calls:
        out = model(torch.tensor([ids]), use_cache=True, logits_to_keep=1)
    seconds = time.perf_counter() - start
    cache = out.past_key_values
    for _ in range(DECODED):
        start = time.perf_counter()
        out = model(out.logits[:, -1:].argmax(-1), past_key_values=cache, use_cache=True)
        steps.append(time.perf_counter() - start)
    stages = {stage: sum(map(calls.seconds, ops)) for stage, ops in STAGES.items()}
    return {
        "tokens": len(ids),
        "prefill_tokens_per_s": len(ids) / seconds,
        "decode_tokens_per_s": 1 / statistics.median(steps),
        "cache_bytes": getattr(cache, "nbytes", None) or _cached_bytes(cache),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "seconds": {**stages, "everything else": seconds - sum(stages.values())},
    }


def _cached_bytes(cache: HfModule) -> int:
    """Return the bytes of transformers' own cache, each tensor once."""
    tensors: dict[int, Tensor] = {}
    for layer in cache.layers:
        for value in vars(layer).values():
            for t in value.values() if isinstance(value, dict) else [value]:
                if isinstance(t, Tensor):
                    tensors[t.data_ptr()] = t
    return sum(t.nbytes for t in tensors.values())


def check(job: Job) -> dict[str, Any]:
    """Run the tokens in fp32, unquantised, naively quantised and optimised; leave the logits of the three."""
    ids, config = torch.tensor([job.ids]), config_of(job.hidden)
    changes: dict[str, Callable[[nn.Module], object]] = {
        "unquantised": lambda layer: None,
        "naive": lambda layer: naively_quantise(layer, job.weights),
        "optimised": lambda layer: optimize(layer, job.weights),
    }
    logits: dict[str, Tensor] = {}
    routes: dict[str, list[Tensor]] = {}
    bar = Bar(job.role, len(changes) * (config.num_hidden_layers + 1))
    for name, change in changes.items():

        def each_layer(layer: nn.Module, change: Callable[[nn.Module], object] = change) -> None:
            change(layer)
            bar.step()

        model = build(config, torch.float32, each_layer)
        if name == "optimised":
            optimize(model)  # its attention, which is a matter of all layers
        logits[name], routes[name] = _run(model, ids)
        bar.step()
        del model
    torch.save(logits, job.logits)
    pairs = zip(routes["naive"], routes["optimised"], strict=True)
    moved = [(a.sort(-1).values != b.sort(-1).values).any(-1) for a, b in pairs]
    return {"tokens_routed_otherwise": int(torch.stack(moved).any(0).sum())}


@torch.no_grad()
def naively_quantise(layer: HfModule, weights: Format | None) -> None:
    """Round a layer's routed experts to the values that `weights` can hold."""
    for parameter in layer.mlp.experts.parameters():
        for w in parameter:
            if weights == "fp8":
                pair, block = reference.quantize_fp8_blocks(w, block=FP8_BLOCK), FP8_BLOCK
            elif weights == "fp4":
                pair, block = reference.quantize_fp4(w), FP4_BLOCK
            else:
                return  # the seeded numbers are bf16 numbers
            w.copy_(reference.dequantize(*pair, block=block, dtype=w.dtype))


def _run(model: HfModule, ids: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return the logits, and the expert ids of each layer."""
    routes: list[Tensor] = []
    gates = [layer.mlp.gate for layer in model.model.layers]
    hooks = [gate.register_forward_hook(lambda module, args, out: routes.append(out[2])) for gate in gates]
    logits: Tensor = model(ids).logits[0]
    for hook in hooks:
        hook.remove()
    return logits, routes


def _load(routes: Tensor, num_experts: int) -> float:
    """Return the tokens of the busiest expert over the mean."""
    counts = torch.bincount(routes.flatten(), minlength=num_experts)
    return float(counts.max() / counts.float().mean())


if __name__ == "__main__":
    job = Job(**json.loads(sys.argv[1]))
    with torch.inference_mode():
        print(json.dumps(check(job) if job.role == "check" else timed(job)))

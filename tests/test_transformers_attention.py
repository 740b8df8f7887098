"""`optimize`'s attention against transformers' own eager models: caches, chunks, padding, batches, beams."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers")

from test_transformers import CONFIGS, VOCAB, assert_near, build

import sparsekern
from sparsekern.integrations.transformers import SparsekernCache, chunks, optimize

SPARSE = ["v32", "v4"]


def ids_of(batch: int, length: int, seed: int = 1) -> Tensor:
    return torch.randint(1, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def run(model: nn.Module, ids: Tensor, **kwargs: object) -> Tensor:
    return model(ids, **kwargs).logits


@pytest.fixture(scope="module", params=SPARSE)
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[str, nn.Module, nn.Module]]:
    yield request.param, build(request.param), optimize(build(request.param))


def test_attention_runs_on_our_ops(pair: tuple[str, nn.Module, nn.Module]) -> None:
    name, _, ours = pair
    with sparsekern.trace() as calls:
        run(ours, ids_of(1, 60))
    layers = len(ours.model.layers)
    assert calls["sparse_mla_decode"] == layers
    assert calls["indexer_topk"] == (2 if name == "v4" else layers)
    if name == "v4":
        assert calls["mhc_pre"] == calls["mhc_post_pre"] == calls["mhc_post"] == layers
        assert calls["mhc_head"] == 1


@torch.no_grad()
def test_prefill_and_64_decoded_tokens_are_those_of_eager(pair: tuple[str, nn.Module, nn.Module]) -> None:
    _, eager, ours = pair
    ids, caches = ids_of(2, 45), [None, None]
    for _ in range(65):
        a, b = (m(ids, past_key_values=c, use_cache=True) for m, c in zip((eager, ours), caches, strict=True))
        assert_near(b.logits, a.logits)
        caches = [a.past_key_values, b.past_key_values]
        ids = a.logits[:, -1:].argmax(-1)
        assert torch.equal(ids, b.logits[:, -1:].argmax(-1))
    assert isinstance(caches[1], SparsekernCache)
    assert caches[1].get_seq_length() == 45 + 64
    assert caches[1].nbytes > 0


@pytest.mark.parametrize("size", [1, 7, 16, 23])
def test_chunks_are_one_prefill(
    pair: tuple[str, nn.Module, nn.Module], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, ours = pair
    ids = ids_of(1, 61)
    want = run(ours, ids)
    monkeypatch.setattr(chunks, "CHUNK", size)
    assert_near(run(ours, ids), want)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(pair: tuple[str, nn.Module, nn.Module], side: str) -> None:
    _, _, ours = pair
    lengths = (50, 37, 1)
    rows = [ids_of(1, n, seed=n)[0] for n in lengths]
    ids, mask = torch.zeros(3, 50, dtype=torch.int64), torch.zeros(3, 50, dtype=torch.int64)
    for i, row in enumerate(rows):
        at = slice(50 - len(row), 50) if side == "left" else slice(0, len(row))
        ids[i, at], mask[i, at] = row, 1
    got = run(ours, ids, attention_mask=mask)
    for i, row in enumerate(rows):
        want = run(ours, row[None])[0]
        assert_near(got[i][mask[i].bool()], want)


@pytest.mark.parametrize(
    "options", [{}, {"do_sample": True}, {"num_beams": 3}], ids=["greedy", "sampled", "beams"]
)
def test_generate(pair: tuple[str, nn.Module, nn.Module], options: dict[str, object]) -> None:
    _, eager, ours = pair
    ids = ids_of(2, 33)
    tokens = []
    for model in (eager, ours):
        torch.manual_seed(0)
        with torch.no_grad():
            tokens.append(model.generate(ids, max_new_tokens=20, **options))
    assert torch.equal(*tokens)


@torch.no_grad()
def test_rollback(pair: tuple[str, nn.Module, nn.Module]) -> None:
    name, _, ours = pair
    ids = ids_of(1, 40)
    cache = ours(ids, use_cache=True).past_key_values
    if name == "v4":  # windows are compressed once
        with pytest.raises(ValueError, match="cannot be taken back"):
            cache.crop(-3)
        return
    cache.crop(-10)
    assert cache.get_seq_length() == 30
    got = ours(ids[:, 30:], past_key_values=cache).logits
    assert_near(got, run(ours, ids)[:, 30:])
    with pytest.raises(ValueError, match="expected -n"):
        cache.crop(3)


@torch.no_grad()
@pytest.mark.parametrize("name", ["v3", "v32", "v4"])
def test_batch_invariant_models_give_the_same_bits_alone_and_in_any_batch(name: str) -> None:
    ours = optimize(build(name), batch_invariant=True)
    assert_near(run(ours, ids_of(1, 40)), run(build(name), ids_of(1, 40)))
    lengths, total = (40, 31, 9), 40
    rows = [ids_of(1, n, seed=n) for n in lengths]
    ids, mask = torch.zeros(3, total, dtype=torch.int64), torch.zeros(3, total, dtype=torch.int64)
    for i, row in enumerate(rows):
        ids[i, total - row.shape[1] :], mask[i, total - row.shape[1] :] = row[0], 1
    batch = ours(ids, attention_mask=mask, use_cache=True)
    alone = [ours(row, use_cache=True) for row in rows]
    for step in range(6):
        for i, one in enumerate(alone):
            n = one.logits.shape[1]
            assert torch.equal(batch.logits[i, -n:], one.logits[0]), (step, i)
        following = torch.stack([one.logits[0, -1:].argmax(-1) for one in alone])
        mask = torch.cat([mask, torch.ones(3, 1, dtype=torch.int64)], 1)
        batch = ours(following, attention_mask=mask, past_key_values=batch.past_key_values, use_cache=True)
        alone = [
            ours(t[None], past_key_values=one.past_key_values, use_cache=True)
            for t, one in zip(following, alone, strict=True)
        ]


def records(name: str) -> nn.Module:
    """A model whose keys have the sizes that FP8 records hold."""
    import transformers

    prefix, options = CONFIGS[name]
    sizes = {
        "v4": {
            "head_dim": 512,
            "num_attention_heads": 2,
            "partial_rotary_factor": 0.125,
            "index_head_dim": 64,
        },
        "v32": {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "index_head_dim": 64},
    }[name]
    return build(name, config=getattr(transformers, f"{prefix}Config")(**{**options, **sizes}))


@torch.no_grad()
@pytest.mark.parametrize("name", SPARSE)
def test_fp8_records_match_keys_rounded_naively(name: str) -> None:
    ours, naive = optimize(records(name), kv="fp8"), optimize(records(name))
    format, dim = ("mla584", 512) if name == "v4" else ("mla656", 576)

    def rounded(keys: Tensor) -> Tensor:
        pool = torch.zeros(-(-len(keys) // 64), sparsekern.kv_page_bytes(format, 64), dtype=torch.uint8)
        slots = torch.arange(len(keys))
        sparsekern.reference.kv_write(pool, slots, keys.bfloat16(), format=format, page_size=64)
        return sparsekern.reference.kv_read(pool, slots, format=format, page_size=64, dtype=torch.float32)

    ids = ids_of(1, 70)
    got = run(ours, ids)
    from sparsekern.integrations.transformers.cache import KeyFormat

    write = KeyFormat.write

    def rounding(self: KeyFormat, pool: Tensor, slots: Tensor, keys: Tensor) -> None:
        write(self, pool, slots, rounded(keys) if self.dim == dim else keys)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KeyFormat, "write", rounding)
        want = run(naive, ids)
    assert (got - want).abs().max() <= 1e-4
    assert (got - run(naive, ids)).abs().max() > 1e-4  # rounding does show


def test_errors_name_the_problem(pair: tuple[str, nn.Module, nn.Module]) -> None:
    name, eager, ours = pair
    with pytest.raises(ValueError, match="kv is 'int8'"):
        optimize(build(name), kv="int8")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="kv='fp8' holds keys of"):
        optimize(build(name), kv="fp8")
    with pytest.raises(ValueError, match="does not run its attention on sparsekern"):
        SparsekernCache(eager)
    with pytest.raises(ValueError, match="padding between tokens"):
        run(ours, ids_of(1, 3), attention_mask=torch.tensor([[1, 0, 1]]))
    with pytest.raises(ValueError, match="position_ids are not consecutive"):
        run(ours, ids_of(1, 3), position_ids=torch.tensor([[0, 2, 3]]))
    with pytest.raises(ValueError, match="call the whole model"):
        ours.model.layers[0].self_attn(torch.zeros(1, 1, ours.config.hidden_size), past_key_values=None)
    with torch.no_grad():
        cache = eager(ids_of(1, 3), use_cache=True).past_key_values
    with pytest.raises(ValueError, match="holds tokens that transformers wrote"):
        run(ours, ids_of(1, 3), past_key_values=cache)


@torch.no_grad()
def test_a_copy_has_states_of_its_own(pair: tuple[str, nn.Module, nn.Module]) -> None:
    _, _, ours = pair
    ids = ids_of(1, 30)
    cache = ours(ids, use_cache=True).past_key_values
    other = copy.deepcopy(cache)
    ours(ids_of(1, 5, seed=3), past_key_values=other)
    assert cache.get_seq_length() == 30
    want = run(ours, torch.cat([ids, ids_of(1, 4, seed=4)], 1))[:, 30:]
    assert_near(ours(ids_of(1, 4, seed=4), past_key_values=cache).logits, want)

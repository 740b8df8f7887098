"""Positions and compressed keys: what the records' tests do not ask."""

import math
from typing import Any

import pytest
import torch
from cases import EACH_ISA, inputs, run
from torch import Tensor

import sparsekern
from sparsekern.catalogue import OPS
from sparsekern.schema import Dims, DtypeError, ShapeError
from sparsekern.testing import assert_close, assert_same_bits, outcome

ROPE = OPS["rope"]
YARN = {"factor": 16, "original_max_position_embeddings": 65536, "beta_fast": 32, "beta_slow": 1}


# --- rope ---------------------------------------------------------------------------------------------------


def cosines(positions: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the angles of one pair, made by rotating (1, 0)."""
    x = torch.tensor([1.0, 0.0]).expand(len(positions), 2).contiguous()
    y = sparsekern.rope(x, positions, theta=1.0, rotary_dim=2, layout="interleaved", offset=0, **options)
    return y[:, 0], y[:, 1]


@pytest.mark.parametrize("isa", EACH_ISA)
def test_cosines_and_sines_are_rounded_once(isa: str) -> None:
    """Against float64, whose own error is far below the distance of float32 numbers."""
    rng = torch.Generator().manual_seed(0)
    positions = torch.cat(
        [torch.arange(-2000, 20000), torch.randint(-(2**31) + 1, 2**31 - 1, (20000,), generator=rng)]
    )
    with sparsekern.config.using(isa=isa):
        cosine, sine = cosines(positions)
        backwards = cosines(positions, inverse=True)
    angle = positions.float().double()
    assert (cosine == angle.cos().float()).double().mean() > 0.9999
    assert (sine == angle.sin().float()).double().mean() > 0.9999
    torch.testing.assert_close(cosine.double(), angle.cos(), atol=0, rtol=2**-24 + 1e-9)
    torch.testing.assert_close(sine.double(), angle.sin(), atol=1e-15, rtol=2**-24 + 1e-9)
    assert torch.equal(cosine, backwards[0]) and torch.equal(-sine, backwards[1])


def test_turning_back_gives_what_was() -> None:
    x = inputs(ROPE, {"T": 50, "H": 4, "D": 96, "rotary_dim": 64, "yarn": 1, "f32": 1, "length": 10**6})
    assert_close(ROPE.fn(**{**x, "x": ROPE.fn(**x), "inverse": True}), x["x"], 2e-6)


def test_layouts_are_permutations_of_each_other() -> None:
    x = inputs(ROPE, {"T": 9, "H": 2, "D": 64})
    order = torch.arange(64).view(32, 2).T.reshape(-1)  # the even channels, then the odd ones
    half = ROPE.fn(**{**x, "x": x["x"][..., order].contiguous(), "layout": "half"})
    assert_same_bits(half, ROPE.fn(**x)[..., order].contiguous())


def test_attention_scores_depend_on_distance_alone() -> None:
    q, k = (torch.randn(1, 64, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    options: dict[str, Any] = {"theta": 1e4, "rotary_dim": 64, "layout": "interleaved", "offset": 0}

    def score(at: int) -> float:
        a = sparsekern.rope(q, torch.tensor([at + 7]), **options)
        return float(a @ sparsekern.rope(k, torch.tensor([at]), **options).T)

    assert math.isclose(score(0), score(300), rel_tol=1e-3, abs_tol=1e-3)
    assert not math.isclose(score(0), float(q @ k.T), abs_tol=0.1)


@pytest.mark.parametrize("kind", ["main", "compress"])
def test_rope_agrees_with_transformers(kind: str) -> None:
    transformers = pytest.importorskip("transformers", "5.0")
    from transformers.models.deepseek_v4 import modeling_deepseek_v4 as v4

    c = transformers.DeepseekV4Config()
    embedding = v4.DeepseekV4RotaryEmbedding(c)
    parameters = c.rope_parameters[kind]
    yarn = {name: parameters.get(name, YARN[name]) for name in YARN} if "factor" in parameters else None
    positions = torch.cat([torch.arange(3000), torch.arange(60000, 61000)])
    x = torch.randn(4000, 2, c.head_dim, generator=torch.Generator().manual_seed(2))
    cosine, sine = embedding(x, positions[None], layer_type=kind)
    want = v4.apply_rotary_pos_emb(x[None], cosine, sine, unsqueeze_dim=2)[0]
    width = 2 * cosine.shape[-1]
    got = sparsekern.rope(
        x,
        positions,
        theta=parameters["rope_theta"],
        rotary_dim=width,
        layout="interleaved",
        offset=c.head_dim - width,
        yarn=yarn,
    )
    scaling = getattr(embedding, f"{kind}_attention_scaling")
    assert scaling == 1.0
    assert_close(got, want, 4e-7)


BAD_ROPE: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"theta": 0.5}, ShapeError, "theta is 0.5"),
    ({"theta": float("nan")}, ShapeError, "theta is nan"),
    ({"theta": 1.0, "yarn": YARN}, ShapeError, "theta is 1.0"),
    ({"rotary_dim": 63}, ShapeError, "rotary_dim is 63, expected an even number from 2 to the 96"),
    ({"rotary_dim": 98}, ShapeError, "rotary_dim is 98"),
    ({"offset": 33}, ShapeError, "offset is 33, expected 0 to 32"),
    ({"offset": -1}, ShapeError, "offset is -1"),
    ({"positions": torch.zeros(4, dtype=torch.int32)}, ShapeError, "positions has 4 entries"),
    ({"positions": torch.tensor([0, 1, 2, 3, 2**31])}, ShapeError, "positions[4] is 2147483648"),
    ({"x": torch.zeros(5)}, ShapeError, "x has one dimension"),
    ({"yarn": {**YARN, "factor": 0}}, ShapeError, "yarn has 0"),
    ({"yarn": {**YARN, "beta_slow": float("inf")}}, ShapeError, "yarn has inf"),
    ({"yarn": {"factor": 2}}, ShapeError, "yarn has factor, expected factor, original_max"),
    ({"yarn": {**YARN, "mscale": 1}}, ShapeError, "mscale"),
    ({"yarn": 16}, DtypeError, "yarn is int, expected a dict"),
    ({"yarn": {**YARN, "factor": "16"}}, DtypeError, "yarn_factor is '16', expected a float"),
]


@pytest.mark.parametrize(("change", "error", "says"), BAD_ROPE)
def test_bad_values_of_rope(change: dict[str, Any], error: type[Exception], says: str) -> None:
    x = {**inputs(ROPE, ROPE.test_dims[0]), **change}
    with pytest.raises(error) as caught:
        run(ROPE, x)
    assert str(caught.value).startswith("rope: ") and says in str(caught.value)


# --- compress_kv --------------------------------------------------------------------------------------------

COMPRESS = OPS["compress_kv"]
KINDS = [{"D": 48, "ratio": 4, "overlap": 1}, {"D": 48, "ratio": 32}, {"D": 20, "ratio": 3, "f32": 1}]


def pieces_of(x: dict[str, Any], sizes: list[int]) -> tuple[Tensor, Tensor]:
    """The call made piece by piece: all entries, and the last state."""
    state, entries, at = x.get("state"), [], 0
    for n in sizes:
        part = {**x, "kv": x["kv"][at : at + n], "gate": x["gate"][at : at + n], "state": state}
        some, state = run(COMPRESS, part)
        entries.append(some)
        at += n
    assert at == len(x["kv"]) and state is not None
    return torch.cat(entries), state


@pytest.mark.parametrize("dims", KINDS, ids=str)
@pytest.mark.parametrize(
    "sizes", [[1] * 100, [0, 37, 0, 1, 62, 0], [50, 50], [99, 1], [5, 32, 32, 31]], ids=str
)
def test_pieces_make_the_same_entries(dims: dict[str, int], sizes: list[int]) -> None:
    x = inputs(COMPRESS, {**dims, "T": 100})
    assert_same_bits(pieces_of(x, sizes), tuple(COMPRESS.fn(**x)))


def test_older_states_stay_valid() -> None:
    """Tokens that were tried and refused are taken back by going on from the state before them."""
    x = inputs(COMPRESS, {**KINDS[0], "T": 30})
    first, other = ({**x, "kv": x["kv"][s], "gate": x["gate"][s]} for s in (slice(0, 17), slice(17, 30)))
    _, state = COMPRESS.fn(**first)
    kept = state.clone()
    tried = {**other, "kv": torch.full_like(other["kv"], torch.nan), "state": state}
    assert COMPRESS.fn(**tried).entries.isnan().all()
    assert_same_bits(state, kept)
    assert_same_bits(COMPRESS.fn(**other, state=state).entries, COMPRESS.fn(**x).entries[4:])


@pytest.mark.parametrize("dims", KINDS, ids=str)
def test_float32_entries_stay_exact(dims: dict[str, int]) -> None:
    x = inputs(COMPRESS, {**dims, "T": 200, "f32": 1})
    assert_close(tuple(COMPRESS.fn(**x)), tuple(COMPRESS.reference(**x)), 2e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["kv", "gate"])
def test_what_is_not_a_number_stays_in_its_windows(name: str, bad: float) -> None:
    x = inputs(COMPRESS, {"T": 24, "D": 24, "ratio": 4, "overlap": 1, "f32": 1})
    want = COMPRESS.fn(**x).entries
    x[name][9, 30] = bad  # window 2, in the half for itself
    x[name][17] = bad  # window 4, which window 5 reads too
    got = COMPRESS.fn(**x)
    assert_close(tuple(got), tuple(COMPRESS.reference(**x)), 2e-6)
    assert_same_bits(got.entries[[0, 1, 3]], want[[0, 1, 3]])


def test_all_scores_negative_infinity() -> None:
    x = inputs(COMPRESS, {"T": 8, "D": 5, "ratio": 4, "f32": 1})
    x["gate"][4:] = -torch.inf
    got = COMPRESS.fn(**x).entries
    assert got[0].isfinite().all() and got[1].isnan().all()


@pytest.mark.parametrize("overlap", [False, True])
def test_compressor_agrees_with_transformers(overlap: bool) -> None:
    transformers = pytest.importorskip("transformers", "5.0")
    from transformers.models.deepseek_v4 import modeling_deepseek_v4 as v4

    c = transformers.DeepseekV4Config(hidden_size=64, head_dim=96, index_topk=8)
    module = (v4.DeepseekV4CSACompressor if overlap else v4.DeepseekV4HCACompressor)(c)
    rng = torch.Generator().manual_seed(4)
    for p in module.parameters():
        p.data = torch.randn(p.shape, generator=rng) / p.shape[-1] ** 0.5
    module.requires_grad_(False)
    hidden = torch.randn(1, 3 * module.compress_rate + 2, 64, generator=rng)
    positions = torch.arange(hidden.shape[1])[None]
    if overlap:
        module.indexer.forward = lambda *_: torch.zeros(1, hidden.shape[1], 1, dtype=torch.long)
    want = module(hidden, None, positions, None, 0)[0][0, 0]
    entries, _ = sparsekern.compress_kv(
        module.kv_proj(hidden)[0],
        module.gate_proj(hidden)[0],
        module.position_bias,
        ratio=module.compress_rate,
        overlap=overlap,
        norm_weight=module.kv_norm.weight,
        eps=c.rms_norm_eps,
    )
    parameters = c.rope_parameters["compress"]
    width = 2 * module.rotary_emb.compress_inv_freq.shape[0]
    got = sparsekern.rope(
        entries,
        torch.arange(len(entries)) * module.compress_rate,
        theta=parameters["rope_theta"],
        rotary_dim=width,
        layout="interleaved",
        offset=c.head_dim - width,
        yarn={name: parameters.get(name, YARN[name]) for name in YARN} if "factor" in parameters else None,
    )
    assert_close(got, want, 4e-6)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"ratio": 0}, "ratio is 0, expected at least 1"),
        ({"ratio": -1}, "ratio is -1, expected at least 1"),
        ({"state": torch.zeros(3, 148)}, "state has 3 rows, expected 4 to 7"),
        ({"state": torch.zeros(8, 148)}, "state has 8 rows, expected 4 to 7"),
        ({"state": torch.zeros(5, 147)}, "state has shape"),
        ({"eps": -1.0}, "eps is -1"),
        ({"overlap": False}, "kv has shape (11, 74)"),
    ],
)
def test_bad_values_of_compress_kv(change: dict[str, Any], says: str) -> None:
    x = {**inputs(COMPRESS, COMPRESS.test_dims[0]), **change}
    with pytest.raises(ShapeError) as caught:
        run(COMPRESS, x)
    assert str(caught.value).startswith("compress_kv: ") and says in str(caught.value)


# --- from projected keys to records -------------------------------------------------------------------------

WRITE = OPS["norm_rope_kv_write"]
ROTATION = ("theta", "rotary_dim", "layout", "offset")
RECORD = ("format", "page_size", "scale_rounding", "amax_floor")


def one_after_the_other(x: dict[str, Any]) -> Tensor:
    """The pool after rms_norm, rope and kv_write."""
    y, pool, weight = x["values"].clone(), x["pool"].clone(), x.get("norm_weight")
    if weight is not None:
        y[:, : len(weight)] = sparsekern.rms_norm(y[:, : len(weight)].contiguous(), weight, eps=x["eps"])
    rotation = {name: x[name] for name in ROTATION}
    y = sparsekern.rope(y, x["positions"], **rotation, yarn=x.get("yarn"))
    sparsekern.kv_write(pool, x["slots"], y, **{name: x[name] for name in RECORD if name in x})
    return pool


@pytest.mark.parametrize("isa", EACH_ISA)
@pytest.mark.parametrize("dims", WRITE.test_dims, ids=str)
def test_written_in_one_pass_as_in_three(dims: Dims, isa: str) -> None:
    """Normal values, and every kind of bad one; slots named twice; more tokens than one thread takes."""
    x = inputs(WRITE, {**dims, "T": 7 * dims["T"]})
    shape, dtype = x["values"].shape, x["values"].dtype
    values = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    for place, bad in enumerate((torch.nan, torch.inf, -torch.inf, 3e38, 1e-40, 0.0, -0.0)):
        values[place::11, place::29] = bad
    for threads in (1, 3):
        with sparsekern.config.using(isa=isa, threads=threads):
            for case in (x, {**x, "values": values}):
                assert_same_bits(*outcome(WRITE, case), one_after_the_other(case))


def test_skipped_tokens_change_nothing() -> None:
    x = inputs(WRITE, WRITE.test_dims[2])
    before = x["pool"].clone()
    x["slots"].fill_(-1)
    x["values"].fill_(torch.nan)
    assert_same_bits(*outcome(WRITE, x), before)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"norm_weight": torch.ones(513)},
            "norm_weight has 513 channels, expected at most the 512 of values",
        ),
        ({"values": torch.zeros(13, 511)}, "values has rows of 511, expected 512 for format 'mla584'"),
        (
            {"rotary_dim": 514},
            "rotary_dim is 514, expected an even number from 2 to the 512 channels of values",
        ),
        ({"offset": 449}, "offset is 449, expected 0 to 448"),
        ({"eps": float("nan")}, "eps is nan"),
        ({"amax_floor": -1.0}, "amax_floor is -1"),
        ({"slots": torch.full((13,), 20)}, "slots[0] is 20, expected less than 20"),
        ({"positions": torch.full((13,), 2**31)}, "positions[0] is 2147483648"),
        ({"positions": torch.zeros(12, dtype=torch.int32)}, "positions has shape (12,)"),
        ({"yarn": {**YARN, "factor": 0}}, "yarn has 0"),
    ],
)
def test_bad_values_write_nothing(change: dict[str, Any], says: str) -> None:
    x = {**inputs(WRITE, WRITE.test_dims[2]), **change}
    before = x["pool"].clone()
    with pytest.raises(ShapeError) as caught:
        WRITE.fn(**x)
    assert str(caught.value).startswith("norm_rope_kv_write: ") and says in str(caught.value)
    assert_same_bits(x["pool"], before)

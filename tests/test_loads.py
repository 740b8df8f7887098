"""Generated routing and load are what they are called; traces of both formats are read."""

import json
from pathlib import Path

import pytest
import torch

from sparsekern.cli import load

loads = load("sparsekern._bench.loads")


def seed(n: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(n)


@pytest.mark.parametrize("name", loads.ROUTINGS)
@pytest.mark.parametrize(("tokens", "experts", "top_k"), [(0, 8, 2), (1, 16, 8), (64, 256, 8), (33, 6, 6)])
def test_a_token_goes_to_different_experts(name: str, tokens: int, experts: int, top_k: int) -> None:
    ids = loads.ROUTINGS[name](tokens, experts, top_k, seed())
    assert ids.shape == (tokens, top_k)
    assert ids.dtype == torch.int32
    assert all(len(set(row)) == top_k and min(row) >= 0 and max(row) < experts for row in ids.tolist())
    assert torch.equal(ids, loads.ROUTINGS[name](tokens, experts, top_k, seed()))
    if tokens > 1 and experts > top_k and name != "adversarial":
        assert not torch.equal(ids, loads.ROUTINGS[name](tokens, experts, top_k, seed(1)))


def test_routing_is_as_even_as_its_name() -> None:
    ids = {name: f(2048, 256, 8, seed()) for name, f in loads.ROUTINGS.items()}
    load_of = {name: loads.imbalance(i, 256) for name, i in ids.items()}
    assert load_of["balanced"] < 1.5
    assert 4 < load_of["skewed"] < 6.5
    assert load_of["adversarial"] == 32
    pairs = zip(ids["skewed"][:-1].tolist(), ids["skewed"][1:].tolist(), strict=True)
    shared = sum(len(set(a) & set(b)) for a, b in pairs) / (2047 * 8)
    assert 0.2 < shared < 0.3


def test_azure_traces(tmp_path: Path) -> None:
    file = tmp_path / "azure.csv"
    file.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.1805900,396,109\n"
    )
    first, second = loads.read_requests(file)
    assert first == loads.Request(0.0, 374, 44)
    assert (second.arrival, second.prompt) == (pytest.approx(3.5), 396)
    file.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\nnever,1,2\n")
    with pytest.raises(ValueError, match=r"azure\.csv:2 is no row of an Azure trace"):
        loads.read_requests(file)


def test_mooncake_traces(tmp_path: Path) -> None:
    file = tmp_path / "mooncake.jsonl"
    rows = [{"timestamp": 1500, "input_length": 1024, "output_length": 3, "hash_ids": [7, 8]}]
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert loads.read_requests(file) == [loads.Request(1.5, 1024, 3, (7, 8))]
    file.write_text('{"timestamp": 1}\n')
    with pytest.raises(ValueError, match=r"mooncake\.jsonl:1 is no row of a Mooncake trace"):
        loads.read_requests(file)


def test_arrivals() -> None:
    lengths = [loads.Request(0.0, 10, 1), loads.Request(0.0, 20, 2)]
    drawn = [r for r, _ in zip(loads.poisson(100.0, lengths, 1), range(2000), strict=False)]
    assert drawn[-1].arrival == pytest.approx(20, rel=0.1)
    assert {r.prompt for r in drawn} == {10, 20}
    assert drawn[:5] == [r for r, _ in zip(loads.poisson(100.0, lengths, 1), range(5), strict=False)]


def test_steps_of_a_server() -> None:
    requests = [loads.Request(0.0, 10, 3), loads.Request(0.0, 5, 2), loads.Request(100.0, 4, 1)]
    sizes = loads.step_sizes(requests, budget=8, seconds=1.0)
    assert sizes == [8, 7, 2, 2, 1, 4, 1]
    assert sum(sizes) == sum(r.prompt + r.output for r in requests)
    assert loads.step_sizes([], budget=8, seconds=1.0) == []

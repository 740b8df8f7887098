"""Where tokens go and when requests come: seeded generators, and readers of public traces.

No routing log of a DeepSeek model is public, so routing is synthetic, and called so wherever it is used.
"""

from __future__ import annotations

import csv
import dataclasses
import datetime
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

EXPONENT = 0.4  # popularity of the n-th most popular expert: n ** -EXPONENT
TOKENS = 512  # of a block, in the Mooncake traces
SHARED = 0.22  # of a token's experts, drawn from the token before it (some more are by chance)

# --- routing: ids [T, top_k], the experts of a token all different
# -------------------------------------------


def balanced(tokens: int, experts: int, top_k: int, rng: torch.Generator) -> Tensor:
    """Every expert alike. With a few hundred tokens the largest load is about 1.4 of the mean."""
    return torch.rand(tokens, experts, generator=rng).topk(top_k, -1).indices.int()


def skewed(tokens: int, experts: int, top_k: int, rng: torch.Generator) -> Tensor:
    """A few experts popular, and neighbours alike: they share about a quarter of their experts.

    Of 256 experts the most popular one has about 5 times the mean load; where few are chosen from, less: no
    expert can have a token twice.
    """
    popularity = -EXPONENT * (torch.randperm(experts, generator=rng) + 1.0).log()
    luck = -(
        -torch.rand(tokens, experts, generator=rng).clamp_min(1e-12).log()
    ).log()  # Gumbel: no expert twice
    ids = (popularity + luck).topk(top_k, -1).indices
    repeated = torch.rand(tokens, top_k, generator=rng) < SHARED
    for t in range(1, tokens):
        kept = ids[t - 1][repeated[t]]
        others = ids[t][~torch.isin(ids[t], kept)]
        ids[t] = torch.cat([kept, others])[:top_k]
    return ids.int()


def adversarial(tokens: int, experts: int, top_k: int, rng: torch.Generator) -> Tensor:
    """All tokens to the same experts."""
    return torch.randperm(experts, generator=rng)[:top_k].int().expand(tokens, -1).contiguous()


ROUTINGS: dict[str, Callable[[int, int, int, torch.Generator], Tensor]] = {
    "balanced": balanced,
    "skewed": skewed,
    "adversarial": adversarial,
}


def imbalance(ids: Tensor, experts: int) -> float:
    """The largest expert's load over the mean."""
    load = torch.bincount(ids.reshape(-1).long(), minlength=experts).double()
    return float(load.max() / load.mean().clamp_min(1e-9))


# --- requests ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """One request of a trace."""

    arrival: float  # seconds since the first
    prompt: int  # tokens
    output: int
    blocks: tuple[int, ...] = ()  # ids of the prompt's 512-token blocks: equal ids are shared prefixes


def azure(path: Path) -> list[Request]:
    """An Azure LLM inference trace: TIMESTAMP, ContextTokens, GeneratedTokens.

    Raises:
        ValueError: naming the line that is none.
    """
    with path.open(newline="") as f:
        rows = list(csv.DictReader(f))

    def request(row: Mapping[str, Any]) -> Request:
        when = datetime.datetime.fromisoformat(
            row["TIMESTAMP"].strip()[:26]
        )  # microseconds: more is not read
        return Request(when.timestamp(), int(row["ContextTokens"]), int(row["GeneratedTokens"]))

    found = [_parsed(path, "an Azure", line, request, row) for line, row in enumerate(rows, start=2)]
    return [dataclasses.replace(r, arrival=r.arrival - found[0].arrival) for r in found]


def mooncake(path: Path) -> list[Request]:
    """A Mooncake trace: JSON lines with timestamp in ms, input_length, output_length, hash_ids.

    Raises:
        ValueError: naming the line that is none.
    """

    def request(text: str) -> Request:
        row = json.loads(text)
        lengths = int(row["input_length"]), int(row["output_length"])
        return Request(float(row["timestamp"]) / 1000, *lengths, tuple(map(int, row.get("hash_ids", ()))))

    lines = path.read_text().splitlines()
    return [_parsed(path, "a Mooncake", line, request, text) for line, text in enumerate(lines, start=1)]


def _parsed(path: Path, kind: str, line: int, read: Callable[[Any], Request], row: Any) -> Request:
    try:
        return read(row)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}:{line} is no row of {kind} trace: {error!r}") from error


def read_requests(path: Path) -> list[Request]:
    """A trace of either kind, by its ending."""
    return azure(path) if path.suffix == ".csv" else mooncake(path)


def conversations(count: int, seed: int = 0) -> list[Request]:
    """Made-up requests like those of the Mooncake conversation trace.

    A few system prompts, sessions of a few turns, each turn with all blocks of those before; ids count up.
    """
    rng, now, fresh = random.Random(seed), 0.0, 0
    prompts = [tuple(range(fresh, fresh := fresh + rng.randint(1, 4))) for _ in range(8)]
    open_: list[tuple[int, ...]] = []
    requests = []
    for _ in range(count):
        now += rng.expovariate(3.4)
        if open_ and rng.random() < 0.4:  # a late turn is rarer than an early one
            begun = open_.pop(-1 - min(int(rng.expovariate(1 / 300)), len(open_) - 1))
        else:
            begun = rng.choice(prompts)
        new = 1 + int(rng.lognormvariate(2.2, 1.0))
        blocks = begun + tuple(range(fresh, fresh := fresh + min(new, 200)))
        open_ = [*open_[-4000:], blocks]
        requests.append(Request(now, TOKENS * len(blocks), rng.randint(1, 800), blocks))
    return requests


def poisson(rate: float, requests: Sequence[Request], seed: int) -> Iterator[Request]:
    """Lengths drawn from a trace, arrivals at `rate` a second; never ends."""
    rng, now = random.Random(seed), 0.0
    while True:
        now += rng.expovariate(rate)
        drawn = rng.choice(requests)
        yield Request(now, drawn.prompt, drawn.output, drawn.blocks)


def step_sizes(requests: Sequence[Request], *, budget: int, seconds: float) -> list[int]:
    """Tokens of each step of a server that takes `seconds` a step and at most `budget` tokens in one.

    Running requests decode one token each, what is left of the budget goes to prompts in the order they came
    (chunked prefill). What a benchmark needs of it: how many tokens an expert layer really sees at once.
    """
    waiting = sorted(requests, key=lambda r: r.arrival)
    prompts: list[list[int]] = []  # [tokens left of the prompt, tokens to generate]
    running: list[int] = []
    sizes, now, i = [], 0.0, 0
    while i < len(waiting) or prompts or running:
        if not prompts and not running:
            now = max(now, waiting[i].arrival)
        while i < len(waiting) and waiting[i].arrival <= now:
            prompts.append([waiting[i].prompt, waiting[i].output])
            i += 1
        decoding = min(len(running), budget)
        running = [left - (j < decoding) for j, left in enumerate(running)]
        running = [left for left in running[decoding:] + running[:decoding] if left > 0]
        room = budget - decoding
        for entry in prompts:
            taken = min(entry[0], room)
            entry[0] -= taken
            room -= taken
        running += [output for left, output in prompts if left == 0 and output > 0]
        prompts = [entry for entry in prompts if entry[0] > 0]
        sizes.append(budget - room)
        now += seconds
    return sizes

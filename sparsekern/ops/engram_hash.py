"""Where n-grams of tokens are remembered."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsekern.backend import launch
from sparsekern.schema import Arg, Dims, Op, Out


def engram_hash(
    ngram_ids: Tensor, multipliers: Tensor, primes: Tensor, offsets: Tensor, *, out: Tensor | None = None
) -> Tensor:
    """Hash the n-grams that end at each token, of every length from 2 to N, to rows of a table.

        h[n] = ids[0] m[0] xor ... xor ids[n - 1] m[n - 1]
        rows[l, t, (n - 2) H + j] = h[n] mod primes[l, n - 2, j] + offsets[l, (n - 2) H + j]

    ids[k] is the token k positions back, and m the multipliers of layer l. Products wrap around as 64-bit
    integers do, and the remainder is never negative. For the rows of a concatenated table, `offsets` count
    the entries before each part. `EngramTable` has the numbers of a model.
    """
    result: Tensor = launch(OP, ngram_ids, multipliers, primes, offsets, out)
    return result


def reference(ngram_ids: Tensor, multipliers: Tensor, primes: Tensor, offsets: Tensor) -> Tensor:
    """In int64, whose products wrap around."""
    products = ngram_ids.long() * multipliers[:, None]  # [L, T, N]
    h, columns = products[..., 0], []
    for n in range(1, ngram_ids.shape[1]):
        h = h ^ products[..., n]
        columns.append(h[..., None] % primes[:, n - 1, None].long())
    if not columns:
        return offsets.new_empty(len(multipliers), len(ngram_ids), 0).int()
    return (torch.cat(columns, -1) + offsets[:, None]).int()


def inputs(dims: Dims, rng: torch.Generator) -> dict[str, Any]:
    """Random ids, also negative ones; multipliers of any size; divisors small, large and 1."""
    t, n, layers, heads = dims["T"], dims["N"], dims["L"], dims["H"]
    primes = torch.randint(1, 2 ** dims.get("bits", 24), (layers, n - 1, heads), generator=rng)
    if primes.numel() > 1:
        primes.view(-1)[0], primes.view(-1)[1] = 1, 2
    parts = primes.flatten(1)
    offsets = parts.cumsum(1) - parts if dims.get("bits", 24) < 30 else torch.zeros_like(parts)
    return {
        "ngram_ids": torch.randint(-(2**31) + 1, 2**31 - 1, (t, n), generator=rng).int(),
        "multipliers": torch.randint(-(2**62), 2**62, (layers, n), generator=rng) * 2 + 1,
        "primes": primes.int(),
        "offsets": offsets.int(),
    }


OP = Op(
    fn=engram_hash,
    family="engram",
    args=(
        Arg("ngram_ids", "T N", "i32", "the token, and those before it, nearest first"),
        Arg("multipliers", "L N", "i64", "of each layer", "dense"),
        Arg("primes", "L N-1 H", "i32", "entries of each part of a layer's table", "dense"),
        Arg("offsets", "L (N-1)*H", "i32", "where the parts begin", "dense"),
    ),
    outs=(Out("rows", "L T (N-1)*H", "i32", "of each layer's table"),),
    reference=reference,
    inputs=inputs,
    test_dims=(
        {"T": 33, "N": 3, "L": 2, "H": 8},
        {"T": 5, "N": 4, "L": 1, "H": 3, "bits": 31},
        {"T": 7, "N": 2, "L": 3, "H": 1, "bits": 3},
        {"T": 4, "N": 1, "L": 2, "H": 5},
        {"T": 0, "N": 3, "L": 1, "H": 8},
    ),
    bench_dims=({"T": 1, "N": 4, "L": 2, "H": 8}, {"T": 4096, "N": 4, "L": 2, "H": 8}),
    spoil=lambda x: {**x, "multipliers": x["multipliers"] + 2},
    source="TileKernels engram_hash_ref",
    bytes=lambda d: 4.0 * d["T"] * (d["N"] + d["L"] * (d["N"] - 1) * d["H"]),
)

"""Which rows of a table a token takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sparsekern.ops.engram_hash import engram_hash


class EngramIndex(NamedTuple):
    """From tokens to rows of one table per layer. All tensors are plain and may be saved as such."""

    token_map: Tensor
    """int32 [vocabulary]: the compressed number of each token."""
    multipliers: Tensor
    """int64 [L, N]."""
    primes: Tensor
    """int32 [L, N - 1, heads]: entries of each part of a layer's table, primes that occur once."""
    offsets: Tensor
    """int32 [L, (N - 1) * heads]: where each part begins."""
    pad: int
    """The compressed number that stands for a token that is not there."""

    @classmethod
    def build(
        cls,
        token_map: Tensor,
        *,
        layers: Sequence[int],
        sizes: Sequence[int],
        heads: int,
        pad: int,
        seed: int = 0,
    ) -> EngramIndex:
        """Make the numbers of a model from its configuration.

        Args:
            token_map: int32 [vocabulary], as `compress_tokens` makes it.
            layers: the layers that have a memory; each gets multipliers and sizes of its own.
            sizes: about how many entries a head has for n-grams of length 2, 3, ...: primes from there on.
            heads: parts of the table for each length.
            pad: the token that stands before the beginning, a number of the vocabulary.
            seed: of the multipliers.

        Raises:
            ValueError: a number that no index can have.
        """
        from numpy.random import default_rng  # its generator is part of what a model was trained with

        if not layers or not sizes or heads < 1 or min(sizes) < 2:
            raise ValueError(
                f"EngramIndex: {len(layers)} layers, sizes {tuple(sizes)} and {heads} heads, expected at "
                "least one layer, one size, one head, and sizes of 2 and more"
            )
        if not 0 <= pad < len(token_map):
            raise ValueError(f"EngramIndex: pad is {pad}, expected a token below {len(token_map)}")
        longest, numbers = len(sizes) + 1, int(token_map.max()) + 1
        bound = max(1, (2**63 - 1) // numbers // 2)  # so that products stay below 2^63
        odd = [default_rng(seed + 10007 * layer).integers(0, bound, longest) * 2 + 1 for layer in layers]
        found, used = [], set[int]()
        for _ in layers:
            for size in sizes:
                primes = (p for p in _primes_from(size) if p not in used)
                own = [next(primes) for _ in range(heads)]
                used.update(own)
                found += own
        primes_ = torch.tensor(found).view(len(layers), len(sizes), heads)
        parts = primes_.flatten(1)
        if int(parts.sum(1).max()) > 2**31:
            raise ValueError(
                f"EngramIndex: {int(parts.sum(1).max())} rows in a layer, expected at most {2**31}"
            )
        return cls(
            token_map.int(),
            torch.stack([torch.from_numpy(m) for m in odd]),
            primes_.int(),
            (parts.cumsum(1) - parts).int(),
            int(token_map[pad]),
        )

    @property
    def entries(self) -> list[int]:
        """Rows of each layer's table."""
        return [int(n) for n in self.primes.flatten(1).sum(1, dtype=torch.int64)]

    def ngrams(self, token_ids: Tensor, dead: Tensor | None = None) -> Tensor:
        """The compressed tokens 0, 1, ... N - 1 positions back from each token of one sequence: int32 [T, N].

        Positions before the beginning hold `pad`. So does every position from a `dead` one (bool [T]: images,
        say) backwards: what lies behind is not looked at. Going on with a sequence takes its last N - 1
        tokens in front of the new ones, whose rows alone are new.

        Raises:
            ValueError: a token is none of the vocabulary.
        """
        if len(token_ids) and not 0 <= int(token_ids.min()) <= int(token_ids.max()) < len(self.token_map):
            raise ValueError(f"EngramIndex: token_ids are not all below {len(self.token_map)}, or negative")
        ids = self.token_map[token_ids.long()]
        blocked = torch.zeros(len(ids), dtype=torch.bool)
        columns = []
        for k in range(self.multipliers.shape[1]):
            back, gone = ids.roll(k), blocked.new_zeros(len(ids)) if dead is None else dead.roll(k)
            gone[:k] = True
            blocked = blocked | gone
            columns.append(back.masked_fill(blocked, self.pad))
        return torch.stack(columns, 1)

    def rows(self, token_ids: Tensor, dead: Tensor | None = None) -> Tensor:
        """The rows that the tokens of one sequence take, in each layer: int32 [L, T, (N - 1) * heads]."""
        return engram_hash(self.ngrams(token_ids, dead), self.multipliers, self.primes, self.offsets)


def _primes_from(n: int) -> Iterator[int]:
    """The primes from n on, ascending."""
    while True:
        if _is_prime(n):
            yield n
        n += 1


def _is_prime(n: int) -> bool:
    """Miller and Rabin's test, which these bases make exact below 2^64."""
    bases = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)
    if n < 2 or any(n % p == 0 for p in bases):
        return n in bases
    twos = (n - 1 & 1 - n).bit_length() - 1
    for base in bases:
        x = pow(base, (n - 1) >> twos, n)
        if x in (1, n - 1):
            continue
        for _ in range(twos - 1):
            x = x * x % n
            if x == n - 1:
                break
        else:
            return False
    return True

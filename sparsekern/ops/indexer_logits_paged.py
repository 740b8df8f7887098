"""Scores of the lightning indexer over a paged cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsekern.backend import launch
from sparsekern.ops._indexer import KEY_BYTES
from sparsekern.ops._indexer_pages import ARGS, paged_inputs, paged_scores, reach, seen
from sparsekern.schema import Dims, Op, Out


def indexer_logits_paged(
    q: Tensor,
    cache: Tensor,
    weights: Tensor,
    context_lens: Tensor,
    block_table: Tensor,
    *,
    max_context_len: int | None = None,
    q_scale: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Score the keys of sequences that lie in pages.

    out[b*n + t, j] = score of key j of sequence b for its query t, as `indexer_logits` has it

    Key j of sequence b lies at place j % page_size of page block_table[b, j / page_size]. Query t sees the
    first context_lens[b, t] keys; with one length a sequence, the last of its n queries sees so many, and
    each before it one less. Scores of other keys are -inf, up to `max_context_len` columns (None: as many
    as the table has room for). What lies past a context is not read: neither entries of the table, nor
    places of a page.

    A cache of bytes holds FP8 or FP4 keys, whichever q is: of every page the keys, then the scales, a
    float32 for each key or four UE8M0 bytes (`kv_write`, formats index132 and index68). Scores are the same
    bits as those of the same keys without pages.
    """
    if max_context_len is None:
        max_context_len = reach(cache, block_table)
    result: Tensor = launch(OP, q, cache, weights, context_lens, block_table, q_scale, max_context_len, out)
    return result


def reference(
    q: Tensor,
    cache: Tensor,
    weights: Tensor,
    context_lens: Tensor,
    block_table: Tensor,
    *,
    max_context_len: int | None = None,
    q_scale: Tensor | None = None,
) -> Tensor:
    """Row by row, in float64, rounded once."""
    columns = cache.shape[1] * block_table.shape[1] if max_context_len is None else max_context_len
    lens = seen(context_lens, q.shape[1])
    return paged_scores(q, cache, weights, lens, block_table, q_scale, columns).float()


def inputs(dims: Dims, rng: torch.Generator) -> dict[str, Any]:
    """Sequences of up to N keys."""
    x = paged_inputs(dims, rng)
    return {**x, "max_context_len": dims["columns"]} if "columns" in dims else x


OP = Op(
    fn=indexer_logits_paged,
    family="indexer",
    args=ARGS,
    outs=(Out("out", "B*n max_context_len", "f32", "scores"),),
    reference=reference,
    inputs=inputs,
    test_dims=(
        {"B": 3, "n": 2, "N": 150, "page": 64, "H": 64, "D": 128, "kind": 2},
        {"B": 4, "n": 1, "N": 200, "page": 32, "H": 8, "D": 64, "kind": 3, "columns": 201},
        {"B": 2, "n": 3, "N": 90, "page": 7, "H": 16, "D": 128, "kind": 3, "lens_1d": 1},
        {"B": 5, "n": 2, "N": 33, "page": 1, "H": 3, "D": 46, "kind": 2, "lens_1d": 1, "columns": 30},
        {"B": 3, "n": 6, "N": 140, "page": 256, "H": 32, "D": 32, "kind": 2},
        {"B": 2, "n": 2, "N": 70, "page": 16, "H": 5, "D": 24, "kind": 0},
        {"B": 3, "n": 1, "N": 70, "page": 64, "H": 16, "D": 64, "kind": 1},
        {"B": 2, "n": 2, "N": 0, "page": 64, "H": 8, "D": 32, "kind": 2},
        {"B": 0, "n": 1, "N": 9, "page": 64, "H": 8, "D": 32, "kind": 2},
    ),
    bench_dims=(
        {"B": 1, "n": 1, "N": 131072, "page": 64, "H": 64, "D": 128, "kind": 2},
        {"B": 8, "n": 2, "N": 16384, "page": 64, "H": 64, "D": 128, "kind": 3},
    ),
    spoil=lambda x: {**x, "weights": x["weights"].roll(1, -1)},
    source="DeepSeek-V3.2-Exp technical report, section 2.1; DeepGEMM 54e2261 fp8_paged_mqa_logits",
    max_err=2**-16,
    flops=lambda d: 2.0 * d["B"] * d["n"] * d["N"] * d["H"] * (d["D"] + 1),
    bytes=lambda d: d["B"] * d["N"] * (d["D"] * KEY_BYTES[d["kind"]] + 4.0 + 4.0 * d["n"]),
)

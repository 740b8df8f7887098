"""Which tokens count as one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def compress_tokenizer(tokenizer: Any) -> Tensor:
    """The map of `compress_tokens` for a tokenizer of transformers."""
    ids = range(len(tokenizer))
    texts = (tokenizer.decode([i], skip_special_tokens=False) for i in ids)
    return compress_tokens(texts, (tokenizer.convert_ids_to_tokens(i) for i in ids))


def compress_tokens(texts: Iterable[str], pieces: Iterable[str]) -> Tensor:
    """Number the tokens so that those which read alike have one number: int32 [vocabulary].

    `texts` are the tokens decoded one by one, `pieces` their raw names. Upper and lower case, accents, widths
    and amounts of white space do not matter; a token that is no text of its own (part of a character) keeps
    its name, and one of which nothing is left its text. Numbers are given in order of first appearance.

    The `tokenizers` library normalises, as it did when models were trained: Python's Unicode tables are newer
    in every version, and one token more or less that reads alike changes the numbers of all that follow.
    """
    from tokenizers import Regex, normalizers

    lone_space = "\ue000"  # kept from being stripped
    plain = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.NFD(),
            normalizers.StripAccents(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"[ \t\r\n]+"), " "),
            normalizers.Replace(Regex(r"^ $"), lone_space),
            normalizers.Strip(),
            normalizers.Replace(lone_space, " "),
        ]
    )
    numbers: dict[str, int] = {}
    pairs = zip(texts, pieces, strict=True)
    keys = (piece if "\ufffd" in text else plain.normalize_str(text) or text for text, piece in pairs)
    return torch.tensor([numbers.setdefault(key, len(numbers)) for key in keys], dtype=torch.int32)

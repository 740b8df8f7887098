"""Shapes as text: "E N/128 2*I" says how the sizes of an op's tensors hang together."""

from __future__ import annotations

import ast
import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_OPERATORS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}
Rpn = tuple[str | int, ...]  # reverse polish: symbols, integers, operators; "/" rounds up


@functools.cache
def _parse(term: str) -> Rpn:
    def walk(node: ast.expr) -> Rpn:
        if isinstance(node, ast.BinOp):
            return (*walk(node.left), *walk(node.right), _OPERATORS[type(node.op)])
        if isinstance(node, ast.Name):
            return (node.id,)
        assert isinstance(node, ast.Constant) and isinstance(node.value, int), term
        return (node.value,)

    return walk(ast.parse(term, mode="eval").body)


def evaluate(rpn: Rpn, dims: Mapping[str, Any]) -> Any:
    """The value of a shape term; works on symbolic sizes too.

    Raises:
        KeyError: a symbol has no value yet.
    """
    stack: list[Any] = []
    for item in rpn:
        if isinstance(item, str) and item in "+-*/":
            b, a = stack.pop(), stack.pop()
            stack.append(
                a + b if item == "+" else a - b if item == "-" else a * b if item == "*" else -(-a // b)
            )
        else:
            stack.append(dims[item] if isinstance(item, str) else item)
    return stack[0]


def block_size(size: int, blocks: int) -> int | None:
    """The power of two g with ceil(size / g) == blocks; None if there is none."""
    g = 1
    while -(-size // g) > max(blocks, 1):
        g *= 2
    return g if -(-size // g) == blocks or size == 0 else None


@dataclass(frozen=True, slots=True)
class Shape:
    """Terms such as "E N/128 2*I"; a leading "..." stands for any leading dimensions."""

    text: str
    batched: bool = field(init=False)
    terms: tuple[Rpn, ...] = field(init=False)

    def __post_init__(self) -> None:
        words = self.text.split()
        object.__setattr__(self, "batched", words[:1] == ["..."])
        object.__setattr__(self, "terms", tuple(map(_parse, words[self.batched :])))

    def __str__(self) -> str:
        return "(" + ", ".join(self.text.split()) + ")"


def is_rows(shape: Sequence[int], stride: Sequence[int]) -> bool:
    """Whether the last dimension is contiguous and one stride walks all leading ones."""
    if shape[-1] > 1 and stride[-1] != 1:
        return False
    leading = [(n, s) for n, s in zip(shape[:-1], stride[:-1], strict=True) if n > 1]
    return all(s == inner * n for (_, s), (n, inner) in itertools.pairwise(leading))

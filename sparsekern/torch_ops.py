"""`torch.ops.sparsekern.<op>`: schemas, fake kernels and out variants, all made from the catalogue.

Registered with `Library.define` and `impl` (1.5 us a call; `torch.library.custom_op` costs 7.4).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparsekern.backend import check_gradients, run_plain
from sparsekern.schema import Op, Option

_LIBRARY = torch.library.Library("sparsekern", "DEF")
_TYPES = {"int": "SymInt", "float": "float", "bool": "bool", "enum": "str", "dtype": "ScalarType"}


def register(op: Op) -> None:
    """Register one op, and its out variant if it has results."""
    arguments = ", ".join([*(_argument(op, i) for i in range(len(op.args))), *map(_option, op.options)])
    results = "Tensor" if len(op.outs) == 1 else "(" + ", ".join("Tensor" for _ in op.outs) + ")"
    into = ", ".join(f"Tensor({chr(97 + i)}!) out_{o.name}" for i, o in enumerate(op.outs))
    _LIBRARY.define(f"{op.name}({arguments}) -> {results}", tags=(torch.Tag.pt2_compliant_tag,))
    if op.outs:
        _LIBRARY.define(f"{op.name}.out({arguments}, *, {into}) -> ()", tags=(torch.Tag.pt2_compliant_tag,))
    inputs = len(op.args) + len(op.options)

    def run(*values: Any) -> Any:
        check_gradients(op, values)
        with torch.no_grad():
            result = run_plain(op, (*values, None))
        return result if len(op.outs) < 2 else tuple(torch.empty(0) if t is None else t for t in result)

    def run_out(*values: Any, **out: Tensor) -> None:
        check_gradients(op, values)
        results = tuple(out.values()) if out else values[inputs:]
        plain = tuple(t.as_subclass(Tensor) for t in results)
        with torch.no_grad():
            run_plain(op, (*values[:inputs], plain[0] if len(op.outs) == 1 else plain))

    def bound(values: Sequence[Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        check_gradients(op, values)
        tensors = dict(zip((a.name for a in op.args), values, strict=False))
        options = dict(zip((o.name for o in op.options), values[len(op.args) :], strict=True))
        return tensors, options, _Sizes(op.bind(tensors, options))

    def fake(*values: Any) -> Any:
        tensors, options, dims = bound(values)
        if not op.outs:
            return None
        device = values[0].device
        made = tuple(
            torch.empty(
                (0,) if spec is None else spec[0], dtype=None if spec is None else spec[1], device=device
            )
            for spec in op.result_specs(tensors, options, dims)
        )
        return made[0] if len(made) == 1 else made

    def fake_out(*values: Any, **out: Tensor) -> None:
        bound(values[:inputs])  # `out` is checked when there is memory

    for device in ("CPU", "CUDA"):
        _LIBRARY.impl(op.name, run, device)
        if op.outs:
            _LIBRARY.impl(f"{op.name}.out", run_out, device)
    torch.library.register_fake(f"sparsekern::{op.name}", fake, lib=_LIBRARY)
    if op.outs:
        torch.library.register_fake(f"sparsekern::{op.name}.out", fake_out, lib=_LIBRARY)


class _Sizes(dict[str, Any]):
    """Sizes, of which those that the kernel finds out are unbacked, and made where a result needs them."""

    def __missing__(self, symbol: str) -> Any:
        self[symbol] = torch.library.get_ctx().new_dynamic_size()
        return self[symbol]


def _argument(op: Op, i: int) -> str:
    a = op.args[i]
    written = f"({chr(97 + i)}!)" if a.written else ""
    return f"Tensor{written}{'?' if a.name in op.optional else ''} {a.name}"


def _option(o: Option) -> str:
    kind = f"SymInt[{o.length}]" if o.kind == "ints" else _TYPES[o.kind]
    return f"{kind}{'?' if o.nullable else ''} {o.name}"

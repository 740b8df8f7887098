"""Every op in plain PyTorch: `sparsekern.reference.rms_norm(...)`, with the arguments of the op but `out`.

These are the functions that the kernels are tested against: slow, readable, of other algorithms than theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sparsekern.catalogue import OPS


def __getattr__(name: str) -> Callable[..., Any]:
    if name not in OPS:
        raise AttributeError(f"no op is called {name!r}; sparsekern.ops() lists them")
    return OPS[name].reference


def __dir__() -> list[str]:
    return list(OPS)

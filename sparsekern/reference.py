"""Every op in plain PyTorch: `sparsekern.reference.rms_norm` takes what `sparsekern.rms_norm` takes, but `out`.

These are the functions that the kernels are tested against: slow, readable, independent of the kernels' algorithms.
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

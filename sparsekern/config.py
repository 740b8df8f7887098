"""Process-wide settings: `sparsekern.config.threads`, `.isa`, `.check_indices`, `.cache_dir`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sparsekern import _C

ISAS = ("scalar", "avx2", "avx512", "avx512bf16")


class Config:
    """The settings. Every one can be read and set; `using` sets some for a block."""

    def __init__(self) -> None:
        self.check_indices = False
        wanted = os.environ.get("SPARSEKERN_ISA")
        if wanted:
            if wanted not in ISAS:
                raise ValueError(f"SPARSEKERN_ISA is {wanted!r}, expected one of {', '.join(ISAS)}")
            self.isa = wanted

    @property
    def threads(self) -> int:
        """Threads of a parallel loop. Follows `torch.set_num_threads` until set; 0 makes it follow again."""
        return _C.threads()

    @threads.setter
    def threads(self, n: int) -> None:
        if n < 0:
            raise ValueError(f"config.threads is {n}, expected 0 or more")
        _C.limit_threads(n)

    @property
    def isa(self) -> str:
        """The instruction set in use: the best that this processor has, or the cap set here."""
        return _C.isa()

    @isa.setter
    def isa(self, highest: str | None) -> None:
        if highest is not None and highest not in ISAS:
            raise ValueError(
                f"config.isa is {highest!r}, expected one of {', '.join(ISAS)}, or None for the best"
            )
        _C.cap_isa(len(ISAS) - 1 if highest is None else ISAS.index(highest))

    @property
    def deterministic(self) -> bool:
        """Always true: no op has a faster mode that is not."""
        return True

    @property
    def cache_dir(self) -> Path:
        """The only folder the library ever writes to on its own (tuning records)."""
        base = os.environ.get("SPARSEKERN_CACHE_DIR")
        return (
            Path(base)
            if base
            else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sparsekern"
        )

    @contextlib.contextmanager
    def using(self, **settings: Any) -> Iterator[None]:
        """Set some settings inside a block: `with config.using(threads=1, isa="avx2"):`."""
        before = {name: getattr(self, name) for name in settings}
        before.update({"threads": 0} if "threads" in settings else {})
        try:
            for name, value in settings.items():
                setattr(self, name, value)
            yield
        finally:
            for name, value in before.items():
                setattr(self, name, value)


config = Config()

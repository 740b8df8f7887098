"""Numbers as text."""

from __future__ import annotations

from .timing import Spread


def duration(s: Spread) -> str:
    """Seconds, with the unit that suits the median."""
    units = {1.0: "s ", 1e-3: "ms", 1e-6: "us"}
    unit = next((unit for unit in units if s.median >= unit), 1e-6)
    return f"{spread(s, unit)} {units[unit]}"


def spread(s: Spread, unit: float = 1.0) -> str:
    """Three figures of each."""
    median, p10, p90 = (digits(value / unit) for value in (s.median, s.p10, s.p90))
    return f"{median} [{p10} .. {p90}]"


def digits(value: float) -> str:
    """Three figures, or all of a larger integer part."""
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}".rstrip(".")

"""Peers that cannot run here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Missing(Exception):
    """The peer cannot run here; the text says why."""


def attempt(call: Callable[..., Any], *arguments: Any) -> Any:
    """What a peer returns, or `Missing`: other libraries fail at sizes that they do not refuse."""
    try:
        return call(*arguments)
    except Missing as reason:
        return reason
    except (RuntimeError, ValueError, TypeError, AttributeError, AssertionError) as error:
        return Missing(f"it failed: {(str(error).splitlines() or [repr(error)])[0][:120]}")

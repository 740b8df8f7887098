"""The CUDA half of the library: a module of its own, loaded when somebody first asks for it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

import torch

from sparsekern.schema import DTYPES, Op, ShapeError, UnsupportedError


@cache
def module() -> ModuleType | None:
    """`sparsekern._cuda`, where this build has it. Importing it touches no device."""
    try:
        return importlib.import_module("sparsekern._cuda")
    except ModuleNotFoundError as error:
        if error.name != "sparsekern._cuda":
            raise
        return None


def trouble() -> str:
    """Why nothing can run on CUDA devices here; empty where something can."""
    built = module()
    return "no cuda kernels in this build" if built is None else str(built.trouble())


def architectures() -> str:
    """What the kernels of this build are compiled for."""
    built = module()
    return "" if built is None else str(built.architectures)


def lacks(op: str) -> str:
    """Why an op cannot run on CUDA devices here; empty where it can."""
    built = module()
    if built is None:
        return "no cuda kernels in this build"
    if op not in built.kernels:
        return f"{op} has no cuda kernel yet"
    return str(built.trouble())


def kernels() -> tuple[str, ...]:
    """The ops that have a CUDA kernel in this build."""
    built = module()
    return () if built is None else built.kernels


def kernel(op: Op, explain: Callable[..., Any]) -> Callable[..., Any]:
    """The compiled function of an op; `explain` is called where it refuses a call.

    Raises:
        UnsupportedError: it cannot run here; with the reason.
    """
    if reason := lacks(op.name):
        raise UnsupportedError(f"{op.name}: {reason}")
    built = module()
    assert built is not None
    _set_up(explain)
    function: Callable[..., Any] = built.define(op.compiled())
    return function


@cache
def _set_up(explain: Callable[..., Any]) -> None:
    built = module()
    assert built is not None
    built.setup(torch, tuple(DTYPES.values()), explain, ShapeError)

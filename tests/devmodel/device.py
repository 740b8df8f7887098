"""The model as a device: memory, launches, errors."""

from __future__ import annotations

import ctypes
import json
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

POLICIES = ("fifo", "lifo", "random")
_COUNTERS = ("launches", "blocks", "switches", "warp_operations", "macs", "accesses")
Size = int | tuple[int, ...]


@dataclass(frozen=True)
class Error:
    """Something that a kernel must not do, where it did it."""

    kind: str
    text: str
    ptx_line: int
    file: str
    line: int

    def __str__(self) -> str:
        source = f"{Path(self.file).name}:{self.line}, " if self.file else ""
        return f"{self.kind}: {self.text} ({source}PTX line {self.ptx_line})"


class Device:
    """One library of kernels on one model. Tensors made here live in the model's memory."""

    def __init__(self, library: Path) -> None:
        self._c = ctypes.CDLL(str(library))
        for name, result, *arguments in (
            ("model_allocate", ctypes.c_void_p, ctypes.c_size_t),
            ("model_initialised", None, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int),
            ("model_allow", None, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int),
            ("model_uninitialised", ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t),
            ("model_take_errors", ctypes.c_char_p),
            ("model_error_count", ctypes.c_uint64),
            ("model_counters", None, ctypes.c_void_p),
            ("model_free_everything", None),
            ("model_mutate", ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_int),
            ("model_mutation_reached", ctypes.c_uint64),
            ("model_set", None, ctypes.c_int, ctypes.c_int, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int),
            (
                "model_launch",
                ctypes.c_int,
                ctypes.c_char_p,
                *[ctypes.c_void_p] * 3,
                ctypes.c_uint32,
                ctypes.c_void_p,
            ),
        ):
            function = getattr(self._c, name)
            function.restype, function.argtypes = result, arguments
        self.configure()

    def configure(
        self,
        policy: str = "fifo",
        *,
        seed: int = 1,
        checking: bool = True,
        rounding: int = 0,
        truncating: bool = False,
    ) -> None:
        """How the next launches run; `core.h` says what the settings mean."""
        self._c.model_set(checking, POLICIES.index(policy), seed, rounding, truncating)

    @contextmanager
    def mutated(self, kernel: str, line: int, *, weakened: bool = False) -> Iterator[None]:
        """Inside, the synchronisation at that line of a kernel's PTX is left out, or weakened.

        Raises:
            ValueError: there is no such kernel.
        """
        if not self._c.model_mutate(kernel.encode(), line, weakened):
            raise ValueError(f"no kernel {kernel}")
        try:
            yield
        finally:
            self._c.model_mutate(None, 0, 0)

    def reached(self) -> int:
        """How often threads came to the mutated line."""
        return int(self._c.model_mutation_reached())

    def set_architecture(self, sm: int) -> None:
        """What the CUDA run time says the device is: 80, 90, ..."""
        self._c.model_set_architecture(sm)

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Memory that holds nothing: reading it is an error.

        Raises:
            MemoryError: the model's memory is full; see `cleared`.
        """
        count = 1
        for n in shape:
            count *= n
        size = count * dtype.itemsize
        address = self._c.model_allocate(max(size, 1))
        if not address:
            raise MemoryError(f"{size} bytes")
        memory = (ctypes.c_uint8 * max(size, 1)).from_address(address)
        flat = torch.frombuffer(memory, dtype=torch.uint8)[:size]
        return flat.view(dtype).reshape(shape)

    def put(self, tensor: Tensor) -> Tensor:
        """A copy in the model's memory, strides and all; between strided rows there is nothing to access."""
        item = tensor.element_size()
        span = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) + 1
        room = self.empty(span if tensor.numel() else 0, dtype=tensor.dtype)
        if not tensor.numel():
            return room.reshape(tensor.shape)
        copy = room.as_strided(tensor.shape, tensor.stride())
        copy.copy_(tensor)
        first, size = room.data_ptr(), room.numel() * item
        self._c.model_initialised(first, size, 1)
        if not tensor.is_contiguous():
            touched = torch.zeros(room.numel() + 2, dtype=torch.int8)
            touched[1:-1].as_strided(tensor.shape, tensor.stride()).fill_(1)
            touched[0] = touched[-1] = 1
            edges = touched.diff().nonzero().flatten().tolist()  # where gaps begin, and where they end
            for start, end in zip(edges[::2], edges[1::2], strict=True):
                self._c.model_allow(first + start * item, (end - start) * item, 0)
        return copy

    def unwritten(self, tensor: Tensor) -> int:
        """How many bytes of a contiguous tensor hold nothing."""
        return int(self._c.model_uninitialised(tensor.data_ptr(), tensor.numel() * tensor.element_size()))

    def launch(
        self,
        name: str,
        grid: Size,
        block: Size,
        *arguments: Any,
        shared: int = 0,
        cluster: Size | None = None,
    ) -> None:
        """Run a kernel: tensors are passed as pointers, integers as wide as the parameter, floats as float32.

        Raises:
            ValueError: there is no such kernel, or it cannot be launched like this.
        """
        buffers = [ctypes.create_string_buffer(_bytes(a), 136) for a in arguments]
        pointers = (ctypes.c_void_p * len(buffers))(*map(ctypes.addressof, buffers))
        sizes = [(ctypes.c_uint32 * 3)(*_three(s)) for s in (grid, block)]
        of_cluster = None if cluster is None else (ctypes.c_uint32 * 3)(*_three(cluster))
        if not self._c.model_launch(name.encode(), *sizes, of_cluster, shared, pointers):
            raise ValueError(
                f"cannot launch {name}: {', '.join(map(str, self.errors())) or 'no such kernel'}"
            )

    def errors(self) -> list[Error]:
        """What went wrong since the last call; the first few of each kind and place."""
        return [Error(**e) for e in json.loads(self._c.model_take_errors().decode())]

    def counters(self) -> dict[str, int]:
        """How much was done so far."""
        numbers = (ctypes.c_uint64 * len(_COUNTERS))()
        self._c.model_counters(numbers)
        return dict(zip(_COUNTERS, numbers, strict=True))

    @contextmanager
    def cleared(self) -> Iterator[None]:
        """Frees, at the end, all tensors that were made inside."""
        try:
            yield
        finally:
            self._c.model_free_everything()


def _bytes(argument: Any) -> bytes:
    if isinstance(argument, Tensor):
        return struct.pack("<Q", argument.data_ptr())
    if isinstance(argument, float):
        return struct.pack("<f", argument)
    if isinstance(argument, bytes):
        return argument
    return struct.pack("<q" if argument < 0 else "<Q", argument)


def _three(size: Size) -> Sequence[int]:
    given = (size,) if isinstance(size, int) else size
    return (*given, 1, 1, 1)[:3]

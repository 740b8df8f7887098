"""`python -m tests.devmodel KERNEL.ptx`: what the model makes of a file, and a run of one of its kernels."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .build import library, ptx_of, translated
from .device import POLICIES, Device
from .ptx import Module, parse

EPILOG = """arguments of a kernel, in order:
  i:5  f:0.5            an integer, a float32
  in:f32:1000           1000 random numbers (f32 bf16 e4m3 i32 u8; i32 and u8: from 0 to 99)
  zero:i32:8            zeros
  out:f32:1000          memory that holds nothing yet; shown afterwards"""
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "e4m3": torch.float8_e4m3fn}
DTYPES |= {"i32": torch.int32, "u8": torch.uint8}


def main() -> int:
    """0: nothing was found wrong; 1: something was; 2: it has instructions that the model lacks."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.devmodel",
        description=__doc__.partition(": ")[2],
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path, help="PTX, or a CUDA source for nvcc")
    parser.add_argument("--arch", default="sm_80", help="what to compile a CUDA source for (%(default)s)")
    parser.add_argument("--run", metavar="NAME", help="a kernel, by a part of its name")
    parser.add_argument("--grid", default="1", help="blocks, as 4 or 4,2,1")
    parser.add_argument("--block", default="32", help="threads of a block")
    parser.add_argument("--shared", type=int, default=0, help="bytes of dynamic shared memory")
    parser.add_argument("--seeds", type=int, default=3, help="random schedules beside fifo and lifo")
    parser.add_argument("arguments", nargs="*")
    args = parser.parse_intermixed_args()
    file = ptx_of(args.file, args.arch) if args.file.suffix == ".cu" else args.file
    text = file.read_text()
    module = parse(text)
    unknown = translated(text).unknown
    describe(module)
    for opcode, count in unknown.most_common():
        print(f"unknown instruction: {opcode}, {count} times")
    if args.run is None:
        return 2 if unknown else 0
    names = [k.name for k in module.kernels if args.run in k.name]
    if len(names) != 1:
        print(f"{len(names)} kernels have {args.run!r} in their name", file=sys.stderr)
        return 2
    wrong = run(Device(library(text, args.file.stem)), names[0], args)
    return 1 if wrong else 2 if unknown else 0


def describe(module: Module) -> None:
    """Print the kernels with their parameters."""
    for k in module.kernels:
        limits = " ".join(f"{name}={','.join(map(str, n))}" for name, n in k.limits.items())
        sizes = " ".join(str(p.size) for p in k.parameters)
        print(f"{k.name}: {module.target}, parameters of {sizes} bytes, {limits}")


def run(device: Device, name: str, args: argparse.Namespace) -> bool:
    """One kernel under every schedule; whether something was wrong."""
    schedules = [(p, 1) for p in POLICIES[:2]] + [("random", s) for s in range(1, args.seeds + 1)]
    grid, block = (tuple(map(int, size.split(","))) for size in (args.grid, args.block))
    first: list[Tensor] = []
    wrong = False
    for policy, seed in schedules:
        device.configure(policy, seed=seed)
        with device.cleared():
            rng = torch.Generator().manual_seed(0)
            values = [argument(device, word, rng) for word in args.arguments]
            device.launch(name, grid, block, *values, shared=args.shared)
            errors = device.errors()
            outs = [
                v
                for v, w in zip(values, args.arguments, strict=True)
                if w.startswith("out") and isinstance(v, Tensor)
            ]
            missing = [device.unwritten(t) for t in outs]
            results = [t.clone() for t in outs]
        print(f"{policy} {seed}: {len(errors)} errors, unwritten bytes {missing}")
        print("".join(f"  {e}\n" for e in errors[:20]), end="")
        bits = [t.view(torch.uint8) for t in results]
        if first and not all(map(torch.equal, bits, first)):
            print("  another result than before")
            wrong = True
        first = first or bits
        wrong |= bool(errors)
    for t in results:
        print(t)
    return wrong


def argument(device: Device, word: str, rng: torch.Generator) -> Any:
    """What a word of the command line stands for."""
    kind, *rest = word.split(":")
    if kind in ("i", "f"):
        return int(rest[0], 0) if kind == "i" else float(rest[0])
    dtype, count = DTYPES[rest[0]], int(rest[1])
    if kind == "out":
        return device.empty(count, dtype=dtype)
    if kind == "zero":
        return device.put(torch.zeros(count, dtype=dtype))
    if dtype in (torch.int32, torch.uint8):
        return device.put(torch.randint(100, (count,), generator=rng).to(dtype))
    return device.put(torch.randn(count, generator=rng).to(dtype))


if __name__ == "__main__":
    sys.exit(main())

"""The command line: `sparsekern info | demo | bench | tune | verify`."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import sparsekern

# What runs a command: a module with add_arguments(parser) and run(args) -> exit code, imported when asked.
COMMANDS = {
    "info": ("sparsekern.cli.info", "what this build offers on this machine, op by op"),
    "demo": ("sparsekern.cli.demo", "a small DeepSeek-V4 model on transformers, then on sparsekern"),
    "bench": ("sparsekern._bench.command", "time the ops beside their peers and the limits of the machine"),
    "bench tiered": ("sparsekern._bench.tiered", "replay a trace of requests through the tiered KV cache"),
    "tune": ("sparsekern.cli.tune", "find out what is fastest here, and look after the records of it"),
    "verify": ("sparsekern.cli.verify", "run every op against its reference, on every instruction set"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if " ".join(words[:2]) in COMMANDS:
        words[:2] = [" ".join(words[:2])]
    parser = argparse.ArgumentParser(prog="sparsekern", description=(sparsekern.__doc__ or "").split("\n")[0])
    parser.add_argument("--version", action="version", version=f"sparsekern {sparsekern.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (path, summary) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        if words[:1] == [name]:
            module = load(path)
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    args = parser.parse_args(words)
    try:
        code: int = args.run(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader, head say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


def load(path: str) -> ModuleType:
    """Import a module of the package, or of what a wheel installs into it and a checkout has beside it."""
    package = ".".join(path.split(".")[:2])
    if importlib.util.find_spec(package) is None:
        folder = Path(__file__).parents[2] / package.rpartition("._")[2]
        start = folder / "__init__.py"
        spec = importlib.util.spec_from_file_location(
            package, start, submodule_search_locations=[str(folder)]
        )
        assert spec is not None
        assert spec.loader is not None
        sys.modules[package] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[package])
    return importlib.import_module(path)

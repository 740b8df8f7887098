"""Results as FlashInfer-Bench reads them: definitions, workloads, solutions and traces below one folder.

    sparsekern bench --format flashinfer-trace --out DIR

A definition is an op with its options and all sizes fixed but those that count rows. FlashInfer-Bench has no
names for bytes and UE8M0 scales: they are declared int8, and described. Its `reference` is ours, so it needs
sparsekern.
"""

from __future__ import annotations

import json
import re
import uuid
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsekern.schema import Op, as_tuple

from .case import OURS, RIGHT, UNCHECKED, Outcome, Row

_DTYPES = {
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float8_e4m3fn: "float8_e4m3fn",
    torch.int64: "int64",
    torch.int32: "int32",
    torch.int8: "int8",
    torch.bool: "bool",
}
Json = dict[str, Any]


class Traces:
    """A folder that cases are added to, one after another."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._started: set[Path] = set()  # files of this run: those of an earlier one are replaced

    def add(self, outcome: Outcome, about: Mapping[str, Any]) -> None:
        """Write a case; one without an op (the overhead of calls, say) has no place in this format."""
        if outcome.work.call is None:
            return
        op, x = outcome.work.call
        tensors = {a.name: x[a.name] for a in op.args if isinstance(x.get(a.name), Tensor)}
        results = [t for t in as_tuple(op.fn(**x)) if isinstance(t, Tensor)]
        definition, axes = define(op, x, tensors, results)
        name, place = definition["name"], Path(op.name)
        self._write(self.folder / "definitions" / place / f"{name}.json", definition)
        workload = {
            "uuid": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{name} {outcome.case.name} {outcome.case.about}")),
            "axes": axes,
            "inputs": {argument: {"type": "random"} for argument in tensors},
        }
        bare = {"definition": name, "workload": workload, "solution": None, "evaluation": None}
        self._append(self.folder / "workloads" / place / f"{name}.jsonl", bare)
        rows = {row.contender: row for row in outcome.rows}
        base = rows.get("torch", outcome.rows[0])
        for contender, row in rows.items():
            author, solution = _solution(op, x, tensors, name, contender)
            path = self.folder / "solutions" / author / place / name / f"{solution['name']}.json"
            self._write(path, solution)
            trace = {**bare, "solution": solution["name"], "evaluation": _evaluation(row, base, about)}
            self._append(self.folder / "traces" / place / f"{name}.jsonl", trace)

    def _write(self, path: Path, content: Json) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=2) + "\n")

    def _append(self, path: Path, content: Json) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a" if path in self._started else "w") as f:
            f.write(json.dumps(content) + "\n")
        self._started.add(path)


def define(
    op: Op, x: Mapping[str, Any], tensors: Mapping[str, Tensor], results: list[Tensor]
) -> tuple[Json, dict[str, int]]:
    """The definition that a call belongs to, and the values of its variable axes."""
    axes: dict[str, int] = {}

    def spec(doc: str, terms: list[str], t: Tensor) -> Json:
        lead = [f"batch_{i}" for i in range(t.dim() - len(terms))]
        names = [_axis(axes, word, size) for word, size in zip(lead + terms, t.shape, strict=True)]
        stored = "" if t.dtype in _DTYPES else f" ({str(t.dtype).removeprefix('torch.')} in torch)"
        return {"shape": names, "dtype": _DTYPES.get(t.dtype, "int8"), "description": doc + stored}

    inputs = {}
    for a in (a for a in op.args if a.name in tensors):
        form = next((f for f in a.forms if len(f.terms) == tensors[a.name].dim()), a.forms[0])
        inputs[a.name] = spec(a.doc, [w for w in form.text.split() if w != "..."], tensors[a.name])
    outputs = {}
    for o, t in zip(op.outs, results, strict=False):
        label = o.name if o.name not in inputs else f"{o.name}_out"
        outputs[label] = spec(o.doc, [w for w in o.shape.split() if w != "..."], t)

    variable = {inputs[name]["shape"][0] for name in op.rows if name in inputs}
    fixed = {name: size for name, size in axes.items() if name not in variable}
    call, dtypes = _call(op, x, tensors), ".".join(spec["dtype"] for spec in inputs.values())
    mark = f"{zlib.crc32(f'{call} {sorted(fixed.items())} {dtypes}'.encode()):08x}"
    short = "_".join(f"{name.lower()}{size}" for name, size in fixed.items() if name.isalnum())[:60]
    definition = {
        "name": "_".join(filter(None, ["sparsekern", op.name, short, mark])),
        "op_type": op.name,
        "axes": {
            name: {"type": "var"} if name in variable else {"type": "const", "value": size}
            for name, size in axes.items()
        },
        "inputs": inputs,
        "outputs": outputs,
        "reference": _source(f"sparsekern.reference.{call}", tensors),
        "tags": ["sparsekern", op.family],
        "description": f"{(op.fn.__doc__ or '').splitlines()[0]} Source: {op.source}.",
    }
    return definition, {name: axes[name] for name in variable}


def _axis(axes: dict[str, int], term: str, size: int) -> str:
    """A name for an axis: the term of the schema; with its size where a packed tensor stores another one."""
    name = re.sub(r"\W", "_", term.replace("/", "_per_").replace("*", "x"))
    if axes.setdefault(name, size) != size:
        name = f"{name}_{size}"
        axes[name] = size
    return name


def _call(op: Op, x: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    options = {k: v for k, v in x.items() if k not in tensors and not (v is None and k in op.optional)}
    words = [f"{name}={name}" for name in tensors] + [f"{name}={value!r}" for name, value in options.items()]
    return f"{op.name}({', '.join(words)})"


def _source(call: str, tensors: Mapping[str, Tensor]) -> str:
    return f"import torch\n\nimport sparsekern\n\n\ndef run({', '.join(tensors)}):\n    return {call}\n"


def _solution(
    op: Op, x: Mapping[str, Any], tensors: Mapping[str, Tensor], definition: str, contender: str
) -> tuple[str, Json]:
    """Who made the contender, and the solution: ours as code that runs, a peer by its name."""
    slug = re.sub(r"\W+", "_", contender).strip("_")
    ours = contender.startswith(OURS)
    code = _source(f"sparsekern.{_call(op, x, tensors)}", tensors)
    if not ours:
        where = f"{contender}: see bench/baselines.py and bench/eager of sparsekern"
        code = f"def run({', '.join(tensors)}):\n    raise NotImplementedError({where!r})\n"
    author = OURS if ours else slug.split("_")[0]
    return author, {
        "name": f"{slug}_{definition}",
        "definition": definition,
        "author": author,
        "spec": {
            "language": "python",
            "target_hardware": ["cpu"],
            "entry_point": "main.py::run",
            "dependencies": [OURS],
            "destination_passing_style": False,
        },
        "sources": [{"path": "main.py", "content": code}],
        "description": contender,
    }


def _evaluation(row: Row, base: Row, about: Mapping[str, Any]) -> Json:
    passed = row.verdict in (RIGHT, UNCHECKED)
    error = row.check
    evaluation: Json = {
        "status": "PASSED" if passed else "INCORRECT_NUMERICAL",
        "environment": {
            "hardware": f"{about['device']}, {about['threads']} threads, {about['isa']}",
            "libs": dict(about["versions"]),
        },
        "timestamp": about["time"],
        "log": "; ".join(filter(None, [row.verdict, row.remark, f"commit {about['commit']}"])),
        "correctness": {
            "max_relative_error": error.relative,
            "max_absolute_error": error.largest,
            "extra": {"relative_to": "the largest value of a row", "two_norm": error.error},
        },
    }
    if passed:
        evaluation["performance"] = {
            "latency_ms": 1e3 * row.seconds.median,
            "reference_latency_ms": 1e3 * base.seconds.median,
            "speedup_factor": base.seconds.median / row.seconds.median,
        }
    return evaluation

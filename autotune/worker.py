"""The child process: runs what it is told, a JSON object a line, and may die of it.

{"do": "prepare", "task": ...}              -> problem, digest, complaint of the default's result
{"do": "try", "config": ...}                -> digest and seconds of a call
{"do": "time", "configs": ..., "calls": ...} -> {"at": i} before each, then seconds of a call of each,
                                                and what processors spent on all of it
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from sparsekern.model import DEFAULT

from .task import OpWorkload, Task, Workload, digest


def main() -> None:
    """Serve until the input ends."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # whatever prints does not print among the answers
        torch.set_grad_enabled(False)
        serve(sys.stdin, answers)


def serve(questions: Any, answers: Any) -> None:
    """Answer every line."""
    workload: Workload | None = None
    for line in questions:
        question = json.loads(line)
        if question["do"] == "prepare":
            workload = make(Task(**question["task"]))
            _say(answers, {**_look(workload, DEFAULT.config), "problem": vars(workload.problem)})
        elif question["do"] == "try":
            assert workload is not None
            _say(answers, _look(workload, question["config"]))
        else:
            assert workload is not None
            for answer in _time(workload, question):
                _say(answers, answer)


def make(task: Task) -> Workload:
    """The workload of a task."""
    if not task.factory:
        return OpWorkload(task)
    path, _, name = task.factory.rpartition(":")
    spec = importlib.util.spec_from_file_location("factory", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    workload: Workload = getattr(module, name)(task)
    return workload


def _look(workload: Workload, config: Mapping[str, int]) -> dict[str, Any]:
    result = workload.run(config, 0)
    start = time.perf_counter()
    workload.run(config, 1)
    took = time.perf_counter() - start
    return {"seconds": took, "digest": digest(result), "complaint": workload.complaint(result)}


def _time(workload: Workload, question: dict[str, Any]) -> Iterator[dict[str, Any]]:
    seconds, spent = [], time.process_time()
    for i, (config, calls) in enumerate(zip(question["configs"], question["calls"], strict=True)):
        yield {"at": i}
        start = time.perf_counter()
        for call in range(question["first"], question["first"] + calls):
            workload.run(config, call)
        seconds.append((time.perf_counter() - start) / calls)
    yield {"seconds": seconds, "spent": time.process_time() - spent}


def _say(answers: Any, answer: dict[str, Any]) -> None:
    print(json.dumps(answer), file=answers, flush=True)

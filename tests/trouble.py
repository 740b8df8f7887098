"""Workloads for the tuner that crash, hang and lie: `Task.factory` names one of them."""

import os
import random
import signal
import time
from collections.abc import Mapping
from types import SimpleNamespace

import torch

from sparsekern.cli import load
from sparsekern.model import Problem

# Its candidates differ in `prefetch` and in `decode_rows`, 0 or 1024, and the model chooses the default.
PROBLEM = Problem("gemm", "bf16", "e4m3", True, 128, 2048, 7168, 1, 8, 2, "avx2")


class Plain:
    """Takes a millisecond, half of it with prefetch 8192, by a clock of its own: machines are busy."""

    problem = PROBLEM
    now = 0.0

    def seconds(self, config: Mapping[str, int]) -> float:
        return 0.0005 if config["prefetch"] == 8192 else 0.001

    def run(self, config: Mapping[str, int], i: int) -> torch.Tensor:
        self.now += self.seconds(config)
        return torch.ones(4)

    def complaint(self, result: torch.Tensor) -> str:
        return ""


class Trouble(Plain):
    def run(self, config: Mapping[str, int], i: int) -> torch.Tensor:
        result = super().run(config, i)
        if config["decode_rows"]:
            return torch.nextafter(result, 2 * result)
        if config["prefetch"] == 0:
            os.kill(os.getpid(), signal.SIGSEGV)
        if config["prefetch"] == 1024:
            time.sleep(3600)
        return result


class Late(Plain):
    """The fastest one crashes once it is timed."""

    def __init__(self) -> None:
        self.calls = 0

    def run(self, config: Mapping[str, int], i: int) -> torch.Tensor:
        self.calls += config["prefetch"] == 8192 and not config["decode_rows"]
        if self.calls > 3:
            os._exit(7)
        return super().run(config, i)


class Noisy(Plain):
    """By the virtual clock, hence the same noise in every run."""

    def __init__(self) -> None:
        self.random = random.Random(0)

    def seconds(self, config: Mapping[str, int]) -> float:
        return self.random.choice((0.001, 0.01))


class Wrong(Plain):
    def complaint(self, result: torch.Tensor) -> str:
        return "1 of 4 differ"


class Broken(Plain):
    def run(self, config: Mapping[str, int], i: int) -> torch.Tensor:
        raise RuntimeError("no such kernel")


def _make(kind: type[Plain]) -> object:
    def factory(task: object) -> Plain:
        workload = kind()
        clock = SimpleNamespace(perf_counter=lambda: workload.now, process_time=lambda: 0.0)
        load("sparsekern._autotune.worker").time = clock  # of this child process
        return workload

    return factory


plain, trouble, late, noisy, wrong, broken = map(_make, (Plain, Trouble, Late, Noisy, Wrong, Broken))

"""A child process that may crash or hang without taking the tuner with it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sparsekern

from .task import Task

CRASHED, HUNG = "crashed", "hung"
START_SECONDS = 60.0  # to import torch on a busy machine
_START = "from sparsekern.cli import load; load('sparsekern._autotune.worker').main()"


class Trouble(Exception):
    """The child is gone: it crashed, or was killed because it did not answer in time."""

    def __init__(self, kind: str, detail: str, at: int | None = None) -> None:
        super().__init__(detail)
        self.kind = kind
        self.at = at  # which of several configurations was running


class Child:
    """One worker; a new one is started when it is gone."""

    def __init__(self, task: Task, prepare_seconds: float) -> None:
        self.task, self.prepare_seconds = task, prepare_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._rest = b""
        self._folder = tempfile.TemporaryDirectory()
        self._said = Path(self._folder.name) / "stderr"

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._folder.cleanup()

    def prepare(self) -> dict[str, Any]:
        """Start anew and make the task ready.

        Raises:
            Trouble: it crashed or took too long.
        """
        self.stop()
        package = str(Path(sparsekern.__file__).parents[1])
        paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
        with self._said.open("wb") as said:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
                start_new_session=True,  # so that it dies with whatever it has started
            )
        self._rest = b""
        return self.ask({"do": "prepare", "task": self.task.json()}, START_SECONDS + self.prepare_seconds)

    def ask(self, question: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """The answer to a question, within some seconds after every sign of life.

        Raises:
            Trouble: it crashed or took too long.
        """
        if self._process is None:
            self.prepare()
        process = self._process
        assert process is not None
        assert process.stdin is not None
        at: int | None = None
        try:
            process.stdin.write(json.dumps(question).encode() + b"\n")
            process.stdin.flush()
            while True:
                answer = json.loads(self._line(process, seconds))
                if "at" not in answer:
                    found: dict[str, Any] = answer
                    return found
                at = answer["at"]
        except TimeoutError:
            self.stop()
            raise Trouble(HUNG, f"no answer within {seconds:.0f} s", at) from None
        except (OSError, EOFError, ValueError):
            code = self.stop()
            name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            raise Trouble(CRASHED, f"{name} {self._last_words()}".strip(), at) from None

    def _line(self, process: subprocess.Popen[bytes], seconds: float) -> bytes:
        """One line of its output.

        Raises:
            TimeoutError: none came.
            EOFError: it has ended.
        """
        assert process.stdout is not None
        end = time.monotonic() + seconds
        while b"\n" not in self._rest:
            left = end - time.monotonic()
            if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
                raise TimeoutError
            piece = os.read(process.stdout.fileno(), 1 << 16)
            if not piece:
                raise EOFError
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _last_words(self) -> str:
        """The last line that it wrote to its standard error."""
        lines = self._said.read_text(errors="replace").strip().splitlines()
        return f"({lines[-1].strip()[:160]})" if lines else ""

    def stop(self) -> int:
        """End it, at once; its exit code."""
        process, self._process = self._process, None
        if process is None:
            return 0
        code = process.poll()
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            if code is None and process.stdin is not None:
                process.stdin.close()  # a worker that waits for a question ends
                code = process.wait(timeout=0.5)
        if code is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        return code

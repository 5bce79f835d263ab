"""A process that works for this one within bounds of time and memory, and that can be ended.

What comes with the weights can ask for any amount of either in C or Rust code, which nothing in its
own process can interrupt: a chat template, the patterns of a tokenizer. The program that runs there
has the system's own limits.
"""

from __future__ import annotations

import json
import selectors
import subprocess
import sys
import threading
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, ClassVar

from errors import Internal
from prompting.child_loop import ENCODING

# Of wall time to processor time: a machine may be busy, and the programs don't sleep.
_PATIENCE = 20
_ENDING_S = 5.0


class BoundedProcess(ABC):
    """A process that answers one request at a time; one that a bound ended is started anew."""

    environment: ClassVar[dict[str, str]] = {}  # nothing of the worker's, such as its secrets

    def __init__(self, cpu_s: float, longest_answer: int) -> None:
        """Start nothing yet.

        Args:
            cpu_s: processor time that the program gives itself for a request.
            longest_answer: bytes of an answer's line.
        """
        self._cpu_s = cpu_s
        self._longest_answer = longest_answer
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start the process, which needs a moment before it can answer; not waited for."""
        with self._lock:
            self._running()

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._end()

    def ask(self, request: dict[str, Any]) -> dict[str, str]:
        """The program's answer; an empty one where a bound ended the process first.

        Raises:
            Internal: the process does not run.
        """
        line = json.dumps(request, ensure_ascii=False).encode(*ENCODING) + b"\n"
        with self._lock:
            return self._exchange(line)

    @abstractmethod
    def _program(self) -> tuple[Path, list[str]]:
        """The program's file and arguments."""

    @abstractmethod
    def _purpose(self) -> tuple[str, str]:
        """What the process does, and the package that it needs for that."""

    def _opening(self) -> bytes:
        """A first line for the program, which has no answer."""
        return b""

    def _exchange(self, line: bytes) -> dict[str, str]:
        process = self._running()
        assert process.stdin is not None and process.stdout is not None  # noqa: S101, PT018
        answered: dict[str, str] = {}
        try:
            with suppress(BrokenPipeError):  # it ended before it had read the request
                process.stdin.write(line)
                process.stdin.flush()
            if _is_readable(process.stdout, self._cpu_s * _PATIENCE):
                out = process.stdout.readline(self._longest_answer)
                if out.endswith(b"\n"):
                    answered = json.loads(out.decode(*ENCODING))
                elif not out:
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(_ENDING_S)  # for the status that it ends with
        finally:
            # Also when interrupted: its answer isn't for the next request.
            if not answered or answered.get("excess") == "memory":
                self._end()
        if not answered and process.returncode >= 0:
            purpose, package = self._purpose()
            raise Internal(
                f"the process that {purpose} does not run (it ended with status "
                f"{process.returncode}); {sys.executable} must be able to import {package}"
            )
        return answered

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._end()
            program, arguments = self._program()
            self._process = subprocess.Popen(  # noqa: S603 - a program of the worker's own
                [sys.executable, "-I", str(program), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=self.environment,
                start_new_session=True,  # Ctrl-C is for the worker alone
            )
            assert self._process.stdin is not None  # noqa: S101
            with suppress(BrokenPipeError):
                self._process.stdin.write(self._opening())
        return self._process

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            with suppress(BrokenPipeError):
                self._process.communicate()
            self._process = None


def _is_readable(file: IO[bytes], timeout_s: float) -> bool:
    """Whether a pipe has something to read, or is at its end, within a time."""
    with selectors.DefaultSelector() as selector:
        selector.register(file, selectors.EVENT_READ)
        return bool(selector.select(timeout_s))

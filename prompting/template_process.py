"""Renders chat templates within bounds of time and memory, in a process that can be ended."""

from __future__ import annotations

import atexit
import json
import selectors
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import IO, Any

from errors import Internal, InvalidInput
from prompting import template_child
from prompting.template_child import ENCODING

_PROGRAM = Path(template_child.__file__)
# Of wall time to processor time: a machine may be busy, and a template can't sleep.
_PATIENCE = 20
_ENDING_S = 5.0


class TemplateRefusal(Exception):
    """A template gives no text. The message has the template's own words where it refuses."""


class TemplateTooCostly(InvalidInput):
    """A template exceeds a bound. The request is answered with this, and a start ends."""


@dataclass(frozen=True)
class Bounds:
    """What one rendering may take. Those of real templates take milliseconds and kilobytes."""

    cpu_s: float = 5.0
    memory_bytes: int = 1 << 29  # of the whole process, with its interpreter
    most_characters: int = 1 << 24


class TemplateProcess:
    """A process that renders, one text at a time; one that a template ended is started anew."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start the process, which needs a moment before it can answer; not waited for."""
        with self._lock:
            self._running()

    def render(self, template: str, variables: Mapping[str, Any], date: str | None) -> str:
        """A template's text.

        Args:
            variables: what the template knows by name, as JSON has it.
            date: what `strftime_now` gives for any format; None: the date and time.

        Raises:
            TemplateRefusal: it refuses, or fails.
            TemplateTooCostly: it takes more time or memory than the bounds, or its text is longer.
            Internal: the process does not run.
        """
        request = {
            "template": template,
            "variables": dict(variables),
            "date": date,
            "now": datetime.now().isoformat(),
        }
        line = json.dumps(request, ensure_ascii=False).encode(*ENCODING) + b"\n"
        with self._lock:
            answered = self._exchange(line)
        if (text := answered.get("text")) is not None:
            return text
        if "refusal" in answered:
            raise TemplateRefusal(answered["refusal"])
        if "fault" in answered:
            raise TemplateRefusal
        raise TemplateTooCostly(self._too_costly(answered.get("excess")))

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._end()

    def _exchange(self, line: bytes) -> dict[str, str]:
        """The process's answer; an empty one where a limit ended it first."""
        process = self._running()
        assert process.stdin is not None and process.stdout is not None  # noqa: S101, PT018
        answered: dict[str, str] = {}
        try:
            with suppress(BrokenPipeError):  # it ended before it had read the request
                process.stdin.write(line)
                process.stdin.flush()
            if _is_readable(process.stdout, self._bounds.cpu_s * _PATIENCE):
                # A character has six bytes at most, as JSON.
                out = process.stdout.readline(6 * self._bounds.most_characters + 1024)
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
            raise Internal(
                "the process that renders chat templates does not run (it ended with status "
                f"{process.returncode}); {sys.executable} must be able to import jinja2"
            )
        return answered

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._end()
            bounds = self._bounds
            limits = (bounds.memory_bytes, bounds.cpu_s, bounds.most_characters)
            self._process = subprocess.Popen(  # noqa: S603 - a program of the worker's own
                [sys.executable, "-I", str(_PROGRAM), *map(str, limits)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={},  # nothing of the worker's, such as its secrets
                start_new_session=True,  # Ctrl-C is for the worker alone
            )
        return self._process

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _too_costly(self, excess: str | None) -> str:
        bounds = self._bounds
        if excess == "text":
            what = f"writes more than {bounds.most_characters} characters"
        elif excess == "memory":
            what = f"takes more than {bounds.memory_bytes >> 20} MiB of memory"
        else:
            what = f"takes more than {bounds.cpu_s:g} s or {bounds.memory_bytes >> 20} MiB"
        return f"messages: the model's chat template {what} on them; send prompt instead"


def _is_readable(file: IO[bytes], timeout_s: float) -> bool:
    """Whether a pipe has something to read, or is at its end, within a time."""
    with selectors.DefaultSelector() as selector:
        selector.register(file, selectors.EVENT_READ)
        return bool(selector.select(timeout_s))


@cache
def template_process() -> TemplateProcess:
    """The process's own renderer, not yet started."""
    renderer = TemplateProcess(Bounds())
    atexit.register(renderer.close)
    return renderer

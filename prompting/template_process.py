"""Renders chat templates within bounds of time and memory, in a process that can be ended."""

from __future__ import annotations

import atexit
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from errors import InvalidInput
from prompting import template_child
from prompting.bounded_process import BoundedProcess

_PROGRAM = Path(template_child.__file__)


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


class TemplateProcess(BoundedProcess):
    """A process that renders, one text at a time; one that a template ended is started anew."""

    def __init__(self, bounds: Bounds) -> None:
        # A character has six bytes at most, as JSON.
        super().__init__(bounds.cpu_s, 6 * bounds.most_characters + 1024)
        self._bounds = bounds

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
        answered = self.ask(
            {
                "template": template,
                "variables": dict(variables),
                "date": date,
                "now": datetime.now().isoformat(),
            }
        )
        if (text := answered.get("text")) is not None:
            return text
        if "refusal" in answered:
            raise TemplateRefusal(answered["refusal"])
        if "fault" in answered:
            raise TemplateRefusal
        raise TemplateTooCostly(self._too_costly(answered.get("excess")))

    def _program(self) -> tuple[Path, list[str]]:
        bounds = self._bounds
        limits = (bounds.memory_bytes, bounds.cpu_s, bounds.most_characters)
        return _PROGRAM, list(map(str, limits))

    def _purpose(self) -> tuple[str, str]:
        return "renders chat templates", "jinja2"

    def _too_costly(self, excess: str | None) -> str:
        bounds = self._bounds
        if excess == "text":
            what = f"writes more than {bounds.most_characters} characters"
        elif excess == "memory":
            what = f"takes more than {bounds.memory_bytes >> 20} MiB of memory"
        else:
            what = f"takes more than {bounds.cpu_s:g} s or {bounds.memory_bytes >> 20} MiB"
        return f"messages: the model's chat template {what} on them; send prompt instead"


@cache
def template_process() -> TemplateProcess:
    """The process's own renderer, not yet started."""
    renderer = TemplateProcess(Bounds())
    atexit.register(renderer.close)
    return renderer

"""The program that renders chat templates, in a process that `template_process` starts.

A template is a program that comes with the weights. Jinja's sandbox keeps it from the machine, and
bounds neither its time nor its memory: one expression can build gigabytes within C code that no
Python check interrupts. So it runs in a process that can end, with limits of the system's.

It uses no transformers: its environment is the one that transformers renders with, so that texts
are the same.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jinja2

_SENTENCE_CHARACTERS = 500


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


@lru_cache(maxsize=4)
def _compiled(source: str) -> jinja2.Template:
    # Imported in the process that renders alone: the worker's own imports this module too.
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` blocks, which mark what an assistant says and change no text."""

        tags = {"generation"}  # noqa: RUF012 - jinja's own declaration

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = raise_exception
    return environment.from_string(source)


def _clock(now: str, date: str | None) -> Callable[[str], str]:
    """What templates call as `strftime_now`."""
    if date is not None:
        return lambda _format: date
    return datetime.fromisoformat(now).strftime


def answer(request: dict[str, Any], most_characters: int) -> dict[str, str]:
    """The rendered text, or why there is none: one of `text`, `refusal`, `fault` and `excess`."""
    from jinja2 import TemplateError

    strftime_now = _clock(request["now"], request["date"])
    try:
        template = _compiled(request["template"])
        text = template.render(strftime_now=strftime_now, **request["variables"])
    except MemoryError:
        return {"excess": "memory"}
    except Exception as error:
        # Its subclasses are faults in the template.
        kind = "refusal" if type(error) is TemplateError else "fault"
        return {kind: str(error)[:_SENTENCE_CHARACTERS]}
    return {"text": text} if len(text) <= most_characters else {"excess": "text"}


def main(memory_bytes: int, cpu_s: float, most_characters: int) -> None:
    """Answer requests until the input ends, or a limit ends the process."""
    from prompting.child_loop import Answer, serve

    def prepare() -> Answer:
        _compiled("")  # imports jinja before the first request
        return lambda request: answer(request, most_characters)

    serve(prepare, memory_bytes, cpu_s)


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[1]))  # an isolated Python has not even its own
    main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))

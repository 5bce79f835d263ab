"""Text from elsewhere on a terminal: it can't look like markup, control codes or another line."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.text import Text

TABLE_STYLE: dict[str, Any] = {"title_justify": "left", "box": None, "padding": (0, 2, 0, 0)}
# How a token that is a part of a character is written: its bytes.
BYTE_TOKENS = re.compile(r"(?:<0x[0-9A-F]{2}>)+")
_LONGEST_LINE = 4_000
_NARROWEST = 20


def shown(text: str) -> str:
    """Untrusted text for rich: its markup escaped, its control characters in Python's notation."""
    return escape("".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text))


def line(text: str) -> str:
    """Untrusted text for rich, on one line: so that an id or an error can't look like a second.

    What is longer than any of them is cut.
    """
    text = text if len(text) <= _LONGEST_LINE else f"{text[:_LONGEST_LINE]}…"
    return shown(text.replace("\n", "\\n"))


def quoted(token: str) -> str:
    """A token in double quotes, so that its spaces are visible."""
    return shown('"' + token.replace("\n", "\\n") + '"')


def text_of(tokens: Iterable[str]) -> str:
    """The text of tokens; bytes that are no character become U+FFFD."""
    return b"".join(map(_in_utf8, tokens)).decode("utf-8", "replace")


def _in_utf8(token: str) -> bytes:
    if BYTE_TOKENS.fullmatch(token):
        return bytes.fromhex(re.sub("<0x|>", "", token))
    return token.encode()


def end_of(prompt: str, most: int) -> str:
    """A prompt's last characters: what a model continues, and where long prompts mostly differ."""
    return prompt if len(prompt) <= most else f"…{prompt[-most:]}"


def cut(markup: str) -> Text:
    """A cell that is cut where its column is too narrow, and keeps to one line."""
    text = Text.from_markup(markup, emoji=False)
    text.no_wrap, text.overflow = True, "ellipsis"
    return text


def print_named(console: Console, name: str, markup: str) -> None:
    """Words behind their name. What is too wide for the terminal goes on below, behind the name."""
    indent = len(name)
    width = max(console.width - indent, _NARROWEST)
    for number, part in enumerate(Text.from_markup(markup, emoji=False).wrap(console, width)):
        part.rstrip()
        console.print(Text.assemble(" " * indent if number else name, part), soft_wrap=True)


def print_hint(console: Console, markup: str | None) -> None:
    """A sentence of advice in a paragraph of its own, where there is one."""
    if markup is not None:
        console.print(f"\n[yellow]hint[/yellow]    {markup}")


def at_token(position: int, tokens: Sequence[str]) -> str:
    """A position of the prompt with its token."""
    return f"{position} {quoted(tokens[position])}" if 0 <= position < len(tokens) else "?"


def size(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:.1f} MB" if n_bytes >= 1e6 else f"{n_bytes / 1000:.0f} kB"


def stages(timings_ms: Mapping[str, float]) -> str:
    """A job's stages and the time of each, in one line."""
    return ", ".join(f"{line(name)} {ms:.0f} ms" for name, ms in timings_ms.items())

"""JSON that people write by hand: what is wrong with it, where, and what was probably meant."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

# A string, closed or not, or a bracket. The repeats are possessive, so that long texts take a time
# that grows with their length and no faster.
_PARTS = re.compile(r'"(?:[^"\\]++|\\.)*+(?:"|\Z)|[][{}]', re.DOTALL)
_WORD = re.compile(r"[A-Za-z_][\w-]{0,30}")
_CLOSES = {"{": "}", "[": "]"}
_WRITTEN_ELSEWHERE = {
    "True": "true",
    "False": "false",
    "None": "null",
    "undefined": "null",
    "nil": "null",
}
_FILE_NAME = re.compile(r"[^\s{}\[\]\"':,]{1,255}\.jsonl?")


class NotJson(ValueError):
    """The text is no JSON. The message says where the fault is and what to write instead.

    It never repeats a string of the text: a prompt or a signed URL may be in it.
    """


class _NoConstant(ValueError):
    pass


def read_json(text: str | bytes) -> Any:
    """The value that a JSON text stands for.

    Raises:
        NotJson: it is none.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise NotJson(_explain(text, str(error))) from None


def is_file_name(text: str) -> bool:
    """Whether a text that stands where JSON is wanted is a file's name."""
    text = text.strip().removeprefix("@")
    if _FILE_NAME.fullmatch(text):
        return True
    try:
        return bool(text) and Path(text).is_file()
    except (OSError, ValueError):  # too long, or with a null character
        return False


def _explain(content: str | bytes, reason: str) -> str:
    if isinstance(content, str):
        text = content
    else:
        try:
            text = bytes(content).decode()
        except UnicodeDecodeError as error:
            return f"byte {error.start} is not UTF-8; save it as UTF-8"
    if not text.strip():
        return "it is empty"
    try:
        json.loads(text, parse_constant=_refuse_constant, parse_int=str)
    except json.JSONDecodeError as error:
        at, message = error.pos, error.msg
    except RecursionError:
        return "it is nested too deeply"
    except _NoConstant as error:
        return str(error)
    else:
        return reason  # orjson refuses a little more, such as half of a surrogate pair
    line = text.count("\n", 0, at) + 1
    column = at - text.rfind("\n", 0, at)
    return f"line {line}, column {column}: {_what_was_meant(text, at, message)}"


def _refuse_constant(name: str) -> None:
    raise _NoConstant(f"{name} is no number of JSON; write null, or leave the field out")


def _what_was_meant(text: str, at: int, message: str) -> str:
    for look in _LOOKS:
        found = look(text, at, message)
        if found is not None:
            return found
    return message[0].lower() + message[1:]


def _at_quotes(text: str, at: int, _message: str) -> str | None:
    if text[at : at + 1] == "'":
        return "JSON takes double quotes: write \" instead of '"
    if text[at : at + 1] in {"“", "”", "„", "‘", "’", "«", "»"}:
        return 'JSON takes straight double quotes: write "'
    if text[at : at + 1] == "\ufeff":
        return "a byte order mark stands before the JSON; save it as UTF-8 without one"
    return None


def _at_comma(text: str, at: int, _message: str) -> str | None:
    following = text[at:].lstrip()[:1]
    before = text[:at].rstrip()
    if following == "," and before[-1:] in {",", "[", "{"}:
        return "there is a comma too many: remove it"
    # Where the parser stops, at the comma or after it, depends on Python's version.
    after_comma = text[at + 1 :].lstrip()[:1] if following == "," else following
    if after_comma in {"}", "]"} and (following == "," or before.endswith(",")):
        return f"a comma stands before the {after_comma}: remove it"
    return None


def _at_word(text: str, at: int, message: str) -> str | None:
    word = _WORD.match(text, at)
    if text.startswith(("//", "/*", "#"), at):
        return "JSON has no comments: remove it"
    if word is None:
        return None
    if word[0] in _WRITTEN_ELSEWHERE:
        return f"write {_WRITTEN_ELSEWHERE[word[0]]} instead of {word[0]}"
    if "property name" in message:
        return (
            f'names take double quotes: "{word[0]}"; in a shell, put single quotes around the '
            "whole JSON"
        )
    if "Expecting value" in message:
        return (
            "text takes double quotes around it; in a shell, put single quotes around the whole "
            "JSON"
        )
    return None


def _at_end(text: str, at: int, message: str) -> str | None:
    """What is still open where the text ends."""
    if text[at:].strip() and not message.startswith("Unterminated string"):
        return None
    opened: list[str] = []
    for part in _PARTS.finditer(text):
        found = part[0]
        if found in _CLOSES:
            opened.append(found)
        elif found in {"}", "]"}:
            if not opened or _CLOSES[opened.pop()] != found:
                return None
        elif not _is_closed(found):
            return 'the string that begins here has no end: a " is missing'
    if not opened:
        return None
    missing = "".join(_CLOSES[bracket] for bracket in reversed(opened[-20:]))
    if text.rstrip().endswith((":", ",")):
        return f"the text ends here, where a value is missing, and then {missing}"
    return f"the text ends here, and {missing} is missing"


def _is_closed(string: str) -> bool:
    quote = string.endswith('"') and len(string) > 1
    backslashes = len(string[:-1]) - len(string[:-1].rstrip("\\"))
    return quote and backslashes % 2 == 0


def _by_message(text: str, at: int, message: str) -> str | None:
    if message.startswith("Extra data"):
        if text[at : at + 1] in {"}", "]"}:
            return f"there is a {text[at]} too many: remove it"
        return "the JSON has ended before this: remove what follows, or put all of it in a list"
    if "':' delimiter" in message:
        return "a colon is missing between a name and its value"
    if "',' delimiter" in message:
        within = '; a " within a text is written \\"' if text[:at].rstrip()[-1:] == '"' else ""
        return f"a comma or the closing bracket is missing here{within}"
    if message.startswith("Invalid control character"):
        return "a text can't hold a line break or a tab as such: write \\n or \\t"
    if message.startswith("Invalid \\"):
        return "a backslash in a text is written twice: \\\\"
    if text[at : at + 1] in {".", "+"}:
        return "a number begins with a digit or with -, such as 0.5"
    if text[at : at + 1] in {"}", "]"} and "property name" not in message:
        return f"a value is missing before the {text[at]}"
    return None


_LOOKS: tuple[Callable[[str, int, str], str | None], ...] = (
    _at_quotes,
    _at_comma,
    _at_word,
    _at_end,
    _by_message,
)

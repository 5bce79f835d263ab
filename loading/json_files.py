"""JSON files that anybody may have written, read within bounds. Importing this imports no torch."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loading import WeightsError
from loading.bounds import JSON_BYTES, JSON_DEPTH


def check_file(file: Path, most_bytes: int) -> None:
    """Raise WeightsError unless a file is one, and no larger than that.

    Raises:
        OSError: it isn't there, or can't be looked at.
    """
    status = file.stat()
    # Opening a directory says that it is one; opening a pipe would wait for ever.
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        raise WeightsError(f"{file} is no regular file: replace it")
    if status.st_size > most_bytes:
        raise WeightsError(
            f"{file} has {status.st_size} bytes, and {most_bytes} are the most for such a file: "
            "replace it"
        )


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        WeightsError: the file can't be read, is too large, or holds something else.
    """
    try:
        check_file(file, JSON_BYTES)
        content = json.loads(file.read_text())
    except OSError as error:
        raise WeightsError(f"{file} can't be read: {error.strerror}") from None
    except ValueError as error:
        raise WeightsError(f"{file} is no JSON: replace it ({error})") from None
    except RecursionError:
        raise too_deep(file) from None
    if not isinstance(content, dict):
        raise WeightsError(f"{file} is no JSON object: replace it")
    for depth, _ in nested(content):
        if depth > JSON_DEPTH:
            raise too_deep(file)
    return content


def nested(content: object) -> Iterator[tuple[int, Any]]:
    """The objects and lists of what JSON held, each with how deep it is."""
    left: list[tuple[int, Any]] = [(1, content)]
    while left:
        depth, part = left.pop()
        yield depth, part
        inner = part.values() if isinstance(part, dict) else part
        left += [(depth + 1, value) for value in inner if isinstance(value, dict | list)]


def too_deep(file: Path) -> WeightsError:
    return WeightsError(f"{file} is nested too deeply to be read: replace it")

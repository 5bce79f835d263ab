"""Forms of arguments that several commands take."""

import re
from argparse import ArgumentTypeError

import orjson


def layers(text: str) -> str | list[int]:
    """All layers, or the first and the last of some."""
    found = re.fullmatch(r"(\d+)-(\d+)", text)
    if found is None and text != "all":
        raise ArgumentTypeError(f"{text!r} is not all or FIRST-LAST, such as 0-3")
    return "all" if found is None else [int(found[1]), int(found[2])]


def side(text: str) -> list[str]:
    """The tokens of a difference's side: one, or those of a JSON list."""
    try:
        tokens = orjson.loads(text)
    except orjson.JSONDecodeError:
        return [text]
    is_list = isinstance(tokens, list) and all(isinstance(token, str) for token in tokens)
    return tokens if is_list else [text]

"""How much the files that come with weights may ask for, before memory is taken for it.

A few kilobytes can stand for gigabytes: an alias that is repeated, a number of layers, a header. A
file that goes over a bound is refused by its name. Bounds are far above what published weights
have. Importing this module imports no torch.
"""

from __future__ import annotations

import json
import re
import reprlib
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from loading import WeightsError

MOST_LAYERS = 1000
MOST_FEATURES = 1 << 26  # of a layer of transcoders
# The index of a checkpoint of 90,000 tensors has 9 MB. A file of brackets takes 25 times its size.
_JSON_BYTES = 16 << 20
_JSON_DEPTH = 50
_YAML_BYTES = 256 << 10  # read at some 100 kB/s; an address a layer has 10 kB
# A number of layers, by its name in config.json, and other sizes by theirs.
_LAYERS = re.compile(r"(^|_)layers?$")
_MOST: dict[str, int] = {
    **dict.fromkeys(("n_positions", "max_position_embeddings", "sliding_window"), 1 << 27),
    **dict.fromkeys(("vocab_size", "num_labels", "type_vocab_size"), 1 << 24),
    **dict.fromkeys(("intermediate_size", "n_inner", "moe_intermediate_size"), 1 << 22),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "head_dim"), 1 << 20),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_key_value_heads"), 1 << 16),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 1 << 16),
}

_briefly = reprlib.Repr()
_briefly.maxstring = _briefly.maxother = 80


def brief(value: object) -> str:
    """A value from a file, for a message: its beginning."""
    if isinstance(value, int) and value.bit_length() > 1000:  # too long a number to print
        return "a number of hundreds of digits"
    return _briefly.repr(value)


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
        check_file(file, _JSON_BYTES)
        content = json.loads(file.read_text())
    except OSError as error:
        raise WeightsError(f"{file} can't be read: {error.strerror}") from None
    except ValueError as error:
        raise WeightsError(f"{file} is no JSON: replace it ({error})") from None
    except RecursionError:
        raise _too_deep(file) from None
    if not isinstance(content, dict):
        raise WeightsError(f"{file} is no JSON object: replace it")
    for depth, _ in _nested(content):
        if depth > _JSON_DEPTH:
            raise _too_deep(file)
    return content


def read_yaml(file: Path) -> object:
    """What a YAML file holds.

    Raises:
        WeightsError: it is too large, has an alias, or is no YAML.
        OSError: it can't be read.
    """
    check_file(file, _YAML_BYTES)
    try:
        return yaml.load(file.read_text(), _WithoutAliases)  # noqa: S506 - a SafeLoader
    except RecursionError:
        raise _too_deep(file) from None
    except _AliasError:
        raise WeightsError(
            f"{file} has an alias, and a few of them can stand for gigabytes: write out what it "
            "stands for"
        ) from None
    except OSError:
        raise
    except Exception as error:  # PyYAML raises many kinds for values that it can't make
        raise WeightsError(f"{file} is no YAML: replace it ({type(error).__name__})") from None


def check_sizes(file: Path, config: Mapping[str, Any]) -> None:
    """Check the numbers of a model's configuration that libraries make lists and tensors of.

    Raises:
        WeightsError: a layer count or a size, here or in a part, is larger than any model's.
    """
    for _, part in _nested(config):
        for name, value in part.items() if isinstance(part, dict) else ():
            most = _MOST.get(name, MOST_LAYERS if _LAYERS.search(name) else None)
            if isinstance(value, int | float) and most is not None and abs(value) > most:
                raise WeightsError(
                    f"{file} has {brief(name)}: {brief(value)}, and {most} is the most: correct it"
                )


def _nested(content: object) -> Iterator[tuple[int, Any]]:
    """The objects and lists of what JSON held, each with how deep it is."""
    left: list[tuple[int, Any]] = [(1, content)]
    while left:
        depth, part = left.pop()
        yield depth, part
        inner = part.values() if isinstance(part, dict) else part
        left += [(depth + 1, value) for value in inner if isinstance(value, dict | list)]


def _too_deep(file: Path) -> WeightsError:
    return WeightsError(f"{file} is nested too deeply to be read: replace it")


class _AliasError(Exception):
    """A YAML file has an alias."""


class _WithoutAliases(yaml.SafeLoader):
    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise _AliasError
        return super().compose_node(parent, index)

"""The files of graphs: which they are, and their metadata. The rest of a file is left unread.

A file may come from anybody. What is wrong with it is a `ViewerError` that names the file.
"""

import gzip
import json
import math
import re
import stat
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import orjson

from viewer.wrong_files import what_it_is

_HEAD_BYTES = 1_000_000
# A file whose metadata don't come first is read whole, at several times its size in memory. The
# worker's and Neuronpedia's begin with them.
_LARGEST_READ_WHOLE = 300_000_000
_LONGEST_NAME = 100
_GZIP = b"\x1f\x8b"


def _is_number(value: object) -> bool:
    try:
        return isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:  # an integer that no float can be
        return False


# The metadata that the page or this server reads before the page has the document.
_REQUIRED: Mapping[str, type] = {"slug": str, "scan": str, "prompt": str, "prompt_tokens": list}
_OPTIONAL: Mapping[str, Callable[[object], bool]] = {
    "title_prefix": lambda value: isinstance(value, str),
    "node_threshold": _is_number,
}


class ViewerError(Exception):
    """There is nothing to show; the message says why and what to do."""


@dataclass(frozen=True)
class Graph:
    """A graph document on disk. `name` identifies it in the addresses of the viewer's server."""

    name: str
    path: Path
    metadata: Mapping[str, Any]


def read_graphs(paths: Sequence[Path]) -> list[Graph]:
    """The graphs in these files, with their metadata. The rest of a file is not read.

    Raises:
        ViewerError: there is none, or a file is no graph document.
    """
    if not paths:
        raise ViewerError("name the file of a graph; `make run` writes one into out/")
    graphs: list[Graph] = []
    for path in paths:
        metadata = _read_metadata(path)
        slug = re.sub(r"[^a-zA-Z0-9_-]+", "-", metadata["slug"])[:_LONGEST_NAME] or "graph"
        taken = {graph.name for graph in graphs}
        names = [slug, *(f"{slug}-{number}" for number in range(2, len(paths) + 1))]
        graphs.append(Graph(next(n for n in names if n not in taken), path, metadata))
    return graphs


def shortest_names(paths: Sequence[Path]) -> list[str]:
    """The files' names, each with as many of its folders as it takes to tell them all apart.

    A file that is there twice has a number after its path.
    """
    parts = [path.absolute().parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-length:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{path} ({number})" for number, path in enumerate(paths, 1)]


def is_gzipped(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_GZIP)) == _GZIP


def _read_metadata(path: Path) -> Mapping[str, Any]:
    metadata: Any = None
    content = b""
    try:
        # Reading a pipe or a device may never end.
        if not stat.S_ISREG(path.stat().st_mode) and not path.is_dir():
            raise ViewerError(f"{path}: not a file that can be read twice; save it in one first")
        with gzip.open(path) if is_gzipped(path) else path.open("rb") as file:
            content = file.read(_HEAD_BYTES)
            metadata = _leading_metadata(content)
            if metadata is None:
                rest = file.read(_LARGEST_READ_WHOLE + 1)
                if len(rest) > _LARGEST_READ_WHOLE:
                    raise ViewerError(
                        f"{path}: does not begin with its metadata, and has more than "
                        f"{_LARGEST_READ_WHOLE / 1e6:.0f} MB; put `metadata` first in the document"
                    )
                content += rest
                metadata = orjson.loads(content)["metadata"]
    except OSError as error:
        raise ViewerError(f"{path}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, IndexError, EOFError, zlib.error):
        pass
    if not isinstance(metadata, dict) or any(
        not isinstance(metadata.get(name), kind) for name, kind in _REQUIRED.items()
    ):
        raise ViewerError(f"{path}: no graph document: {what_it_is(content)}")
    for name, is_right in _OPTIONAL.items():
        if metadata.get(name) is not None and not is_right(metadata[name]):
            raise ViewerError(f"{path}: no graph document, its metadata have an odd {name}")
    return metadata


def _leading_metadata(head: bytes) -> Any:
    """The metadata of a document that begins with its metadata, as the worker's do; else None.

    Raises:
        ValueError: they hold what is no JSON, or nothing that a graph has.
    """
    match = re.match(rb'\s*\{\s*"metadata"\s*:\s*', head)
    if match is None:
        return None
    text = head[match.end() :].decode(errors="ignore")
    try:
        return json.JSONDecoder(parse_constant=_refuse).raw_decode(text)[0]
    except json.JSONDecodeError:
        return None
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")

"""A graph's file on this machine, read and checked. It may come from anybody."""

import gzip
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from pydantic import ValidationError

from remote.errors import WrongFile
from remote.graphs.document import GraphNode, Part
from remote.graphs.origin import Origin
from remote.torch_file import begins_as_torch_s

# As much as the client takes from a worker. A document takes some ten times this much memory.
_LARGEST_BYTES = 500_000_000
_GZIP = b"\x1f\x8b"


class Metadata(Part):
    slug: str = ""
    scan: str = ""
    prompt: str = ""
    prompt_tokens: list[str]
    node_threshold: float | None = None
    attribution_targets: Any = None


class _Document(Part):
    metadata: Metadata
    nodes: list[GraphNode]
    links: list[dict[str, Any]]
    qParams: Any = None  # noqa: N815 - the document's name


@dataclass(frozen=True)
class Link:
    source: str
    target: str
    weight: float


@dataclass(frozen=True)
class GraphFile:
    """A graph that was read. Its nodes have ids of their own, and links end at nodes.

    `fields` are the nodes with everything that the document says of them, `metadata_fields` the
    metadata, `parameters` its `qParams`, unchecked.
    """

    path: Path
    metadata: Metadata
    metadata_fields: dict[str, Any]
    nodes: list[GraphNode]
    fields: list[dict[str, Any]]
    _links: list[dict[str, Any]]
    parameters: Any = None

    @property
    def origin(self) -> Origin:
        return Origin.of(self.path, self.metadata_fields)

    def links(self) -> Iterator[Link]:
        for link in self._links:
            yield Link(link["source"], link["target"], float(link["weight"]))


def read_graph(path: Path) -> GraphFile:
    """Read a graph document, gzipped or not.

    Raises:
        WrongFile: there is none in the file, or it is not whole.
    """
    content = content_of(path)
    try:
        fields = orjson.loads(content)
        document = _Document.model_validate(fields)
    except orjson.JSONDecodeError:
        hint = "; it is circuit-tracer's own file of a graph, and this command reads its JSON"
        rest = hint if begins_as_torch_s(content) else ""
        raise WrongFile(f"{path}: it is no JSON{rest}") from None
    except ValidationError as error:
        where = ".".join(map(str, error.errors(include_url=False)[0]["loc"])) or "the document"
        raise WrongFile(f"{path}: no graph document, {where} is not as a graph's is") from None
    _check_ends(path, document)
    return GraphFile(
        path,
        document.metadata,
        fields["metadata"],
        document.nodes,
        fields["nodes"],
        document.links,
        document.qParams,
    )


def content_of(path: Path) -> bytes:
    """What is in a file, unpacked where it is gzipped.

    Raises:
        WrongFile: it can't be read.
    """
    try:
        content = _content(path)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise WrongFile(f"{path}: it can't be unpacked, it is not a whole gzipped file") from None
    except OSError as error:
        raise WrongFile(f"{path}: {error.strerror or type(error).__name__}") from None
    if len(content) > _LARGEST_BYTES:
        raise WrongFile(f"{path}: it has more than {_LARGEST_BYTES / 1e6:.0f} MB")
    return content


def _content(path: Path) -> bytes:
    with path.open("rb") as file:
        is_gzipped = file.read(len(_GZIP)) == _GZIP
    with gzip.open(path) if is_gzipped else path.open("rb") as file:
        return file.read(_LARGEST_BYTES + 1)


def _check_ends(path: Path, document: _Document) -> None:
    ids = {node.node_id for node in document.nodes}
    if len(ids) != len(document.nodes):
        raise WrongFile(f"{path}: two of its nodes have the same node_id, or have none")
    for number, link in enumerate(document.links):
        weight = link.get("weight")
        if not isinstance(weight, int | float) or not math.isfinite(weight):
            raise WrongFile(f"{path}: link {number} has no weight that is a number")
        for end in ("source", "target"):
            if not isinstance(link.get(end), str) or link[end] not in ids:
                raise WrongFile(f"{path}: the {end} of link {number} is none of the nodes")

"""A graph in forms that other programs read: GraphML, and CSV of its nodes and its links."""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal
from xml.sax.saxutils import escape, quoteattr

from remote.download import replacing
from remote.graphs.features import key_of, own_label
from remote.graphs.node_names import Names, feature_name, feature_names, name_of
from remote.graphs.reading import GraphFile, read_graph
from remote.labels.labels import Labels

# The attributes of a node with their GraphML types. One that the document hasn't is left out.
NODE_FIELDS: Mapping[str, str] = {
    "feature_type": "string",
    "layer": "string",  # "E" of embeddings
    "index": "long",  # of a feature in its transcoder or Lorsa
    "kind": "string",  # of a feature: transcoder or lorsa
    "ctx_idx": "int",  # the position in the prompt
    "token": "string",  # that is there
    "label": "string",  # `clerp` of the document, or else what the feature does, where known
    "influence": "double",
    "activation": "double",
    "token_prob": "double",
    "is_target_logit": "boolean",
}
_GRAPH_FIELDS = ("slug", "scan", "prompt")
# XML 1.0 has no way to write these.
_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_NAMESPACE = "http://graphml.graphdrawing.org/xmlns"


def export(
    graph: Path,
    form: Literal["graphml", "csv"],
    path: Path | None = None,
    labels: Labels | None = None,
) -> list[Path]:
    """Write a graph's file in another form, and return the files.

    Args:
        path: the GraphML file, or the folder of the CSV files; beside the graph when None.
        labels: where features' names come from that aren't the demo's; None: from nowhere.

    Raises:
        WrongFile: there is no graph in the file.
        OSError: what is written can't be.
    """
    read = read_graph(graph)
    features = (node for node in read.nodes if key_of(node) is not None and not own_label(node))
    strongest = sorted(features, key=lambda node: node.influence or 0.0)  # it is cumulative
    names = feature_names(read.metadata_fields, map(name_of, strongest), labels)
    if form == "csv":
        return write_csv(read, path or beside(graph, "-csv"), names)
    path = path or beside(graph, ".graphml")
    write_graphml(read, path, names)
    return [path]


def beside(graph: Path, ending: str) -> Path:
    """A path beside a graph's file, with another ending."""
    return graph.with_name(graph.name.removesuffix(".gz").removesuffix(".json") + ending)


def write_graphml(graph: GraphFile, path: Path, names: Names) -> None:
    """Write nodes and links, with what the document says of them, as a directed graph."""
    with replacing(path) as file:
        file.writelines(text.encode() for text in _graphml(graph, names))


def write_csv(graph: GraphFile, folder: Path, names: Names) -> list[Path]:
    """Write `nodes.csv` and `links.csv` into a folder, and return them."""
    nodes = ([name, *map(values.get, NODE_FIELDS)] for name, values in _nodes(graph, names))
    links = ([link.source, link.target, link.weight] for link in graph.links())
    return [
        _write_table(folder / "nodes.csv", ["node_id", *NODE_FIELDS], nodes),
        _write_table(folder / "links.csv", ["source", "target", "weight"], links),
    ]


def _write_table(path: Path, names: list[str], rows: Iterable[list[Any]]) -> Path:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(names)
    writer.writerows(rows)
    with replacing(path) as file:
        file.write(text.getvalue().encode())
    return path


def _nodes(graph: GraphFile, names: Names) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each node's id and those of NODE_FIELDS that it has."""
    tokens = graph.metadata.prompt_tokens
    for node, fields in zip(graph.nodes, graph.fields, strict=True):
        values = {name: fields[name] for name in NODE_FIELDS if fields.get(name) is not None}
        values |= {"layer": node.layer, "label": node.clerp or ""}
        key = key_of(node)
        if key is not None:
            values["label"] = own_label(node) or feature_name(node, names) or node.clerp or ""
            values |= {"index": key.index, "kind": key.kind}
        if 0 <= node.ctx_idx < len(tokens):
            values["token"] = tokens[node.ctx_idx]
        yield (
            node.node_id,
            {name: value for name, value in values.items() if _fits(value, NODE_FIELDS[name])},
        )


def _fits(value: object, kind: str) -> bool:
    """Whether a value is of its attribute's type; another program would refuse the whole file."""
    if kind == "boolean" or isinstance(value, bool):
        return kind == "boolean" and isinstance(value, bool)
    if kind == "string":
        return isinstance(value, str)
    if kind == "double":
        return isinstance(value, int | float)
    return isinstance(value, int) and abs(value) < (1 << 31 if kind == "int" else 1 << 63)


def _graphml(graph: GraphFile, names: Names) -> Iterator[str]:
    yield f'<?xml version="1.0" encoding="UTF-8"?>\n<graphml xmlns="{_NAMESPACE}">\n'
    for name in _GRAPH_FIELDS:
        yield _key("graph", name, "string")
    for name, kind in NODE_FIELDS.items():
        yield _key("node", name, kind)
    yield _key("edge", "weight", "double")
    yield '<graph edgedefault="directed">\n'
    for name in _GRAPH_FIELDS:
        yield _data("graph", name, getattr(graph.metadata, name)) + "\n"
    for name, values in _nodes(graph, names):
        data = "".join(_data("node", key, value) for key, value in values.items())
        yield f"<node id={_quoted(name)}>{data}</node>\n"
    for link in graph.links():
        ends = f"source={_quoted(link.source)} target={_quoted(link.target)}"
        yield f"<edge {ends}>{_data('edge', 'weight', link.weight)}</edge>\n"
    yield "</graph>\n</graphml>\n"


def _key(owner: str, name: str, kind: str) -> str:
    return f'<key id="{owner}_{name}" for="{owner}" attr.name="{name}" attr.type="{kind}"/>\n'


def _data(owner: str, name: str, value: object) -> str:
    text = str(value).lower() if isinstance(value, bool) else _in_xml(str(value))
    return f'<data key="{owner}_{name}">{text}</data>'


def _in_xml(text: str) -> str:
    # A parser makes a bare \r, and \r\n, a \n.
    return escape(_without_controls(text), {"\r": "&#13;"})


def _quoted(text: str) -> str:
    return quoteattr(_without_controls(text))


def _without_controls(text: str) -> str:
    return _NOT_IN_XML.sub(lambda found: repr(found[0])[1:-1], text)

"""A pruned graph -> the graph document: nodes, links, metadata, JSON bytes.

The document of a circuit-tracer graph holds what `circuit_tracer.utils.create_graph_files` puts in
it (`create_nodes`, `create_used_nodes_and_edges`, `frontend.graph_models`); ids and labels differ
where `graphs.nodes` says so. That of a complete replacement model's graph has Neuronpedia's form,
which is in `graphs.complete_nodes`. Numbers have the fewest digits that give the same float32.

A document is encoded in chunks: beyond the arrays, one chunk and the node ids are in memory.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import orjson

from errors import Internal, InvalidInput, NotFinite
from graphs.complete_nodes import CompleteNodes
from graphs.document_nodes import DocumentNodes
from graphs.flow import Floats, Integers
from graphs.nodes import Nodes
from graphs.supernodes import Subgraph

if TYPE_CHECKING:
    from attribution import PrunedGraph
    from attribution.complete.graph import QKTraces

ITEMS_PER_CHUNK = 4_096  # 0.3 MB of JSON
NO_SUBGRAPH = Subgraph([], [])


@dataclass(frozen=True)
class Document:
    """A graph document that is checked and counted, and not yet encoded."""

    num_nodes: int
    num_links: int
    num_tokens: int
    _opening: bytes = field(repr=False)
    _nodes: DocumentNodes = field(repr=False)
    _pruned: "PrunedGraph" = field(repr=False)

    def encode(self) -> Iterator[bytes]:
        """Yield the document's JSON, UTF-8, in chunks of a MB or two. Each call starts anew."""
        yield self._opening + b',"nodes":['
        yield from _node_chunks(self._nodes)
        yield b'],"links":['
        yield from _link_chunks(self._pruned, self._nodes)
        yield b"]"
        yield from _qk_only_chunks(self._nodes)
        yield b"}"


def build(
    pruned: "PrunedGraph",
    metadata: Mapping[str, Any],
    logit_tokens: Mapping[int, str],
    logit_positions: Mapping[int, int] = MappingProxyType({}),
    subgraph: Subgraph = NO_SUBGRAPH,
) -> Document:
    """Decide what is in the document, as the library does, and check that JSON can express it.

    Embeddings and logits are always in, features and errors when they have a link, links when
    both their nodes are in `node_mask`.

    Args:
        metadata: the document's, with a string for each position in `prompt_tokens`.
        logit_tokens: token strings by index in the vocabulary, see `Nodes`.
        logit_positions: by the same index, of logits that aren't at the last position.
        subgraph: what the document opens with.

    Raises:
        NotFinite: a number is NaN or infinite.
        Internal: `prompt_tokens` doesn't have a string for each position.
        InvalidInput: a token is an attribution target twice, or a text holds half of a surrogate
            pair, which UTF-8 can't express.
    """
    return _assembled(
        pruned, metadata, subgraph, lambda rows: Nodes(pruned, rows, logit_tokens, logit_positions)
    )


def build_complete(
    pruned: "PrunedGraph",
    metadata: Mapping[str, Any],
    logit_tokens: Mapping[int, str],
    traces: "QKTraces",
    logit_positions: Mapping[int, int] = MappingProxyType({}),
    subgraph: Subgraph = NO_SUBGRAPH,
) -> Document:
    """Do the same for a complete replacement model's graph, with the traces of its attention.

    Contributors of a trace that are no nodes of the document are listed apart, in `qk_only_nodes`,
    which is there if it has any.

    Args:
        pruned: its graph is a `CompleteGraph`.
        traces: by the row of the node that is traced; empty without tracing.

    Raises:
        NotFinite, Internal, InvalidInput: as `build`.
    """
    tokens = metadata["prompt_tokens"]
    return _assembled(
        pruned,
        metadata,
        subgraph,
        lambda rows: CompleteNodes(pruned, rows, tokens, logit_tokens, traces, logit_positions),
    )


def _assembled(
    pruned: "PrunedGraph",
    metadata: Mapping[str, Any],
    subgraph: Subgraph,
    nodes_of: Callable[[npt.NDArray[np.intp]], DocumentNodes],
) -> Document:
    """Return the document with the nodes that `nodes_of` makes of its rows."""
    n_pos, n_tokens = pruned.graph.n_pos, len(metadata["prompt_tokens"])
    if n_tokens != n_pos:
        raise Internal(f"the document has {n_tokens} prompt_tokens, the graph {n_pos} positions")
    rows, num_links = _used_rows(pruned)
    nodes = nodes_of(rows)
    scores = np.array([pruned.replacement_score, pruned.completeness_score], dtype=np.float32)
    for name, values in (*nodes.numbers(), ("graph_scores", scores)):
        _refuse_non_finite(pruned, name, values)
    _dumps(nodes.labels)  # refuses what `encode` could not encode
    view = _q_params(subgraph, nodes)
    opening = _dumps({"metadata": metadata, "qParams": view}).removesuffix(b"}")
    return Document(len(nodes), num_links, n_pos, opening, nodes, pruned)


def _q_params(subgraph: Subgraph, nodes: DocumentNodes) -> dict[str, object]:
    """The state in which a viewer opens the document."""
    ids = dict(zip(nodes.rows.tolist(), nodes.ids, strict=True))
    return {
        "pinnedIds": [ids[row] for row in subgraph.pinned],
        "supernodes": [[name, *(ids[row] for row in rows)] for name, rows in subgraph.groups],
        "linkType": "both",
        "clickedId": "",
        "sg_pos": "",
    }


def _used_rows(pruned: "PrunedGraph") -> tuple[npt.NDArray[np.intp], int]:
    """Return which nodes the document has, as rows of the graph, and how many links."""
    used = np.zeros(len(pruned.node_mask), dtype=np.bool_)
    used[-pruned.graph.n_pos - len(pruned.graph.logit_targets) :] = True
    num_links = 0
    for targets, sources, weights in _kept_edges(pruned):
        used[targets] = used[sources] = True
        num_links += len(weights)
        _refuse_non_finite(pruned, "edge_weights", weights)
    return np.flatnonzero(used & pruned.node_mask.cpu().numpy()), num_links


def _kept_edges(pruned: "PrunedGraph") -> Iterator[tuple[Integers, Integers, Floats]]:
    """Yield (targets, sources, weights) of the edges between kept nodes, in blocks."""
    mask = pruned.node_mask.cpu().numpy()
    for start in range(0, len(pruned.edge_weights), ITEMS_PER_CHUNK):
        block = slice(start, start + ITEMS_PER_CHUNK)
        targets = pruned.edge_targets[block].cpu().numpy()
        sources = pruned.edge_sources[block].cpu().numpy()
        weights = pruned.edge_weights[block].float().cpu().numpy()
        kept = mask[targets] & mask[sources]
        yield targets[kept], sources[kept], weights[kept]


def _node_chunks(nodes: DocumentNodes) -> Iterator[bytes]:
    """Yield the JSON array of nodes, without its brackets."""
    separator, remaining = b"", iter(nodes)
    while chunk := list(islice(remaining, nodes.per_chunk)):
        yield separator + _dumps(chunk)[1:-1]
        separator = b","


def _qk_only_chunks(nodes: DocumentNodes) -> Iterator[bytes]:
    """Yield `qk_only_nodes` with its key, or nothing where there are none."""
    separator, end, remaining = b',"qk_only_nodes":{', b"", nodes.qk_only()
    while chunk := dict(islice(remaining, ITEMS_PER_CHUNK)):
        yield separator + _dumps(chunk)[1:-1]
        separator, end = b",", b"}"
    yield end


def _link_chunks(pruned: "PrunedGraph", nodes: DocumentNodes) -> Iterator[bytes]:
    """Yield the JSON array of links, without its brackets, in the order of the edges.

    orjson formats the weights only: a dict for each link takes 1.4 times as long.
    """
    separator = b""
    source_parts, target_parts = np.empty((2, len(pruned.node_mask)), dtype=object)  # by row
    source_parts[nodes.rows] = [b'{"source":"%b"' % i.encode() for i in nodes.ids]
    target_parts[nodes.rows] = [b',"target":"%b","weight":' % i.encode() for i in nodes.ids]
    for targets, sources, weights in _kept_edges(pruned):
        if len(weights):
            numbers = np.array(_dumps(weights)[1:-1].split(b","), dtype=object)
            links = source_parts[sources] + target_parts[targets] + numbers
            yield separator + b"},".join(links) + b"}"
            separator = b","


def _dumps(value: object) -> bytes:
    try:
        return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    except orjson.JSONEncodeError as error:
        if "surrogate" not in str(error):
            raise
    raise InvalidInput(
        "a text of the graph (prompt, slug_identifier, user_id or a token) holds half of a "
        "surrogate pair, which JSON in UTF-8 can't express; remove it"
    )


def _refuse_non_finite(pruned: "PrunedGraph", name: str, values: Floats) -> None:
    """Raise NotFinite when a number is one that JSON doesn't have."""
    bad = values.size - int(np.count_nonzero(np.isfinite(values)))
    if bad:
        raise NotFinite.of(f"{bad} of {values.size} {name} of the graph", pruned.graph.cfg.dtype)

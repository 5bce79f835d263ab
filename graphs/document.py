"""A pruned graph -> the graph document: nodes, links, JSON bytes.

What is in it is what `circuit_tracer.utils.create_graph_files` puts in it (`create_nodes`,
`create_used_nodes_and_edges`, `frontend.graph_models`), with three differences:

- Error nodes are called `{layer}_-1_{position}`. The library's `0_{layer}_{position}` is also the
  id of the layer-0 feature of index `layer`. The new form is upstream's own correction
  (circuit-tracer pull request 100): the `layer_index_position` of every node, with the -1 that an
  error's `feature` has, so whatever splits ids at `_` reads layer and position from it.
- A logit's label shows its token as `DocumentInfo.logit_tokens` has it. The library's comes from
  `decode([id])`, which loses spaces and turns parts of characters into U+FFFD.
- Numbers have the fewest digits that give the same float32.

Links never become Python objects: orjson formats a block of weights, pyarrow joins them to the
ids, and a chunk of bytes comes out. What is held beyond the arrays is one block and the node ids.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from errors import Internal, InvalidInput, NotFinite

if TYPE_CHECKING:
    from circuit_tracer.graph import Graph

    from attribution import PrunedGraph

LINKS_PER_BLOCK = 32_768  # about 2 MB of JSON
NODES_PER_BLOCK = 4_096

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Generator:
    """What made the document."""

    name: str
    version: str
    url: str


@dataclass(frozen=True)
class DocumentInfo:
    """What the metadata says that isn't in the graph. What is None is left out of the document."""

    slug: str
    scan: str  # the Neuronpedia model id
    prompt: str
    prompt_tokens: Sequence[str]  # one string a position
    node_threshold: float
    edge_threshold: float
    generation_settings: Mapping[str, object]
    transcoder_set: str
    generator: Generator
    create_time_ms: int  # Unix time
    transcoder_list: Sequence[str] = ()
    source_urls: Sequence[str] = ()
    weight_revisions: Sequence[str] | None = None  # owner/name[/folder]@commit
    creator_name: str | None = None
    creator_url: str | None = None
    neuronpedia_source_set: str | None = None
    timings_ms: Mapping[str, float] | None = None  # of the stages before this one
    # By index in the vocabulary. What isn't in it, such as a difference of logits, keeps its label.
    logit_tokens: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Document:
    """A graph document that is checked and counted, and not yet encoded."""

    num_nodes: int
    num_links: int
    num_tokens: int
    _opening: bytes = field(repr=False)
    _nodes: "_Nodes" = field(repr=False)
    _pruned: "PrunedGraph" = field(repr=False)

    def encode(self) -> Iterator[bytes]:
        """Yield the document's JSON, UTF-8, in chunks of a few MB. Each call starts anew."""
        yield self._opening + b',"nodes":['
        yield from self._nodes.encode()
        yield b'],"links":['
        yield from _encode_links(self._pruned, self._nodes)
        yield b"]}"


def build(pruned: "PrunedGraph", info: DocumentInfo) -> Document:
    """Decide what is in the document, as the library does, and check that JSON can say it.

    Embeddings and logits are always in, features and errors when they have a link, links when
    both their nodes are in `node_mask`.

    Raises:
        NotFinite: a number is NaN or infinite.
        Internal: `prompt_tokens` doesn't have a string for each position.
        InvalidInput: a token is an attribution target twice, or a text holds half of a surrogate
            pair, which UTF-8 can't express.
    """
    if len(info.prompt_tokens) != pruned.graph.n_pos:
        raise Internal(
            f"the document has {len(info.prompt_tokens)} prompt_tokens, "
            f"the graph {pruned.graph.n_pos} positions"
        )
    used, num_links = _used_nodes(pruned)
    nodes = _Nodes.of(pruned, np.flatnonzero(used), info.logit_tokens)
    opening = _dumps({"metadata": _metadata(pruned, info), "qParams": _Q_PARAMS})
    _dumps(list(nodes.logit_labels))
    return Document(
        len(nodes.ids), num_links, pruned.graph.n_pos, opening.removesuffix(b"}"), nodes, pruned
    )


_Q_PARAMS: Mapping[str, object] = {
    "pinnedIds": [],
    "supernodes": [],
    "linkType": "both",
    "clickedId": "",
    "sg_pos": "",
}


def _metadata(pruned: "PrunedGraph", info: DocumentInfo) -> dict[str, object]:
    scores = {
        "replacement_score": pruned.replacement_score,
        "completeness_score": pruned.completeness_score,
    }
    _refuse_non_finite(pruned, "graph_scores", np.array(list(scores.values()), dtype=np.float32))
    metadata: dict[str, object] = {
        "slug": info.slug,
        "scan": info.scan,
        "transcoder_list": list(info.transcoder_list),
        "prompt_tokens": list(info.prompt_tokens),
        "prompt": info.prompt,
        "node_threshold": info.node_threshold,
        "schema_version": 1,
        "info": _without_none(
            creator_name=info.creator_name,
            creator_url=info.creator_url,
            source_urls=list(info.source_urls),
            transcoder_set=info.transcoder_set,
            weight_revisions=info.weight_revisions,
            generator=info.generator,
            create_time_ms=info.create_time_ms,
            timings_ms=info.timings_ms,
        ),
        "generation_settings": _without_none(**info.generation_settings),
        "pruning_settings": {
            "node_threshold": info.node_threshold,
            "edge_threshold": info.edge_threshold,
        },
        "graph_scores": scores,
    }
    if info.neuronpedia_source_set is not None:
        metadata["feature_details"] = {"neuronpedia_source_set": info.neuronpedia_source_set}
    return metadata


def _without_none(**fields: object) -> dict[str, object]:
    return {name: value for name, value in fields.items() if value is not None}


def _used_nodes(pruned: "PrunedGraph") -> tuple[npt.NDArray[np.bool_], int]:
    """Return which nodes the document has, (n_nodes,), and how many links."""
    graph = pruned.graph
    mask = pruned.node_mask.cpu().numpy()
    linked = np.zeros_like(mask)
    linked[-graph.n_pos - len(graph.logit_targets) :] = True
    num_links = 0
    for targets, sources, weights in _edge_blocks(pruned):
        kept = mask[targets] & mask[sources]
        linked[targets[kept]] = True
        linked[sources[kept]] = True
        num_links += int(np.count_nonzero(kept))
        _refuse_non_finite(pruned, "edge_weights", weights[kept])
    return mask & linked, num_links


def _edge_blocks(pruned: "PrunedGraph") -> Iterator[tuple[Integers, Integers, Floats]]:
    """Yield (targets, sources, weights) of a block of edges after the other."""
    for start in range(0, len(pruned.edge_weights), LINKS_PER_BLOCK):
        block = slice(start, start + LINKS_PER_BLOCK)
        yield (
            pruned.edge_targets[block].cpu().numpy(),
            pruned.edge_sources[block].cpu().numpy(),
            pruned.edge_weights[block].float().cpu().numpy(),
        )


@dataclass(frozen=True)
class _Nodes:
    """The document's nodes in columns, each of shape (num_nodes,), in the graph's order."""

    rows: npt.NDArray[np.intp]  # their rows in the graph
    ends: tuple[int, int, int]  # where features, errors and embeddings end
    ids: list[str]
    layer: list[str]
    index: Integers  # in the transcoder, -1 for errors; in the vocabulary for embeddings, logits
    position: Integers
    influence: Floats
    activation: Floats  # of features only
    logit_probabilities: Floats  # (n_logits,)
    logit_labels: tuple[str, ...]

    @classmethod
    def of(
        cls, pruned: "PrunedGraph", rows: npt.NDArray[np.intp], logit_tokens: Mapping[int, str]
    ) -> "_Nodes":
        graph = pruned.graph
        n_features = len(graph.selected_features)
        token_row = n_features + graph.cfg.n_layers * graph.n_pos
        first_rows = [n_features, token_row, token_row + graph.n_pos]
        feature_end, error_end, token_end = np.searchsorted(rows, first_rows).tolist()

        layer, index, position = _coordinates(graph, rows)
        names = [str(number) for number in layer.tolist()]
        names[error_end:token_end] = ["E"] * (token_end - error_end)
        coordinates = zip(names, index.tolist(), position.tolist(), strict=True)
        ids = [f"{name}_{i}_{p}" for name, i, p in coordinates]
        _refuse_shared_ids(ids)

        chosen = graph.selected_features.cpu()[rows[:feature_end]]
        activation = graph.activation_values.cpu()[chosen].float().numpy()
        influence = pruned.cumulative_scores.float().cpu().numpy()[rows]
        probabilities = graph.logit_probabilities.float().cpu().numpy()
        _refuse_non_finite(pruned, "activation_values", activation)
        _refuse_non_finite(pruned, "cumulative_scores", influence)
        _refuse_non_finite(pruned, "logit_probabilities", probabilities)
        labels = tuple(
            f'Output "{logit_tokens.get(target.vocab_idx, target.token_str)}" (p={probability:.3f})'
            for target, probability in zip(graph.logit_targets, probabilities.tolist(), strict=True)
        )
        ends = feature_end, error_end, token_end
        return cls(
            rows, ends, ids, names, index, position, influence, activation, probabilities, labels
        )

    def encode(self) -> Iterator[bytes]:
        """Yield the items of the JSON array of nodes."""
        separator = b""
        for start in range(0, len(self.ids), NODES_PER_BLOCK):
            stop = min(start + NODES_PER_BLOCK, len(self.ids))
            yield separator + _dumps([self._node(at) for at in range(start, stop)])[1:-1]
            separator = b","

    def _node(self, at: int) -> dict[str, object]:
        """Return a node as `circuit_tracer.frontend.graph_models.Node` has it."""
        feature_end, error_end, token_end = self.ends
        layer, index, position = self.layer[at], int(self.index[at]), int(self.position[at])
        node: dict[str, object] = {
            "node_id": self.ids[at],
            "feature": index,
            "layer": layer,
            "ctx_idx": position,
            "feature_type": "cross layer transcoder",
            "token_prob": 0.0,
            "is_target_logit": False,
            "run_idx": 0,
            "reverse_ctx_idx": 0,
            "jsNodeId": f"{layer}_{index}-0",
            "clerp": "",
            "influence": self.influence[at],
            "activation": None,
        }
        if at < feature_end:
            node["feature"] = cantor_pairing(int(layer), index)
            node["activation"] = self.activation[at]
        elif at < error_end:
            node["feature_type"] = "mlp reconstruction error"
            node["jsNodeId"] = f"{layer}_{position}-0"
        elif at < token_end:
            node["feature"] = position
            node["feature_type"] = "embedding"
            node["jsNodeId"] = f"E_{index}-{position}"
        else:
            logit = at - token_end
            node["feature_type"] = "logit"
            node["token_prob"] = self.logit_probabilities[logit]
            node["is_target_logit"] = logit == 0
            node["jsNodeId"] = f"L_{index}-{position}"
            node["clerp"] = self.logit_labels[logit]
            node["influence"] = None
        return node


def _coordinates(graph: "Graph", rows: npt.NDArray[np.intp]) -> tuple[Integers, Integers, Integers]:
    """Return layer, index and position of the nodes in these rows of the graph, ascending.

    An error's index is -1. An embedding's layer says nothing.
    """
    n_features = len(graph.selected_features)
    token_row = n_features + graph.cfg.n_layers * graph.n_pos
    logit_row = token_row + graph.n_pos
    features, errors, tokens, logits = np.split(
        rows, np.searchsorted(rows, [n_features, token_row, logit_row])
    )
    chosen = graph.selected_features.cpu()[features]
    feature = graph.active_features.cpu()[chosen].numpy().reshape(-1, 3)
    error_layer, error_position = np.divmod(errors - n_features, graph.n_pos)
    token_position = tokens - token_row
    token_index = graph.input_tokens.cpu().numpy()[token_position]
    vocabulary = np.array([target.vocab_idx for target in graph.logit_targets], dtype=np.int64)
    logit_layer = np.full_like(logits, graph.cfg.n_layers + 1)
    logit_position = np.full_like(logits, graph.n_pos - 1)
    return (
        np.concatenate([feature[:, 0], error_layer, np.zeros_like(tokens), logit_layer]),
        np.concatenate(
            [feature[:, 2], np.full_like(errors, -1), token_index, vocabulary[logits - logit_row]]
        ),
        np.concatenate([feature[:, 1], error_position, token_position, logit_position]),
    )


def cantor_pairing(layer: int, index: int) -> int:
    """Return the one integer that stands for a feature, as Neuronpedia decodes it."""
    return (layer + index) * (layer + index + 1) // 2 + index


# orjson writes a column of weights as [[w],[w]]; as {{w},{w}} each weight comes with the end of
# its own object and the beginning of the next.
_BRACKETS_TO_BRACES = bytes.maketrans(b"[]", b"{}")
_BRACE = ord("{")


def _encode_links(pruned: "PrunedGraph", nodes: _Nodes) -> Iterator[bytes]:
    """Yield the items of the JSON array of links, in the order of the edges."""
    place = np.full(len(pruned.node_mask), -1, dtype=np.int64)
    place[nodes.rows] = np.arange(len(nodes.rows))
    sources_text = _texts([f'"source":"{i}","target":"' for i in nodes.ids])
    targets_text = _texts([f'{i}","weight":' for i in nodes.ids])
    nothing_between = _texts([""])[0]
    opening = b"{"
    for targets, sources, weights in _edge_blocks(pruned):
        target_places, source_places = place[targets], place[sources]
        kept = (target_places >= 0) & (source_places >= 0)
        if not kept.any():
            continue
        joined = pc.binary_join_element_wise(
            sources_text.take(_places(source_places[kept])),
            targets_text.take(_places(target_places[kept])),
            _weights_text(weights[kept]),
            nothing_between,
        )
        _, offsets, data = joined.buffers()
        size = np.frombuffer(offsets, dtype=np.int32)[len(joined)]
        yield opening + memoryview(data)[: size - len(",{")]
        opening = b",{"


def _weights_text(weights: Floats) -> Any:
    """Return (n,) weights as an arrow array of texts, each `w},{`."""
    column = orjson.dumps(
        np.ascontiguousarray(weights).reshape(-1, 1), option=orjson.OPT_SERIALIZE_NUMPY
    )
    text = column[:-1].translate(_BRACKETS_TO_BRACES) + b",{"
    braces = np.flatnonzero(np.frombuffer(text, dtype=np.uint8) == _BRACE)
    return _arrow_texts(text, braces[1:] + 1)


# Arrow arrays are made of buffers here: `pa.array` and `pa.scalar` import pandas to know its types.


def _texts(texts: list[str]) -> Any:
    """Return texts as an arrow array."""
    encoded = [text.encode() for text in texts]
    return _arrow_texts(b"".join(encoded), np.cumsum([0, *map(len, encoded)]))


def _arrow_texts(text: bytes, offsets: Integers) -> Any:
    """Return n texts, of which (n + 1,) offsets say where they are in `text`, as an arrow array."""
    buffers = [None, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(text)]
    return pa.Array.from_buffers(pa.string(), len(offsets) - 1, buffers)


def _places(places: Integers) -> Any:
    """Return integers (n,) as an arrow array."""
    contiguous = np.ascontiguousarray(places, dtype=np.int64)
    return pa.Array.from_buffers(pa.int64(), len(places), [None, pa.py_buffer(contiguous)])


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


def _refuse_shared_ids(ids: list[str]) -> None:
    """Raise InvalidInput when two nodes have one id, as two logit nodes of one token have."""
    if len(set(ids)) != len(ids):
        twice = next(node_id for node_id, times in Counter(ids).items() if times > 1)
        raise InvalidInput(
            f"two nodes of the graph are called {twice}; name each of attribution_targets once"
        )

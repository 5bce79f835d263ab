"""The nodes of a complete replacement model's document, in Neuronpedia's form for them.

Ids, types and labels are those of its converter (`apps/graph/neuronpedia_graph/format_converter.py`
in github.com/hijohnnylin/neuronpedia). What differs on purpose is listed in docs/graph-document.md.

Sublayer `2l` is the attention of layer l, sublayer `2l + 1` its MLP. The logits come after the last
one and have the number of layers as theirs.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from graphs.document_nodes import EMBEDDING, ERROR, FEATURE, LOGIT, DocumentNodes
from graphs.nodes import cantor_pairing

if TYPE_CHECKING:
    from attribution import PrunedGraph
    from attribution.complete.graph import CompleteGraph, Contributor, QKTrace, QKTraces

LORSA, LORSA_ERROR, BIAS = "lorsa", "lorsa error", "bias"

_TRACED_NODES_PER_CHUNK = 256  # with 10 contributors each way, a trace is 1.5 kB of JSON

# Kind, sublayer, position and index: what tells a node from all others.
Place: TypeAlias = tuple[str, int, int, int]


class CompleteNodes(DocumentNodes):
    """The nodes of a complete replacement model's document, with the traces of its attention.

    Args:
        pruned: its graph is a `CompleteGraph`.
        rows: the document's nodes as rows of the graph, (n,) and ascending.
        prompt_tokens: the token string of each position.
        logit_tokens: token strings by index in the vocabulary. A logit that isn't in it keeps the
            graph's own string.
        logit_positions: by the same index, of logits that aren't at the last position: those that
            stand for a feature.
        traces: those of nodes that are not among `rows` are left out.

    Raises:
        InvalidInput: two nodes have one id, as two logit nodes of one token have.
    """

    def __init__(
        self,
        pruned: "PrunedGraph",
        rows: npt.NDArray[np.intp],
        prompt_tokens: Sequence[str],
        logit_tokens: Mapping[int, str],
        traces: "QKTraces",
        logit_positions: Mapping[int, int],
    ) -> None:
        graph = cast("CompleteGraph", pruned.graph)
        places = _places(graph, logit_positions)
        self._places = [places[row] for row in rows.tolist()]
        self._prompt_tokens = prompt_tokens
        ids = [node_id(*place) for place in self._places]
        labels = [logit_tokens.get(t.vocab_idx, t.token_str) for t in graph.logit_targets]
        super().__init__(pruned, rows, ids, labels)
        self._traces: dict[int, QKTrace] = {r: traces[r] for r in rows.tolist() if r in traces}
        if self._traces:
            self.per_chunk = _TRACED_NODES_PER_CHUNK
        self._outside = self._contributors_outside(set(ids))

    def numbers(self) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
        """Yield all numbers of the nodes, with the name that they have in the graph."""
        yield from super().numbers()
        values = [value for trace in self._traces.values() for value in _values(trace)]
        yield "qk_tracing_results", np.array(values, dtype=np.float32)
        activations = [contributor.activation or 0.0 for contributor in self._outside.values()]
        yield "qk_only_nodes' activations", np.array(activations, dtype=np.float32)

    def __iter__(self) -> Iterator[dict[str, object]]:
        first_logit = len(self) - len(self.labels)
        for i, (row, place) in enumerate(zip(self.rows.tolist(), self._places, strict=True)):
            if i >= first_logit:
                probability = self.logit_probabilities[i - first_logit]
                node = _logit(place, self.labels[i - first_logit], probability)
            else:
                node = {**_source(place, self._prompt_tokens), "token_prob": 0.0}
            node |= {
                "is_target_logit": i == first_logit,
                "run_idx": 0,
                "reverse_ctx_idx": 0,
                "influence": self.influences[i],
                "activation": self.activations[i] if i < len(self.activations) else None,
            }
            if row in self._traces:
                node["qk_tracing_results"] = _results(self._traces[row])
            yield node

    def qk_only(self) -> Iterator[tuple[str, dict[str, object]]]:
        """Yield, by their ids, the contributors of traces that are none of the nodes."""
        for name, contributor in self._outside.items():
            node = _source(_place(contributor), self._prompt_tokens)
            active = contributor.activation
            yield name, {**node, "activation": None if active is None else np.float32(active)}

    def _contributors_outside(self, ids: set[str]) -> "dict[str, Contributor]":
        """Return the contributors of traces that are none of the nodes with these ids."""
        outside: dict[str, Contributor] = {}
        for trace in self._traces.values():
            for contributor in _contributors(trace):
                name = node_id(*_place(contributor))
                if name not in ids:
                    outside[name] = contributor
        return outside


def _places(graph: "CompleteGraph", logit_positions: Mapping[int, int]) -> list[Place]:
    """Return the place of every node of a graph, by row."""
    features = graph.active_features.cpu()[graph.selected_features.cpu()].tolist()
    sublayers, positions = range(graph.n_sublayers), range(graph.n_pos)
    tokens, last = graph.input_tokens.tolist(), graph.n_pos - 1
    return [
        *(("feature", sublayer, position, index) for sublayer, position, index in features),
        *(("error", sublayer, position, -1) for sublayer in sublayers for position in positions),
        *(("embedding", -1, position, token) for position, token in enumerate(tokens)),
        *(
            ("logit", graph.n_sublayers, logit_positions.get(t.vocab_idx, last), t.vocab_idx)
            for t in graph.logit_targets
        ),
    ]


def _place(contributor: "Contributor") -> Place:
    return contributor.kind, contributor.sublayer, contributor.position, contributor.index


def node_id(kind: str, sublayer: int, position: int, index: int) -> str:
    """Return Neuronpedia's name of a node."""
    layer, is_mlp = divmod(sublayer, 2)
    if kind == "feature":
        return f"{layer}_{'cro' if is_mlp else 'lor'}_{index}_{position}"
    if kind == "error":
        return f"{layer}_error_{'mlp' if is_mlp else 'attn'}_{position}"
    if kind == "embedding":
        return f"E_{index}_{position}"
    if kind == "logit":
        return f"{layer}_{index}_{position}"
    return f"{layer}_bias_{_bias_name(kind, sublayer)}_{position}"


def _bias_name(kind: str, sublayer: int) -> str:
    """Return which bias of which module it is."""
    if kind == "bias_d":
        return "tc_bD" if sublayer % 2 else "lorsa_bD"
    return "lorsa_bQ" if kind == "bias_q" else "lorsa_bK"


def _source(place: Place, prompt_tokens: Sequence[str]) -> dict[str, object]:
    """Return what the document says of a node that is no logit, wherever it stands."""
    kind, sublayer, position, index = place
    layer, is_mlp = divmod(sublayer, 2)
    if kind == "feature":
        number = cantor_pairing(layer, index)
        return _node(place, layer, FEATURE if is_mlp else LORSA, number, f"F{number}")
    if kind == "error":
        label = f'Err: {"mlp" if is_mlp else "attn"} "{prompt_tokens[position]}"'
        return _node(place, layer, ERROR if is_mlp else LORSA_ERROR, None, label)
    if kind == "embedding":
        token = prompt_tokens[position]
        return {**_node(place, "E", EMBEDDING, None, f'Emb: "{token}"'), "token": token}
    return _node(place, layer, BIAS, None, f"L{layer} Bias ({_bias_name(kind, sublayer)})")


def _logit(place: Place, token: str, probability: np.float32) -> dict[str, object]:
    """Return what the document says of a logit. The webapp reads `(p=` in its label."""
    _, sublayer, _, index = place
    label = f'Logit "{token}" (p={probability:.3f})'
    node = _node(place, sublayer // 2, LOGIT, index, label)
    return {**node, "token": token, "token_prob": probability}


def _node(
    place: Place, layer: int | str, kind: str, feature: int | None, label: str
) -> dict[str, object]:
    name = node_id(*place)
    return {
        "node_id": name,
        "feature": feature,
        "layer": layer,
        "ctx_idx": place[2],
        "feature_type": kind,
        "jsNodeId": name,
        "clerp": label,
    }


def _results(trace: "QKTrace") -> dict[str, object]:
    """Return a trace with the ids of its contributors."""
    return {
        "pair_wise_contributors": [
            (node_id(*_place(query)), node_id(*_place(key)), np.float32(value))
            for query, key, value in trace.pairs
        ],
        "top_q_marginal_contributors": _marginal(trace.q_marginal),
        "top_k_marginal_contributors": _marginal(trace.k_marginal),
    }


def _marginal(contributors: "list[tuple[Contributor, float]]") -> list[tuple[str, np.float32]]:
    return [(node_id(*_place(node)), np.float32(value)) for node, value in contributors]


def _contributors(trace: "QKTrace") -> "Iterator[Contributor]":
    for query, key, _ in trace.pairs:
        yield query
        yield key
    for contributor, _ in (*trace.q_marginal, *trace.k_marginal):
        yield contributor


def _values(trace: "QKTrace") -> list[float]:
    marginals = (value for _, value in (*trace.q_marginal, *trace.k_marginal))
    return [*(value for *_, value in trace.pairs), *marginals]

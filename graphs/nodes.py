"""The nodes of a graph document, as `circuit_tracer.frontend.graph_models.Node` has them.

Two things differ from the library's `create_nodes`:

- Error nodes are called `{layer}_-1_{position}`. The library's `0_{layer}_{position}` is also the
  id of the layer-0 feature of index `layer`. The new form is upstream's own correction
  (circuit-tracer pull request 100): the `layer_index_position` of every node, with the -1 that an
  error's `feature` has, so code that splits ids at `_` reads layer and position from it.
- The label of a logit has the token string that the caller gives for it. The library's comes from
  `decode([id])`, which loses spaces and turns parts of characters into U+FFFD.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from graphs.document_nodes import EMBEDDING, ERROR, FEATURE, LOGIT, DocumentNodes

if TYPE_CHECKING:
    from circuit_tracer.graph import Graph

    from attribution import PrunedGraph


class Nodes(DocumentNodes):
    """The nodes of a circuit-tracer graph's document.

    Args:
        rows: the document's nodes as rows of the graph, (n,) and ascending.
        logit_tokens: token strings by index in the vocabulary. A logit that isn't in it, such as
            a difference of logits, keeps the graph's own string.
        logit_positions: by the same index, of logits that aren't at the last position: those that
            stand for a feature.

    Raises:
        InvalidInput: two nodes have one id, as two logit nodes of one token have.
    """

    def __init__(
        self,
        pruned: "PrunedGraph",
        rows: npt.NDArray[np.intp],
        logit_tokens: Mapping[int, str],
        logit_positions: Mapping[int, int],
    ) -> None:
        graph = pruned.graph
        of_graph = _coordinates(graph, logit_positions)
        self._coordinates = [of_graph[row] for row in rows.tolist()]
        ids = [f"{layer}_{index}_{at}" for _, layer, index, at in self._coordinates]
        probabilities = graph.logit_probabilities.float().tolist()
        labels = [
            f'Output "{logit_tokens.get(logit.vocab_idx, logit.token_str)}" (p={probability:.3f})'
            for logit, probability in zip(graph.logit_targets, probabilities, strict=True)
        ]
        super().__init__(pruned, rows, ids, labels)

    def __iter__(self) -> Iterator[dict[str, object]]:
        """Yield each node with the fields that the document has for it."""
        first_logit = len(self) - len(self.labels)
        for i, (kind, layer, index, position) in enumerate(self._coordinates):
            node: dict[str, object] = {
                "node_id": self.ids[i],
                "feature": index,
                "layer": layer,
                "ctx_idx": position,
                "feature_type": kind,
                "token_prob": 0.0,
                "is_target_logit": False,
                "run_idx": 0,
                "reverse_ctx_idx": 0,
                "jsNodeId": f"{layer}_{index}-0",
                "clerp": "",
                "influence": self.influences[i],
                "activation": None,
            }
            if kind == FEATURE:
                node["feature"] = cantor_pairing(int(layer), index)
                node["activation"] = self.activations[i]
            elif kind == ERROR:
                node["jsNodeId"] = f"{layer}_{position}-0"
            elif kind == EMBEDDING:
                node["feature"] = position
                node["jsNodeId"] = f"E_{index}-{position}"
            else:
                node["token_prob"] = self.logit_probabilities[i - first_logit]
                node["is_target_logit"] = i == first_logit
                node["jsNodeId"] = f"L_{index}-{position}"
                node["clerp"] = self.labels[i - first_logit]
                node["influence"] = None
            yield node


def _coordinates(
    graph: "Graph", logit_positions: Mapping[int, int]
) -> list[tuple[str, str, int, int]]:
    """Return kind, layer, index and position of every node of a graph, by row.

    The index is a feature's in its transcoder and a token's in the vocabulary; an error has -1.
    """
    features = graph.active_features.cpu()[graph.selected_features.cpu()].tolist()
    layers, positions = range(graph.cfg.n_layers), range(graph.n_pos)
    tokens, logits = graph.input_tokens.tolist(), graph.logit_targets
    logit_layer, last = str(graph.cfg.n_layers + 1), graph.n_pos - 1
    return [
        *((FEATURE, str(layer), index, position) for layer, position, index in features),
        *((ERROR, str(layer), -1, position) for layer in layers for position in positions),
        *((EMBEDDING, "E", token, position) for position, token in enumerate(tokens)),
        *(
            (LOGIT, logit_layer, logit.vocab_idx, logit_positions.get(logit.vocab_idx, last))
            for logit in logits
        ),
    ]


def cantor_pairing(layer: int, index: int) -> int:
    """Return the one integer that stands for a feature, as Neuronpedia decodes it."""
    return (layer + index) * (layer + index + 1) // 2 + index

"""What the nodes of every kind of document have in common."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from errors import InvalidInput

if TYPE_CHECKING:
    from attribution import PrunedGraph

FEATURE, ERROR = "cross layer transcoder", "mlp reconstruction error"
EMBEDDING, LOGIT = "embedding", "logit"


class DocumentNodes(ABC):
    """The nodes of a document in the graph's order: features, errors, embeddings, logits.

    Iterating over them yields each node with the fields that the document has for it.

    Args:
        rows: the document's nodes as rows of the graph, (n,) and ascending. All logits are in.
        ids: the id of each.
        labels: of the logits.

    Raises:
        InvalidInput: two nodes have one id, as two logit nodes of one token have.
    """

    per_chunk = 4_096  # nodes to encode at once: 1.5 MB of JSON

    def __init__(
        self,
        pruned: "PrunedGraph",
        rows: npt.NDArray[np.intp],
        ids: Sequence[str],
        labels: Sequence[str],
    ) -> None:
        if len(set(ids)) != len(ids):
            [(twice, _)] = Counter(ids).most_common(1)
            raise InvalidInput(
                f"two nodes of the graph are called {twice}; name each of attribution_targets once"
            )
        graph = pruned.graph
        self.rows, self.ids, self.labels = rows, ids, labels
        n_features = int(np.searchsorted(rows, len(graph.selected_features)))
        features = graph.selected_features.cpu()[rows[:n_features]]
        self.activations = graph.activation_values.cpu()[features].float().numpy()
        self.influences = pruned.cumulative_scores.float().cpu().numpy()[rows]
        self.logit_probabilities = graph.logit_probabilities.float().cpu().numpy()

    def __len__(self) -> int:
        return len(self.ids)

    @abstractmethod
    def __iter__(self) -> Iterator[dict[str, object]]: ...

    def numbers(self) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
        """Yield all numbers of the nodes, with the name that they have in the graph."""
        yield "activation_values", self.activations
        yield "cumulative_scores", self.influences
        yield "logit_probabilities", self.logit_probabilities

    def qk_only(self) -> Iterator[tuple[str, dict[str, object]]]:
        """Yield, by their ids, the nodes that only a trace of an attention score names."""
        return iter(())

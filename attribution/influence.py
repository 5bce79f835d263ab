"""How much each node of a graph influences the logits, and the scores that follow from it.

Ameisen et al. 2025, *Circuit Tracing*, "Node Influence" and "Graph Scores": rows of absolute edges
are normalised to sum to one, and a node's influence is the sum over all its paths to the logits,
weighted by their probabilities. Features are sorted by layer and reached from lower layers only,
so a layer's influence is complete once those above are done: one pass over the rows is enough.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from attribution.memory import ENTRIES_AT_ONCE

if TYPE_CHECKING:
    from circuit_tracer.graph import Graph

    from attribution.complete.graph import CompleteGraph

_LEAST_NORM = 1e-10


@dataclass(frozen=True)
class NodeRanges:
    """Where a graph's nodes are: features, then errors, tokens and logits."""

    n_features: int
    errors: slice
    tokens: slice
    n_logits: int

    @classmethod
    def of(cls, graph: Graph | CompleteGraph) -> NodeRanges:
        n_features, n_logits = len(graph.selected_features), len(graph.logit_targets)
        logits = len(graph.adjacency_matrix) - n_logits
        tokens = logits - len(graph.input_tokens)
        return cls(n_features, slice(n_features, tokens), slice(tokens, logits), n_logits)


def feature_layers(graph: Graph | CompleteGraph) -> torch.Tensor:
    """The layer (n_features,) of each selected feature."""
    return graph.active_features[graph.selected_features.to(graph.active_features.device), 0]


def influence_on_logits(
    feature_rows: torch.Tensor,
    logit_rows: torch.Tensor,
    logit_weights: torch.Tensor,
    layers: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return influence of each column's node (n_columns,) and each row's norm (n_rows,).

    Args:
        feature_rows: (n_features, n_columns) edges; the first columns are these same features.
        logit_rows: (n_logits, n_columns) edges.
        logit_weights: (n_logits,), their probabilities.
        layers: (n_features,), the layer of each, ascending.
    """
    norms = torch.cat([row_norms(feature_rows), row_norms(logit_rows)]).clamp(min=_LEAST_NORM)
    influence = feature_rows.new_zeros(feature_rows.shape[1])
    add_influence_(influence, logit_rows, logit_weights / norms[len(feature_rows) :])
    end = len(feature_rows)
    for size in reversed(layers.unique_consecutive(return_counts=True)[1].tolist()):
        layer = slice(end - size, end)
        add_influence_(influence, feature_rows[layer], influence[layer] / norms[layer])
        end -= size
    return influence, norms


def add_influence_(
    influence: torch.Tensor,
    rows: torch.Tensor,
    weights: torch.Tensor,
    reach: torch.Tensor | None = None,
) -> None:
    """Add to influence (n_columns,) each row's absolute entries times its weight.

    Args:
        reach: (n_rows,) on the CPU, how many of a row's first entries there are; the rest are zero.
    """
    for block, at in _absolute_blocks(rows, reach):
        influence[: block.shape[1]].addmv_(block.T, weights[at])


def row_norms(rows: torch.Tensor, reach: torch.Tensor | None = None) -> torch.Tensor:
    """The sum (n_rows,) of absolute entries of each row; `reach` is that of `add_influence_`."""
    norms = rows.new_empty(len(rows))
    for block, at in _absolute_blocks(rows, reach):
        torch.sum(block, 1, out=norms[at])
    return norms


def _absolute_blocks(
    rows: torch.Tensor, reach: torch.Tensor | None
) -> Iterator[tuple[torch.Tensor, slice]]:
    """The absolute entries of a few rows at a time, in memory that the next overwrites.

    With `reach`, as far as any row of the block reaches.
    """
    step = max(1, ENTRIES_AT_ONCE[rows.device.type] // max(1, rows.shape[1]))
    absolute = rows.new_empty(min(step, len(rows)), rows.shape[1])
    for start in range(0, len(rows), step):
        at = slice(start, min(start + step, len(rows)))
        width = rows.shape[1] if reach is None else int(reach[at].max())
        yield torch.abs(rows[at, :width], out=absolute[: at.stop - start, :width]), at


def node_influence(graph: Graph | CompleteGraph) -> tuple[torch.Tensor, float, float]:
    """Return influence (n_nodes,), replacement score and completeness score.

    A graph's two scores say how much of the logits' influence is explained by features: all the
    way from the tokens, and input by input of each node.
    """
    nodes, matrix = NodeRanges.of(graph), graph.adjacency_matrix
    feature_rows, logit_rows = matrix[: nodes.n_features], matrix[-nodes.n_logits :]
    weights = graph.logit_probabilities.to(matrix)
    influence, norms = influence_on_logits(feature_rows, logit_rows, weights, feature_layers(graph))
    from_tokens, from_errors = influence[nodes.tokens].sum(), influence[nodes.errors].sum()
    # Rows without inputs (errors and tokens) count as fully explained.
    error_inputs = torch.cat(
        [row_norms(feature_rows[:, nodes.errors]), row_norms(logit_rows[:, nodes.errors])]
    )
    reach = torch.cat([influence[: nodes.n_features], weights])
    unexplained = (error_inputs / norms * reach).sum() / (influence.sum() + weights.sum())
    replacement = from_tokens / (from_tokens + from_errors)
    return influence, replacement.item(), 1 - unexplained.item()

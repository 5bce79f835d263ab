"""What matters of a complete replacement model's graph, by llamascopium's rule.

It is that of `attribution.pruning` but for this: edges are scored before nodes are pruned, logits
take no part in the nodes' threshold, and influence shares are those of the pruned graph.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch

from attribution.influence import NodeRanges, feature_layers, influence_on_logits, node_influence
from attribution.pruning import (
    PrunedGraph,
    check_thresholds,
    drop_dead_ends,
    edge_cutoff,
    node_cutoff,
    with_edges,
)

if TYPE_CHECKING:
    import numpy.typing as npt

    from attribution.complete.graph import CompleteGraph


def prune(
    graph: CompleteGraph, node_threshold: float = 0.6, edge_threshold: float = 0.8
) -> PrunedGraph:
    """Keep the nodes and edges that make up the given fractions of influence on the logits.

    Tokens and logits are kept always. `cumulative_scores` are shares of the influence that flows
    through kept edges, 1 for a node that none leaves.

    Raises:
        errors.InvalidInput: a threshold is not between 0 and 1.
    """
    check_thresholds(node_threshold, edge_threshold)
    nodes = NodeRanges.of(graph)
    influence, replacement, completeness = node_influence(graph)
    n_sources = nodes.tokens.stop
    node_mask = torch.ones(len(influence), dtype=torch.bool)
    node_mask[:n_sources] = influence[:n_sources] >= node_cutoff(
        influence[:n_sources], node_threshold
    )
    node_mask[nodes.errors.stop :] = True
    targets, sources = _influential_edges(graph, edge_threshold)
    alive = with_edges(nodes, node_mask, targets, sources)
    ends_alive = alive[targets] & alive[sources]
    targets, sources = targets[ends_alive], sources[ends_alive]
    # llamascopium looks for dead ends only where a node has no edge at all, to whatever node.
    if not torch.equal(alive, node_mask):
        node_mask, targets, sources = drop_dead_ends(nodes, alive, targets, sources)
    weights = graph.adjacency_matrix[targets, sources]
    return PrunedGraph(
        graph,
        node_mask,
        _cumulative(graph, targets.numpy(), sources.numpy(), weights.numpy()),
        targets,
        sources,
        weights,
        replacement,
        completeness,
    )


def _influential_edges(graph: CompleteGraph, threshold: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and columns of the edges that carry `threshold` of the influence of all."""
    nodes, matrix = NodeRanges.of(graph), graph.adjacency_matrix
    weights, n_sources = graph.logit_probabilities, nodes.tokens.stop
    targets = torch.cat([torch.arange(nodes.n_features), torch.arange(n_sources, len(matrix))])
    scores = torch.empty(len(targets), n_sources)
    torch.abs(matrix[: nodes.n_features, :n_sources], out=scores[: nodes.n_features])
    torch.abs(matrix[n_sources:, :n_sources], out=scores[nodes.n_features :])
    influence, norms = influence_on_logits(
        scores[: nodes.n_features], scores[nodes.n_features :], weights, feature_layers(graph)
    )
    scores *= (torch.cat([influence[: nodes.n_features], weights]) / norms)[:, None]
    cutoff = edge_cutoff(scores, threshold)
    rows, columns = ((scores >= cutoff) & (scores > 0)).nonzero(as_tuple=True)
    return targets[rows], columns


def _cumulative(
    graph: CompleteGraph,
    targets: npt.NDArray[np.int64],
    sources: npt.NDArray[np.int64],
    weights: npt.NDArray[np.float32],
) -> torch.Tensor:
    """For each node, the share of the influence through these edges of all with at least its own.

    Edges are in row-major order, and so sorted by the layers of their targets, logits last.
    """
    nodes, n_nodes = NodeRanges.of(graph), len(graph.adjacency_matrix)
    sizes = np.abs(weights.astype(np.float64))
    shares = sizes / np.maximum(np.bincount(targets, sizes, n_nodes), 1e-10)[targets]
    arriving = np.zeros(n_nodes)
    arriving[n_nodes - nodes.n_logits :] = graph.logit_probabilities.numpy()
    starts = np.flatnonzero(np.diff(feature_layers(graph).numpy(), prepend=-1))
    ends = np.searchsorted(targets, [*starts, nodes.n_features, n_nodes])
    for start, end in reversed(list(pairwise(ends))):
        at = slice(start, end)
        arriving += np.bincount(sources[at], shares[at] * arriving[targets[at]], n_nodes)
    arriving[n_nodes - nodes.n_logits :] = 0
    order = np.argsort(-arriving, kind="stable")
    cumulative = np.ones(n_nodes, dtype=np.float32)
    total = arriving.sum()
    if total > 0:
        cumulative[order] = np.cumsum(arriving[order]) / total
    return torch.from_numpy(cumulative)

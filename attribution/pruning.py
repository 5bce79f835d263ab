"""What matters of an attribution graph: the nodes and edges that carry most of the influence.

Ameisen et al. 2025, *Circuit Tracing*, "Graph Pruning": first nodes are kept by their influence on
the logits, then edges between them by theirs. Every edge that is kept lies between kept nodes, so
edges are scored in the submatrix of those: beside the graph, peak memory is about 13 bytes x (kept
targets x kept sources).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from circuit_tracer.graph import find_threshold

import errors
from attribution.influence import (
    NodeRanges,
    feature_layers,
    influence_on_logits,
    node_influence,
)

if TYPE_CHECKING:
    from circuit_tracer.graph import Graph

    from attribution.complete.graph import CompleteGraph

_ROWS_AT_ONCE = 256
_SUMMED_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class PrunedGraph:
    """A graph and what pruning keeps of it.

    Nodes are in the graph's order: selected features, errors (layer major), tokens, logits. Both
    ends of every edge are kept nodes.
    """

    graph: Graph | CompleteGraph
    node_mask: torch.Tensor  # (n_nodes,) bool
    cumulative_scores: torch.Tensor  # (n_nodes,) float32, share of influence down to this node
    edge_targets: torch.Tensor  # (n_edges,) int64, row of each kept edge, on the CPU
    edge_sources: torch.Tensor  # (n_edges,) int64, its column; edges are in row-major order
    edge_weights: torch.Tensor  # (n_edges,) float32
    replacement_score: float
    completeness_score: float


def prune(graph: Graph, node_threshold: float = 0.8, edge_threshold: float = 0.98) -> PrunedGraph:
    """Keep the nodes and edges that make up the given fractions of influence on the logits.

    Masks and scores are those of `circuit_tracer.graph.prune_graph` and `compute_graph_scores`, to
    rounding: among millions of edges, a few at the very threshold may differ, and at a
    `node_threshold` of 1 the library may lose weak nodes.

    Raises:
        errors.InvalidInput: a threshold is not between 0 and 1.
    """
    check_thresholds(node_threshold, edge_threshold)
    nodes = NodeRanges.of(graph)
    influence, replacement, completeness = node_influence(graph)
    node_mask = influence >= node_cutoff(influence, node_threshold)
    node_mask[nodes.errors.stop :] = True  # tokens and logits always
    targets, sources = _influential_edges(graph, node_mask, edge_threshold)
    node_mask, targets, sources = drop_dead_ends(nodes, node_mask, targets, sources)
    weights = graph.adjacency_matrix[targets, sources]
    return PrunedGraph(
        graph,
        node_mask,
        _cumulative(influence),
        targets.cpu(),
        sources.cpu(),
        weights.cpu(),
        replacement,
        completeness,
    )


def check_thresholds(node_threshold: float, edge_threshold: float) -> None:
    """Raise errors.InvalidInput unless both are between 0 and 1."""
    for name, value in (("node_threshold", node_threshold), ("edge_threshold", edge_threshold)):
        if not 0 <= value <= 1:
            raise errors.InvalidInput(f"{name} is {value}; it must be between 0 and 1")


def node_cutoff(influence: torch.Tensor, threshold: float) -> torch.Tensor:
    """The influence down to which nodes are kept, so that they make up `threshold` of the sum.

    At 1 it is the least that a node has. The library's sums in float32 reach 1 where hundreds of
    weak nodes are missing, or never: that depends on how the processor rounds.
    """
    if threshold == 1:
        some = influence[influence > 0]
        return some.min() if len(some) else influence.new_zeros(())
    return find_threshold(influence, threshold)


def _influential_edges(
    graph: Graph, node_mask: torch.Tensor, threshold: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and columns of the edges between kept nodes that carry `threshold` of the influence."""
    nodes, matrix = NodeRanges.of(graph), graph.adjacency_matrix
    kept = node_mask.nonzero().flatten()
    sources = kept[kept < len(matrix) - nodes.n_logits]
    targets = torch.cat([kept[kept < nodes.n_features], kept[len(sources) :]])
    n_kept_features = len(targets) - nodes.n_logits

    scores = matrix.new_empty(len(targets), len(sources))
    for start in range(0, len(targets), _ROWS_AT_ONCE):
        rows = matrix[targets[start : start + _ROWS_AT_ONCE]]
        scores[start : start + len(rows)] = rows[:, sources].abs_()
    weights = graph.logit_probabilities.to(matrix)
    layers = feature_layers(graph).to(targets.device)[targets[:n_kept_features]]
    influence, norms = influence_on_logits(
        scores[:n_kept_features], scores[n_kept_features:], weights, layers
    )
    reach = torch.cat([influence[:n_kept_features], weights])
    scores *= (reach / norms)[:, None]
    rows, columns = (scores >= edge_cutoff(scores, threshold)).nonzero(as_tuple=True)
    return targets[rows], sources[columns]


def edge_cutoff(scores: torch.Tensor, threshold: float) -> float:
    """The score down to which edges are kept, so that they make up `threshold` of the sum."""
    ordered = np.sort(scores[scores > 0].cpu().numpy())[::-1]
    if not len(ordered) or threshold == 1:
        return float(ordered[-1]) if len(ordered) else 1.0
    starts = np.arange(0, len(ordered), _SUMMED_AT_ONCE)
    sums = np.add.reduceat(ordered, starts, dtype=np.float64)
    wanted = threshold * sums.sum()
    chunk = min(int(np.searchsorted(sums.cumsum(), wanted)), len(starts) - 1)
    before = sums[:chunk].sum()
    tail = ordered[starts[chunk] : starts[chunk] + _SUMMED_AT_ONCE]
    at = int(np.searchsorted(before + tail.cumsum(dtype=np.float64), wanted))
    return float(tail[min(at, len(tail) - 1)])


def drop_dead_ends(
    nodes: NodeRanges, node_mask: torch.Tensor, targets: torch.Tensor, sources: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Drop features and errors without an outgoing edge, and features without an incoming one.

    Again and again, since each that goes takes its edges along: at most once a layer.
    """
    while True:
        alive = with_edges(nodes, node_mask, targets, sources)
        if torch.equal(alive, node_mask):
            return node_mask, targets, sources
        node_mask = alive
        ends_alive = node_mask[targets] & node_mask[sources]
        targets, sources = targets[ends_alive], sources[ends_alive]


def with_edges(
    nodes: NodeRanges, node_mask: torch.Tensor, targets: torch.Tensor, sources: torch.Tensor
) -> torch.Tensor:
    """Drop features and errors that no edge leaves, and features that none reaches."""
    alive, n_nodes, n_droppable = node_mask.clone(), len(node_mask), nodes.errors.stop
    alive[:n_droppable] &= sources.bincount(minlength=n_nodes)[:n_droppable] > 0
    n_features = nodes.n_features
    alive[:n_features] &= targets.bincount(minlength=n_nodes)[:n_features] > 0
    return alive


def _cumulative(influence: torch.Tensor) -> torch.Tensor:
    """For each node, the share of influence of all nodes with at least its own."""
    ordered, order = influence.sort(descending=True)
    cumulative = torch.zeros_like(influence)
    # On the CPU: a CUDA device adds up in an order of its own.
    cumulative[order] = (ordered.cpu().cumsum(0) / ordered.cpu().sum()).to(cumulative)
    return cumulative

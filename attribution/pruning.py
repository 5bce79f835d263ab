"""What matters of an attribution graph: the nodes and edges that carry most of the influence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from circuit_tracer.graph import compute_graph_scores, prune_graph

if TYPE_CHECKING:
    from circuit_tracer.graph import Graph


@dataclass(frozen=True)
class PrunedGraph:
    """A graph and what pruning keeps of it.

    Nodes are in the graph's order: selected features, errors (layer major), tokens, logits.
    """

    graph: Graph
    node_mask: torch.Tensor  # (n_nodes,) bool
    cumulative_scores: torch.Tensor  # (n_nodes,) float32, cumulative share of influence
    edge_targets: torch.Tensor  # (n_edges,) int64, row of each kept edge, on the CPU
    edge_sources: torch.Tensor  # (n_edges,) int64, its column; edges are in row-major order
    edge_weights: torch.Tensor  # (n_edges,) float32
    replacement_score: float
    completeness_score: float

    @property
    def edge_mask(self) -> torch.Tensor:
        """(n_nodes, n_nodes) bool, dense: for comparing with `circuit_tracer.graph.prune_graph`."""
        mask = torch.zeros(self.graph.adjacency_matrix.shape, dtype=torch.bool)
        mask[self.edge_targets, self.edge_sources] = True
        return mask


def prune(graph: Graph, node_threshold: float = 0.8, edge_threshold: float = 0.98) -> PrunedGraph:
    """Keep the nodes and edges that make up the given fractions of influence on the logits."""
    node_mask, edge_mask, cumulative_scores = prune_graph(graph, node_threshold, edge_threshold)
    targets, sources = edge_mask.nonzero(as_tuple=True)
    return PrunedGraph(
        graph,
        node_mask,
        cumulative_scores,
        targets.cpu(),
        sources.cpu(),
        graph.adjacency_matrix[targets, sources].cpu(),
        *graph_scores(graph),
    )


def graph_scores(graph: Graph) -> tuple[float, float]:
    """Return (replacement score, completeness score), each between 0 and 1."""
    scores: tuple[float, float] = compute_graph_scores(graph)
    return scores

"""Edges of a pruned graph in the form that circuit-tracer gives them."""

import torch

from attribution import PrunedGraph


def edge_mask(pruned: PrunedGraph) -> torch.Tensor:
    """(n_nodes, n_nodes) bool, as `circuit_tracer.graph.prune_graph` has it.

    At an `edge_threshold` of 1 the library's holds pairs without an edge too.
    """
    mask = torch.zeros(pruned.graph.adjacency_matrix.shape, dtype=torch.bool)
    mask[pruned.edge_targets, pruned.edge_sources] = True
    return mask

"""Attribution graphs: which features of a prompt led to its next token, and how strongly.

`attribute` builds the graph, `prune` keeps what matters of it, `graph_scores` says how much of the
model's computation runs through features, `method_for` which way `attribute` takes for a model.
"""

from attribution.attribute import attribute, method_for
from attribution.influence import graph_scores
from attribution.pruning import PrunedGraph, prune

__all__ = ["PrunedGraph", "attribute", "graph_scores", "method_for", "prune"]

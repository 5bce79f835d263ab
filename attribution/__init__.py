"""Attribution graphs: which features of a prompt led to its next token, and how strongly.

`attribute` builds the graph, `prune` keeps what matters of it and scores how much of the model's
computation runs through features, `method_for` says which way `attribute` takes for a model.
"""

from attribution.attribute import attribute, method_for
from attribution.pruning import PrunedGraph, prune

__all__ = ["PrunedGraph", "attribute", "method_for", "prune"]

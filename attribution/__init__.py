"""Attribution graphs: which features of a prompt led to its next token, and how strongly.

`attribute` builds the graph, `prune` keeps what matters of it and scores how much of the model's
computation runs through features, `method_for` says which way `attribute` takes for a model. Beside
tokens, a `LogitDifference` and a `FeatureTarget` can be what a graph explains.
"""

from attribution.attribute import attribute, method_for
from attribution.pruning import PrunedGraph, prune
from attribution.target_kinds import FeatureTarget, LogitDifference

__all__ = [
    "FeatureTarget",
    "LogitDifference",
    "PrunedGraph",
    "attribute",
    "method_for",
    "prune",
]

"""Attribution graphs of complete replacement models: attention as features too.

Every MLP is replaced by a transcoder and every attention by a Lorsa (low-rank sparse attention).
With all nonlinear parts held still, the residual stream is the only path between two of them, and
an edge is one dot product, times an attention probability where the target is a Lorsa's feature.
`freeze` a model on a prompt, `attribute` that, `prune` the graph and `trace_attention`.
"""

from attribution.complete.attribute import attribute
from attribution.complete.freezing import freeze
from attribution.complete.graph import CompleteGraph, Contributor, QKTrace, QKTraces
from attribution.complete.modules import CompleteModel
from attribution.complete.pruning import prune
from attribution.complete.tracing import marginal_sums, trace_attention

__all__ = [
    "CompleteGraph",
    "CompleteModel",
    "Contributor",
    "QKTrace",
    "QKTraces",
    "attribute",
    "freeze",
    "marginal_sums",
    "prune",
    "trace_attention",
]

"""Attribution graphs of complete replacement models: attention as features too.

Every MLP is replaced by a transcoder and every attention by a Lorsa (low-rank sparse attention).
With all nonlinear parts held still, the residual stream is the only path between two of them, and
an edge is one dot product, times an attention probability where the target is a Lorsa's feature.
"""

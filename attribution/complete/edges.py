"""Rows of the attribution matrix: each edge is one dot product.

With `w_s` what source s writes at position `p_s` and `r_t` what target t reads, of which the weight
`a_t[p]` at each position,

    A[t, s] = w_s . r_t * a_t[p_s]   where s is below t

For a transcoder's feature at position p the weight is the inverse scale of its norm at p and zero
elsewhere; for a Lorsa's feature it is the attention probability, times the inverse scale there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attribution.complete.local_model import LocalCompleteModel, Reads


def attribution_rows(
    local: LocalCompleteModel, layers: Tensor, positions: Tensor, reads: Reads, rows: Tensor
) -> None:
    """Write the edges into a batch of targets to `rows`.

    Args:
        layers: (n,) sublayers on the CPU; a logit's is `n_sublayers`.
        positions: (n,) on the CPU.
        reads: what each target reads.
        rows: (n, n_sources) float32 zeros, on the model's device.
    """
    if local.device.type == "cuda":
        _all_at_once(local, layers, positions, reads, rows)
    else:
        _by_position(local, layers, positions, reads, rows)


def _all_at_once(
    local: LocalCompleteModel, layers: Tensor, positions: Tensor, reads: Reads, rows: Tensor
) -> None:
    """Multiply all targets with all sources, as is fastest on a GPU."""
    sources, edges = local.sources, rows.new_zeros(rows.shape)
    end = sources.below(int(positions.max()), local.shape.n_layers).stop
    part = reads.vectors @ sources.vectors[:end].T
    part *= reads.weights[:, sources.positions[:end]]
    edges[:, :end] = part
    edges *= sources.sublayers < layers.to(edges.device)[:, None]
    torch.index_select(edges, 1, sources.of_columns, out=rows)


def _by_position(
    local: LocalCompleteModel, layers: Tensor, positions: Tensor, reads: Reads, rows: Tensor
) -> None:
    """Multiply the sources of a position with the targets that read there.

    Of these it takes sources as far up as the highest target, and leaves those out that are above
    a target when it puts the edges in the columns' order.
    """
    sources, n_layers = local.sources, local.shape.n_layers
    layer_of, position_of = layers.tolist(), positions.tolist()
    lorsas = [layer % 2 == 0 and layer < n_layers for layer in layer_of]
    edges = rows.new_zeros(rows.shape)
    for position in range(max(position_of) + 1):
        reading = [
            target
            for target, own in enumerate(position_of)
            if own == position or (own > position and lorsas[target])
        ]
        if reading:
            at = sources.below(position, max(layer_of[target] for target in reading))
            targets = torch.tensor(reading)
            part = reads.vectors[targets] @ sources.vectors[at].T
            part *= reads.weights[targets, position, None]
            edges[targets, at] = part
    n_active, start = local.shape.n_active, 0
    for layer, n in zip(*layers.unique_consecutive(return_counts=True), strict=True):
        run, below = slice(start, start + int(n)), int(local.before_layer[int(layer)])
        rows[run, :below] = edges[run].index_select(1, sources.of_columns[:below])
        start += int(n)
    others = sources.of_columns[n_active:]
    rows[:, n_active:] = edges[:, others] * (sources.sublayers[others] < layers[:, None])

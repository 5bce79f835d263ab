"""Rows of the attribution matrix: each edge is one dot product.

With `w_s` what source s writes at position `p_s` and `r_t` what target t reads, of which the weight
`a_t[p]` at each position,

    A[t, s] = w_s . r_t * a_t[p_s]   where s is below t

For a transcoder's feature at position p the weight is the inverse scale of its norm at p and zero
elsewhere; for a Lorsa's feature it is the attention probability, times the inverse scale there.
"""

from __future__ import annotations

from collections.abc import Iterator

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
        rows: (n, n_sources) float32, on the model's device.
    """
    sources = local.sources
    edges = rows.new_zeros(rows.shape)
    for targets, at in _products(local, layers, positions):
        part = reads.vectors[targets] @ sources.vectors[at].T
        part *= reads.weights[targets][:, sources.positions[at]]
        edges[targets, at] = part
    edges *= sources.sublayers < layers.to(edges.device)[:, None]
    torch.index_select(edges, 1, sources.of_columns, out=rows)


def _products(
    local: LocalCompleteModel, layers: Tensor, positions: Tensor
) -> Iterator[tuple[Tensor | slice, slice]]:
    """Targets and sources that are multiplied together.

    On a GPU one product of all with all is fastest. On a CPU, sources of a position are multiplied
    with the targets that read there, as far up as the highest of these.
    """
    sources, last, n_layers = local.sources, int(positions.max()), local.shape.n_layers
    if local.device.type == "cuda":
        yield slice(None), slice(0, sources.below(last, n_layers).stop)
        return
    attend = (layers % 2 == 0) & (layers < n_layers)
    for position in range(last + 1):
        targets = ((positions == position) | attend & (positions > position)).nonzero().flatten()
        if len(targets):
            yield targets, sources.below(position, int(layers[targets].max()))

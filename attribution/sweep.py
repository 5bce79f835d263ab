"""Rows of the attribution matrix: one sweep down the local replacement model, for many targets.

Ameisen et al. 2025, *Circuit Tracing*, "Constructing an Attribution Graph for a Prompt": the edge
from a source to a target is `A[t, s] = w_s . J . r_t`, the source's write vector (scaled by its
activation) through the Jacobian of the residual stream, against the target's read vector. With
everything nonlinear frozen `J` is a product of a few matrices a layer, so a target's gradient
`r_t J` is carried down the layers once, without autograd; at each layer it meets the vectors that
sources write there.

Three things keep it near the least arithmetic there is:

- features of one position meet the same gradient, so their edges are one matrix product;
- a target is carried only from its own layer down, and no later position than its batch needs;
- a target's gradient sits at a single position until the first attention, which spreads it.
"""

from __future__ import annotations

import torch

from attribution.local_replacement_model import FrozenAttention, LocalReplacementModel


@torch.no_grad()
def attribution_rows(
    local: LocalReplacementModel,
    layers: torch.Tensor,
    positions: torch.Tensor,
    reads: torch.Tensor,
    rows: torch.Tensor,
) -> None:
    """Write the edges into a batch of targets to `rows`.

    Args:
        layers: (n,) on the CPU, descending; a logit's is `n_layers`.
        positions: (n,) on the CPU.
        reads: (n, d_model), what each target reads of the residual stream.
        rows: (n, n_sources) float32, zero; on the model's device.
    """
    n_pos = int(positions.max()) + 1
    d_model = reads.shape[1]
    positions_here = positions.to(reads.device)
    # Cross-layer decoders meet the gradients behind every layer from the feature's own.
    behind = None
    if local.is_cross_layer:
        behind = reads.new_zeros(n_pos, len(reads), local.n_layers, d_model)

    n = int((layers == local.n_layers).sum())
    gradients = _at_positions(reads[:n], positions_here[:n], n_pos)
    for layer in reversed(range(local.n_layers)):
        if n:
            if behind is not None:
                behind[:, :n, layer] = gradients
            met = gradients[:, :, None] if behind is None else behind[:, :n, layer:]
            _feature_edges(local, layer, met, rows)
            _error_edges(local, layer, gradients, rows)
            skip = local.skips[layer]
            if skip is not None:
                gradients = gradients + (skip.scale[:n_pos, None] * (gradients @ skip.weight)).to(
                    gradients.dtype
                )
        n_new = int((layers == layer).sum())
        new = _at_positions(reads[n : n + n_new], positions_here[n : n + n_new], n_pos)
        gradients = torch.cat([gradients, new], dim=1)
        n += n_new
        if n:
            _through_attention_(gradients, local.attention[layer])
    _token_edges(local, gradients, rows)


def _at_positions(vectors: torch.Tensor, positions: torch.Tensor, n_pos: int) -> torch.Tensor:
    """Gradients (n_pos, n, d_model) that are `vectors` (n, d_model) at `positions`, else zero."""
    gradients = vectors.new_zeros(n_pos, *vectors.shape)
    gradients[positions, torch.arange(len(vectors), device=vectors.device)] = vectors
    return gradients


def _feature_edges(
    local: LocalReplacementModel, layer: int, gradients: torch.Tensor, rows: torch.Tensor
) -> None:
    """Edges from the features of `layer`; gradients (n_pos, n, layers written to, d_model)."""
    n = gradients.shape[1]
    writes = local.feature_writes[layer]
    first = local.group(layer, 0).start
    for position in range(gradients.shape[0]):
        group = local.group(layer, position)
        if group.start == group.stop:
            continue
        decoders = writes[group.start - first : group.stop - first].flatten(1)
        _matmul_into(rows[:n, group], gradients[position].flatten(1), decoders.T)


def _matmul_into(out: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    if out.dtype == a.dtype:
        torch.mm(a, b, out=out)
    else:
        out.copy_(a @ b)


def _error_edges(
    local: LocalReplacementModel, layer: int, gradients: torch.Tensor, rows: torch.Tensor
) -> None:
    n_pos, n, _ = gradients.shape
    start = local.n_active + layer * local.n_pos
    edges = gradients @ local.errors[layer, :n_pos, :, None]
    rows[:n, start : start + n_pos] = edges.squeeze(-1).T


def _token_edges(local: LocalReplacementModel, gradients: torch.Tensor, rows: torch.Tensor) -> None:
    n_pos, n, _ = gradients.shape
    start = local.n_active + local.n_layers * local.n_pos
    edges = gradients @ local.tokens[:n_pos, :, None]
    rows[:n, start : start + n_pos] = edges.squeeze(-1).T


def _through_attention_(gradients: torch.Tensor, attention: FrozenAttention) -> None:
    """Add to gradients (n_pos, n, d_model) what reaches earlier positions through attention."""
    n_pos, n, d_model = gradients.shape
    n_values, _, n_grouped, _ = attention.pattern.shape
    pattern = attention.pattern[:, :n_pos, :, :n_pos].reshape(n_values, n_pos, n_grouped * n_pos)
    results = (gradients.view(-1, d_model) @ attention.writes.T).view(
        n_pos, n, n_values, n_grouped, -1
    )
    results = results.permute(2, 3, 0, 1, 4).reshape(n_values, n_grouped * n_pos, -1)
    values = (pattern @ results).view(n_values, n_pos, n, -1)
    values = values.permute(1, 2, 0, 3).reshape(n_pos * n, -1)
    gradients.view(-1, d_model).addmm_(values, attention.reads)

"""Rows of the attribution matrix: one sweep down the local replacement model, for many targets.

Ameisen et al. 2025, *Circuit Tracing*, "Constructing an Attribution Graph for a Prompt": the edge
from a source to a target is `A[t, s] = w_s . J . r_t`, the source's write vector (scaled by its
activation) through the Jacobian of the residual stream, against the target's read vector. With
everything nonlinear frozen `J` is a product of a few matrices a layer, so a target's gradient is
carried down the layers once, without autograd; at each layer it meets what sources write there.

Four things keep this near the least arithmetic there is:

- features of one position meet the same gradient, so their edges are one matrix product;
- a target is carried from its own layer down, over positions no later than its batch's last;
- until its first attention a target's gradient is at a single position;
- below the last attention there are only tokens, whose edges are read off its heads' values.
"""

from __future__ import annotations

import torch

from attribution.features import FeatureGroup
from attribution.local_replacement_model import FrozenAttention, LocalReplacementModel
from attribution.precision import operand_dtype, product


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
        reads: (n, d_model) float32, what each target reads of the residual stream.
        rows: (n, n_sources) float32, zero; on the model's device.
    """
    n_pos = int(positions.max()) + 1
    where = positions.to(reads.device)
    # The gradient of each target with respect to the residual stream, at the sweep's height.
    gradients = reads.new_zeros(len(reads), n_pos, reads.shape[1])
    # Cross-layer decoders meet the gradients behind every layer from the feature's own.
    behind = None
    if local.is_cross_layer:
        shape = (len(reads), n_pos, local.n_layers, reads.shape[1])
        behind = reads.new_zeros(shape, dtype=operand_dtype(local.features.writes[0]))

    spread = 0  # targets that have been through attention; those up to `joined` have not
    joined = _join(gradients, reads, where, 0, int((layers == local.n_layers).sum()))
    for layer in reversed(range(local.n_layers)):
        if joined:
            met = gradients[:joined].to(operand_dtype(local.features.writes[layer]))
            if behind is not None:
                behind[:joined, :, layer] = met
                met = behind[:joined, :, layer:].flatten(2)
            _feature_edges(local.groups[layer], met, rows)
            _error_edges(local, layer, gradients[:joined], rows)
            _through_skip_(local, layer, gradients[:joined])
        joined = _join(gradients, reads, where, joined, int((layers == layer).sum()))
        if not joined:
            continue
        attention = local.attention[layer]
        values = gradients.new_empty(joined, n_pos, attention.reads.shape[0])
        if spread:
            _values_of_spread(attention, gradients[:spread], values[:spread])
        new = slice(spread, joined)
        _values_of_single(attention, gradients[new], where[new], values[new])
        spread = joined
        if layer > 0:
            _add_product_(gradients[:joined].flatten(0, 1), values.flatten(0, 1), attention.reads)
    if joined:
        _token_edges(local, gradients[:joined], values, rows)


def _join(
    gradients: torch.Tensor, reads: torch.Tensor, where: torch.Tensor, start: int, n: int
) -> int:
    """Let the next `n` targets join the sweep, each at its position; return how many have."""
    new = torch.arange(start, start + n, device=reads.device)
    gradients[new, where[start : start + n]] = reads[start : start + n]
    return start + n


def _feature_edges(groups: list[FeatureGroup], gradients: torch.Tensor, rows: torch.Tensor) -> None:
    """Edges from a layer's features; gradients (n, n_pos, layers written to * d_model)."""
    by_position = gradients.unbind(1)
    rows = rows[: len(gradients)]
    for group in groups:
        if group.position >= len(by_position):
            break
        product(by_position[group.position], group.decoders, out=rows[:, group.columns])


def _error_edges(
    local: LocalReplacementModel, layer: int, gradients: torch.Tensor, rows: torch.Tensor
) -> None:
    n, n_pos, _ = gradients.shape
    start = local.n_active + layer * local.n_pos
    rows[:n, start : start + n_pos] = _dots(gradients, local.errors[layer])


def _token_edges(
    local: LocalReplacementModel,
    gradients: torch.Tensor,
    values: torch.Tensor,
    rows: torch.Tensor,
) -> None:
    """Edges from the tokens, directly and through the first attention's values."""
    n, n_pos, _ = gradients.shape
    start = local.n_active + local.n_layers * local.n_pos
    read = product(local.tokens, local.attention[0].reads.T)
    rows[:n, start : start + n_pos] = _dots(gradients, local.tokens) + _dots(values, read)


def _add_product_(total: torch.Tensor, vectors: torch.Tensor, weights: torch.Tensor) -> None:
    """Add to total (n, m) float32 the product of vectors (n, d) float32 and weights (d, m)."""
    if weights.dtype == torch.float32:
        total.addmm_(vectors, weights)
    else:
        total += product(vectors, weights)


def _dots(gradients: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """Products (n, n_pos) of gradients (n, n_pos, d) with the vector (d,) of each position."""
    by_position = gradients.transpose(0, 1)
    return (by_position @ vectors[: len(by_position), :, None]).squeeze(-1).T


def _through_skip_(local: LocalReplacementModel, layer: int, gradients: torch.Tensor) -> None:
    """Add to gradients (n, n_pos, d_model) what reaches features' input by the skip connection."""
    skip = local.skips[layer]
    if skip is not None:
        gradients += skip.scale[: gradients.shape[1]] * (gradients @ skip.weight)


def _values_of_spread(
    attention: FrozenAttention, gradients: torch.Tensor, values: torch.Tensor
) -> None:
    """Write the gradient of the heads' values (n, n_pos, n_values * d_head) for any gradients."""
    n, n_pos, d_model = gradients.shape
    n_values, _, n_grouped, _ = attention.pattern.shape
    results = product(gradients.view(-1, d_model), attention.writes.T).view(
        n, n_pos, n_values, n_grouped, attention.d_head
    )
    # A value's heads and positions in one sum, for all targets in one product.
    results = results.permute(2, 3, 1, 0, 4).reshape(n_values, n_grouped * n_pos, -1)
    pattern = attention.pattern[:, :n_pos, :, :n_pos].flatten(2)
    mixed = (pattern @ results).view(n_values, n_pos, n, attention.d_head)
    values.view(n, n_pos, n_values, -1).copy_(mixed.permute(2, 1, 0, 3))


def _values_of_single(
    attention: FrozenAttention, gradients: torch.Tensor, where: torch.Tensor, values: torch.Tensor
) -> None:
    """The same for gradients that are zero but at one position each, `where` (n,)."""
    n, n_pos, _ = gradients.shape
    n_values, _, n_grouped, _ = attention.pattern.shape
    single = gradients[torch.arange(n, device=where.device), where]
    results = product(single, attention.writes.T).view(n, n_values, n_grouped, attention.d_head)
    pattern = attention.pattern[:, :n_pos, :, where]  # (n_values, n_pos, n_grouped, n)
    mixed = torch.einsum("vpgn,nvgd->npvd", pattern, results)
    values.view(n, n_pos, n_values, attention.d_head).copy_(mixed)

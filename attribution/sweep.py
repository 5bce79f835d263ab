"""Rows of the attribution matrix: one sweep down the local replacement model, for many targets.

Ameisen et al. 2025, *Circuit Tracing*, "Constructing an Attribution Graph for a Prompt": the edge
from a source to a target is `A[t, s] = w_s . J . r_t`, the source's write vector (scaled by its
activation) through the Jacobian of the residual stream, against the target's read vector. With
everything nonlinear frozen `J` is a product of a few matrices a layer, so a target's gradient is
carried down the layers once, without autograd; at each layer it meets what sources write there.

Five things keep this near the least arithmetic there is:

- features of one position meet the same gradient, so their edges are one matrix product;
- a target is carried from its own layer down, over positions no later than its batch's last;
- until its first attention a target's gradient is at a single position;
- attention patterns are multiplied in blocks, without those that causality makes zero;
- below the last attention there are only tokens, whose edges are read off its heads' values.
"""

from __future__ import annotations

import torch

from attribution.local_replacement_model import FrozenAttention, LocalReplacementModel
from attribution.memory import TARGETS_IN_CACHE
from attribution.precision import add_product_, operand_dtype, product


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
    shape, n_pos = local.shape, int(positions.max()) + 1
    where = positions.to(reads.device)
    dtype = operand_dtype(local.attention[0].writes)
    # The gradient of each target with respect to the residual stream, at the sweep's height.
    gradients = reads.new_zeros(len(reads), n_pos, reads.shape[1])
    gradients[torch.arange(len(reads), device=reads.device), where] = reads
    # Cross-layer decoders meet the gradients behind every layer from the feature's own.
    behind = None
    if shape.cross_layer:
        behind = gradients.new_zeros(len(reads), n_pos, shape.n_layers, reads.shape[1], dtype=dtype)

    at_once = len(reads) if reads.device.type == "cuda" else TARGETS_IN_CACHE
    joined = int((layers == shape.n_layers).sum())  # targets above the sweep's height
    spread = 0  # of these, those that have been through attention
    for layer in reversed(range(shape.n_layers)):
        above, joined = joined, int((layers >= layer).sum())
        if not joined:
            continue
        operands = gradients[:joined].to(dtype)
        if above:
            met = operands[:above]
            if behind is not None:
                behind[:above, :, layer] = met
                met = behind[:above, :, layer:].flatten(2)
            features = local.features.in_layer(layer)
            local.features.writes[layer].write_edges(met, rows[:above, features])
            for start in range(0, above, at_once):
                chunk = slice(start, min(start + at_once, above))
                _error_edges(local, layer, gradients[chunk], rows[chunk])
            skip = local.skips[layer]
            if skip is not None:
                gradients[:above].add_(skip.scale[:n_pos] * (gradients[:above] @ skip.weight))
                operands = gradients[:joined].to(dtype)
        for start in range(0, joined, at_once):
            chunk = slice(start, min(start + at_once, joined))
            # Tokens meet the first attention's values in float32.
            wanted = dtype if layer else torch.float32
            values = _values(local.attention[layer], operands, where, spread, chunk, wanted)
            if layer > 0:
                reads_of = local.attention[layer].reads
                add_product_(gradients[chunk].flatten(0, 1), values.flatten(0, 1), reads_of)
            else:
                _token_edges(local, gradients[chunk], values, rows[chunk])
            del values  # before the next are computed
        spread = joined


def _error_edges(
    local: LocalReplacementModel, layer: int, gradients: torch.Tensor, rows: torch.Tensor
) -> None:
    n_pos = gradients.shape[1]
    start = local.shape.n_active + layer * local.shape.n_pos
    rows[:, start : start + n_pos] = _dots(gradients, local.errors[layer])


def _token_edges(
    local: LocalReplacementModel,
    gradients: torch.Tensor,
    values: torch.Tensor,
    rows: torch.Tensor,
) -> None:
    """Edges from the tokens, directly and through the first attention's values."""
    _, n_pos, _ = gradients.shape
    start = local.shape.n_sources - len(local.tokens)
    read = product(local.tokens, local.attention[0].reads.T)
    rows[:, start : start + n_pos] = _dots(gradients, local.tokens) + _dots(values, read)


def _dots(gradients: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """Products (n, n_pos) of gradients (n, n_pos, d) with the vector (d,) of each position."""
    vectors = vectors[: gradients.shape[1]]
    if gradients.device.type == "cuda":
        # One pass over the gradients, where a product by element and a sum take three.
        return torch.bmm(gradients.transpose(0, 1), vectors[:, :, None])[:, :, 0].T
    return torch.linalg.vecdot(gradients, vectors)


def _values(
    attention: FrozenAttention,
    gradients: torch.Tensor,
    where: torch.Tensor,
    spread: int,
    chunk: slice,
    dtype: torch.dtype,
) -> torch.Tensor:
    """The gradient (n, n_pos, n_values * d_head) of the heads' values, of a chunk of targets.

    On a CUDA device it is rounded to `dtype`; on a CPU it is float32.
    """
    if gradients.device.type == "cuda":
        # A few launches would take longer than the arithmetic they save.
        return values_of_spread(attention, gradients[chunk], dtype)
    n_spread = min(max(spread - chunk.start, 0), chunk.stop - chunk.start)
    middle = chunk.start + n_spread
    parts = []
    if n_spread:
        parts.append(values_of_spread(attention, gradients[chunk.start : middle]))
    if middle < chunk.stop:
        new = slice(middle, chunk.stop)
        parts.append(_values_of_single(attention, gradients[new], where[new]))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def values_of_spread(
    attention: FrozenAttention, gradients: torch.Tensor, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """For gradients (n, n_pos, d_model) of any kind."""
    n, n_pos, d_model = gradients.shape
    flat = gradients.view(-1, d_model)
    # Without a name for the heads' results, which are freed when they are copied.
    return attention.pattern.back(product(flat, attention.writes.T).view(n, n_pos, -1), dtype)


def _values_of_single(
    attention: FrozenAttention, gradients: torch.Tensor, where: torch.Tensor
) -> torch.Tensor:
    """The same for gradients that are zero but at one position each, `where` (n,)."""
    n, n_pos, _ = gradients.shape
    pattern = attention.pattern
    single = gradients[torch.arange(n, device=where.device), where]
    results = product(single, attention.writes.T).view(n, pattern.n_values, pattern.n_grouped, -1)
    mixed = pattern.columns(where, n_pos).permute(2, 0, 1, 3) @ results
    return mixed.transpose(1, 2).reshape(n, n_pos, -1)

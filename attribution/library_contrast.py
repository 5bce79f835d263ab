"""A contrast of two prompts as circuit-tracer computes edges: for models without explicit sweep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from attribution.circuit_tracer_names import attribution_context, run_forward_pass, unembedding
from attribution.contrasted import Contrast, active_in_either, contrasted
from attribution.transcoder_layer import TranscoderLayer
from errors import NotFinite


def contrast_with_library(
    model: Any,
    prompt: Sequence[int],
    other: Sequence[int],
    position: int,
    other_position: int,
    check: Callable[[], None],
) -> Contrast:
    """`contrast` with circuit-tracer's own activations and edges."""
    tokens = torch.tensor(prompt, device=model.cfg.device)
    logits, here = _activations(model, tokens, position)
    other_tokens = torch.tensor(other, device=model.cfg.device)
    other_logits, there = _activations(model, other_tokens, other_position)
    predicted, wanted = int(logits.argmax()), int(other_logits.argmax())
    if predicted == wanted:
        return Contrast(logits, other_logits, [])
    activations = torch.stack([here, there])
    layers, indices = active_in_either(activations, model.cfg.dtype)
    matrix = unembedding(model)
    rows = matrix if model.backend == "nnsight" else matrix.T
    direction = rows[wanted] - rows[predicted]
    slopes = _slopes(model, tokens, position, layers, indices, direction, check)
    found = Contrast(logits, other_logits, [])
    for layer in layers.unique().tolist():
        own = layers == layer
        both = activations[:, layer, indices[own]]
        found.features.extend(contrasted(layer, "transcoder", indices[own], both, slopes[own]))
    return found


def _activations(model: Any, tokens: Tensor, position: int) -> tuple[Tensor, Tensor]:
    """Logits (d_vocab,) after the prompt, and activations (n_layers, d_transcoder) at a position.

    Raises:
        NotFinite: the logits aren't all finite numbers.
    """
    logits, activations = model.get_activations(tokens)
    last = logits[0, -1].clone()
    if not last.isfinite().all():
        raise NotFinite.of("the model's logits after a prompt", model.cfg.dtype)
    return last, activations[:, position].clone()


def _slopes(
    model: Any,
    tokens: Tensor,
    position: int,
    layers: Tensor,
    indices: Tensor,
    direction: Tensor,
    check: Callable[[], None],
) -> Tensor:
    """What a unit of each feature's activation adds to the logits in `direction` (d_model,).

    These are the library's edges, with decoder vectors that no activation multiplies.
    """
    features: list[Tensor] = []  # by layer written to, which feature writes what
    vectors: list[Tensor] = []
    written: list[Tensor] = []
    transcoders = model.transcoders._module if model.backend == "nnsight" else model.transcoders
    for layer in layers.unique().tolist():
        check()
        [own] = (layers == layer).nonzero(as_tuple=True)
        decoders = TranscoderLayer(transcoders, layer).decoders(indices[own])
        for to_layer, of_layer in enumerate(decoders, start=layer):
            features.append(own)
            vectors.append(of_layer)
            written.append(torch.full_like(own, to_layer))
    n_layers, n_pos = model.cfg.n_layers, len(tokens)
    d_model, device = len(direction), direction.device
    places = torch.stack([layers, torch.full_like(layers, position), indices])
    shape = (n_layers, n_pos, int(indices.max()) + 1)
    nothing = torch.zeros(n_layers, n_pos, d_model, device=device, dtype=direction.dtype)
    to_layers = torch.cat(written)
    context = attribution_context(model)(
        activation_matrix=torch.sparse_coo_tensor(
            places, torch.ones(len(indices), device=device), shape
        ).coalesce(),
        error_vectors=nothing,
        token_vectors=nothing[0],
        decoder_vecs=torch.cat(vectors),
        encoder_vecs=nothing[0],
        encoder_to_decoder_map=torch.cat(features),
        decoder_locations=torch.stack([to_layers, torch.full_like(to_layers, position)]),
        logits=nothing[0],
    )
    with torch.enable_grad():
        run_forward_pass(model, tokens, 1, context)
        [row] = context.compute_batch(
            torch.tensor([n_layers]),
            torch.tensor([n_pos - 1]),
            direction[None],
            retain_graph=False,
        )
    return row[: len(indices)].detach().float()

"""Which features of two prompts would turn the prediction of one into that of the other.

The effect of a feature on a difference of two logits is what it adds to it in the first prompt's
local replacement model, where attention patterns, norm scales and MLPs are held still: its edge to
that difference, here for every feature that is active at one position of either prompt. The
gradient of the difference is carried down the layers once, over the positions from this one on. At
each layer it meets what the features write there.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from attribution.complete.contrast import contrast_complete
from attribution.complete.modules import CompleteModel
from attribution.contrasted import Contrast, Contrasted, contrasted
from attribution.freezing import (
    LayerNorms,
    freeze_skip,
    layer_hooks,
    layer_norms,
    recorded_hooks,
)
from attribution.library_contrast import contrast_with_library
from attribution.local_replacement_model import FrozenSkip
from attribution.logit_gradients import run_prompt, stream_gradients
from attribution.support import unsupported
from attribution.transcoder_layer import TranscoderLayer
from errors import NotFinite


def contrast(
    model: Any,
    prompt: Sequence[int],
    other: Sequence[int],
    position: int,
    other_position: int,
    *,
    check: Callable[[], None] = lambda: None,
) -> Contrast:
    """Compare two prompts' features at a position of each.

    Args:
        model: a circuit-tracer replacement model, or a complete one. It is left as it came.
        position: of `prompt`; the features are active there, or in `other` at `other_position`.
        check: called between the passes; raises to stop.

    Raises:
        NotFinite: the model's numbers on a prompt, or effects, overflow in its dtype.
    """
    if isinstance(model, CompleteModel):
        way = contrast_complete
    elif unsupported(model) is None:
        way = _contrast_by_sweep
    else:
        way = contrast_with_library
    found = way(model, prompt, other, position, other_position, check)
    if not all(math.isfinite(feature.effect) for feature in found.features):
        raise NotFinite.of("the features' effects on the predictions", model.cfg.dtype)
    return found


@torch.inference_mode()
def _contrast_by_sweep(
    model: Any,
    prompt: Sequence[int],
    other: Sequence[int],
    position: int,
    other_position: int,
    check: Callable[[], None],
) -> Contrast:
    inputs = layer_hooks(model, {model.feature_input_hook})
    logits, seen = run_prompt(model, prompt, [*recorded_hooks(model), *inputs])
    check()
    other_logits, other_seen = run_prompt(model, other, inputs)
    check()
    predicted, wanted = int(logits.argmax()), int(other_logits.argmax())
    if predicted == wanted:
        return Contrast(logits, other_logits, [])
    read = [
        torch.stack([seen.pop(name)[0, position], other_seen.pop(name)[0, other_position]])
        for name in inputs
    ]
    unembedding = model.unembed.W_U
    direction = unembedding[:, wanted].float() - unembedding[:, predicted].float()

    def skip_of(layer: int, norms: LayerNorms) -> FrozenSkip | None:
        return freeze_skip(TranscoderLayer(model.transcoders, layer).skip, norms)

    gradients = [
        norms.output.scaled(norms.output.backward(gradient), slice(1))[0]
        for gradient, norms in stream_gradients(
            model, seen, position, direction, layer_norms, skip_of
        )
    ]
    features = [
        feature
        for layer, acts in enumerate(read)
        for feature in _features(TranscoderLayer(model.transcoders, layer), acts, gradients)
    ]
    return Contrast(logits, other_logits, features)


def _features(
    transcoder: TranscoderLayer, inputs: Tensor, gradients: Sequence[Tensor]
) -> list[Contrasted]:
    """The features of a layer that are active on either of `inputs` (2, d_model)."""
    activations = transcoder.encode(inputs, transcoder.rows("W_enc"))
    if not activations.isfinite().all():
        raise NotFinite.of("the features' activations on a prompt", activations.dtype)
    indices = activations.any(0).nonzero().flatten()
    slopes = torch.zeros(len(indices), device=inputs.device)
    for layer, vectors in enumerate(transcoder.decoders(indices), start=transcoder.layer):
        slopes += vectors.float() @ gradients[layer]
    return contrasted(transcoder.layer, "transcoder", indices, activations[:, indices], slopes)

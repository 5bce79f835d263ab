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

from attribution.complete.contrast import contrast_complete
from attribution.complete.modules import CompleteModel
from attribution.contrasted import Contrast, active_in_either, contrasted
from attribution.freezing import LayerNorms, freeze_skip, layer_hooks, layer_norms
from attribution.library_contrast import contrast_with_library
from attribution.local_replacement_model import FrozenSkip
from attribution.logit_gradients import stream_gradients
from attribution.support import unsupported
from attribution.transcoder_layer import TranscoderLayer
from attribution.two_prompts import run_both
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
        check: called at each layer behind the passes; raises to stop.

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
    found, direction, seen, read = run_both(model, prompt, other, inputs)
    if direction is None:
        return found

    def skip_of(layer: int, norms: LayerNorms) -> FrozenSkip | None:
        return freeze_skip(TranscoderLayer(model.transcoders, layer).skip, norms)

    gradients = [
        norms.output.scaled(norms.output.backward(gradient), slice(1))[0]
        for gradient, norms in stream_gradients(
            model, seen, position, direction, layer_norms, check, skip_of
        )
    ]
    for layer, (here, there) in enumerate(read):
        check()
        transcoder = TranscoderLayer(model.transcoders, layer)
        acts = torch.stack([here[position], there[other_position]])
        activations = transcoder.encode(acts, transcoder.rows("W_enc"))
        [indices] = active_in_either(activations, model.cfg.dtype)
        slopes = torch.zeros(len(indices), device=indices.device)
        for written, vectors in enumerate(transcoder.decoders(indices), start=layer):
            slopes += vectors.float() @ gradients[written]
        found.features.extend(
            contrasted(layer, "transcoder", indices, activations[:, indices], slopes)
        )
    return found

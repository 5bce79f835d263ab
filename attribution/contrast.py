"""Which features of two prompts would turn the prediction of one into that of the other.

The effect of a feature on a difference of two logits is its edge to that difference in the first
prompt's local replacement model, here for every feature that is active at one position of either
prompt. The gradient of the difference is carried down the layers once, over the positions from this
one on. At each layer it meets what the features write there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attribution.freezing import (
    freeze_attention,
    freeze_skip,
    layer_hooks,
    layer_norms,
    recorded_hooks,
    run_and_record,
)
from attribution.norms import FrozenNorm
from attribution.precision import add_product_, operand_dtype
from attribution.sweep import values_of_spread
from attribution.transcoder_layer import TranscoderLayer
from errors import NotFinite


@dataclass(frozen=True)
class Contrasted:
    """A feature at the two positions."""

    layer: int
    index: int
    activation: float
    other_activation: float
    slope: float  # what each unit of activation adds to the logits' difference

    @property
    def effect(self) -> float:
        """What its move to the other activation adds to the difference."""
        return self.slope * (self.other_activation - self.activation)


@dataclass(frozen=True, eq=False)
class Contrast:
    """Two prompts' logits after their last tokens, (d_vocab,), and the features active in either.

    `features` is empty where both prompts have the same likeliest token.
    """

    logits: Tensor
    other_logits: Tensor
    features: list[Contrasted]


@torch.inference_mode()
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
        model: a circuit-tracer replacement model that is not `unsupported`. It is left as it came.
        position: of `prompt`; the features are active there, or in `other` at `other_position`.
        check: called between the passes; raises to stop.

    Raises:
        NotFinite: the model's numbers on a prompt overflow in its dtype.
    """
    inputs = layer_hooks(model, {model.feature_input_hook})
    logits, seen = _run(model, prompt, [*recorded_hooks(model), *inputs])
    check()
    other_logits, other_seen = _run(model, other, inputs)
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
    gradients = _gradients(model, seen, position, direction)
    features = [
        feature
        for layer, acts in enumerate(read)
        for feature in _features(TranscoderLayer(model.transcoders, layer), acts, gradients)
    ]
    return Contrast(logits, other_logits, features)


def _run(model: Any, ids: Sequence[int], names: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
    logits, seen = run_and_record(model, torch.tensor(ids, device=model.cfg.device), names)
    if not logits.isfinite().all():
        raise NotFinite.of("the model's logits after a prompt", model.cfg.dtype)
    return logits, seen


def _gradients(
    model: Any, seen: dict[str, Tensor], position: int, direction: Tensor
) -> list[Tensor]:
    """Each layer's gradient (d_model,), float32, where its features write at `position`.

    Args:
        seen: what `recorded_hooks` recorded.
        direction: (d_model,) float32, read behind the final norm at the last position.
    """
    # No gradient comes back to a position from those before it.
    from_there = {
        name: values[:, :, position:, position:]
        if name.endswith("hook_pattern")
        else values[:, position:]
        for name, values in seen.items()
    }
    final_scale = from_there["ln_final.hook_scale"]
    n_pos, n_layers = final_scale.shape[1], model.cfg.n_layers
    final = FrozenNorm.of(model.ln_final, final_scale)
    gradient = direction.new_zeros(1, n_pos, len(direction))
    gradient[0, -1:] = final.scaled(final.backward(direction[None]), slice(-1, None))
    at_outputs: list[Tensor] = []
    for layer in reversed(range(n_layers)):
        norms = layer_norms(model, layer, from_there, n_pos)
        output = norms.output
        at_outputs.append(output.scaled(output.backward(gradient[0, :1]), slice(1))[0])
        skip = freeze_skip(TranscoderLayer(model.transcoders, layer).skip, norms)
        if skip is not None:
            gradient = gradient + skip.scale * (gradient @ skip.weight)
        if layer == 0:  # no features are below its attention
            break
        attn = model.blocks[layer].attn
        attention = freeze_attention(attn, from_there[attn.hook_pattern.name][0], norms)
        dtype = operand_dtype(attention.reads)
        values = values_of_spread(attention, gradient.to(dtype), dtype)
        add_product_(gradient.flatten(0, 1), values.flatten(0, 1), attention.reads)
    return at_outputs[::-1]


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
    here, there = (activations[:, indices].float() + 0.0).tolist()  # without a minus before 0
    return [
        Contrasted(transcoder.layer, *of_feature)
        for of_feature in zip(indices.tolist(), here, there, slopes.tolist(), strict=True)
    ]

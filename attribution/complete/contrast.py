"""Which features of two prompts, of either kind, would turn one prediction into the other.

What a feature adds is carried to the logits by the language model's own attention, with patterns
and norm scales held still, as in circuit-tracer's local replacement model. For the last position
that is nearly the edge of a complete graph. For one before it is more: a complete graph has no edge
from there to the logits, only paths through other features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from attribution.complete.modules import CompleteModel, Lorsa, Transcoder
from attribution.contrasted import Contrast, Contrasted, contrasted
from attribution.freezing import attention_norms, recorded_hooks
from attribution.logit_gradients import run_prompt, stream_gradients
from errors import NotFinite

_READS = ("ln1.hook_normalized", "ln2.hook_normalized")  # by sublayer


@torch.inference_mode()
def contrast_complete(
    model: CompleteModel,
    prompt: Sequence[int],
    other: Sequence[int],
    position: int,
    other_position: int,
    check: Callable[[], None],
) -> Contrast:
    """`contrast` for a complete replacement model."""
    language_model, cfg = model.language_model, model.cfg
    inputs = [f"blocks.{layer}.{read}" for layer in range(cfg.n_layers) for read in _READS]
    logits, seen = run_prompt(language_model, prompt, [*recorded_hooks(language_model), *inputs])
    check()
    other_logits, other_seen = run_prompt(language_model, other, inputs)
    check()
    predicted, wanted = int(logits.argmax()), int(other_logits.argmax())
    if predicted == wanted:
        return Contrast(logits, other_logits, [])
    here, there = ([texts.pop(name)[0].float() for name in inputs] for texts in (seen, other_seen))
    unembedding = language_model.W_U
    direction = unembedding[:, wanted].float() - unembedding[:, predicted].float()
    # The MLP is held still: the gradient behind it is that behind attention too.
    by_layer = stream_gradients(language_model, seen, position, direction, attention_norms)
    features: list[Contrasted] = []
    for sublayer, texts in enumerate(zip(here, there, strict=True)):
        module = model.module(sublayer)
        activations = torch.stack(
            [
                _activations(module, x, at)
                for x, at in zip(texts, (position, other_position), strict=True)
            ]
        )
        if not activations.isfinite().all():
            raise NotFinite.of("the features' activations on a prompt", cfg.dtype)
        indices = activations.any(0).nonzero().flatten()
        [gradient], _ = by_layer[sublayer // 2]
        slopes = module.decoder.rows(indices).float() @ gradient
        features += contrasted(
            sublayer // 2,
            "lorsa" if sublayer % 2 == 0 else "transcoder",
            indices,
            activations[:, indices],
            slopes,
        )
    return Contrast(logits, other_logits, features)


def _activations(module: Transcoder | Lorsa, x: Tensor, position: int) -> Tensor:
    """All activations (d_sae,) at one position of inputs (n_pos, d_model) float32."""
    if isinstance(module, Transcoder):
        return module.encode(x[position][None])[0]
    seen = x[: position + 1]
    keys, _ = module.keys(seen, slice(0, len(seen)))
    at = torch.tensor([position], device=x.device)
    return module.activations(module.pattern(seen[-1:], at, keys), module.values(seen))[0]

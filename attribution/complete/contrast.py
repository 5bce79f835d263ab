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
from attribution.contrasted import Contrast, active_in_either, contrasted
from attribution.freezing import attention_norms
from attribution.logit_gradients import stream_gradients
from attribution.two_prompts import run_both

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
    found, direction, seen, read = run_both(language_model, prompt, other, inputs)
    if direction is None:
        return found
    # The MLP is held still: the gradient behind it is that behind attention too.
    by_layer = stream_gradients(language_model, seen, position, direction, attention_norms, check)
    for sublayer, (here, there) in enumerate(read):
        check()
        module, [gradient] = model.module(sublayer), by_layer[sublayer // 2][0]
        activations = torch.stack(
            [_activations(module, here, position), _activations(module, there, other_position)]
        )
        [indices] = active_in_either(activations, cfg.dtype)
        slopes = module.decoder.rows(indices).float() @ gradient
        found.features.extend(
            contrasted(
                sublayer // 2,
                "lorsa" if sublayer % 2 == 0 else "transcoder",
                indices,
                activations[:, indices],
                slopes,
            )
        )
    return found


def _activations(module: Transcoder | Lorsa, x: Tensor, position: int) -> Tensor:
    """All activations (d_sae,) at one position of inputs (n_pos, d_model)."""
    x = x.float()
    if isinstance(module, Transcoder):
        return module.encode(x[position][None])[0]
    seen = x[: position + 1]
    keys, _ = module.keys(seen, slice(0, len(seen)))
    at = torch.tensor([position], device=x.device)
    return module.activations(module.pattern(seen[-1:], at, keys), module.values(seen))[0]

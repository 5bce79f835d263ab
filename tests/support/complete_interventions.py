"""A plain, slow experiment on a complete replacement model, with the layers held that it names.

Two passes over the text for each experiment: one that records what is held, one that holds it. It
shares no code with `steering`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from attribution.complete import CompleteModel
from steering import Intervention
from tests.support.complete_steering import activations_of

_OUTPUTS = ("hook_attn_out", "hook_mlp_out")
_SCALES = ("ln1.hook_scale", "ln2.hook_scale")


def held_logits(
    model: CompleteModel, ids: Sequence[int], interventions: Sequence[Intervention], layers: range
) -> Tensor:
    """Logits (d_vocab,) after the text, with what attention and MLPs of `layers` add held.

    Patterns are held everywhere, and with all layers the scales of norms too. A feature is counted
    from its activation on the text as it is, and writes if its layer is held.
    """
    lm, tokens = model.language_model, torch.tensor([list(ids)], device=model.cfg.device)
    seen, inputs = _recorded(lm, tokens)
    held = [f"blocks.{n}.attn.hook_pattern" for n in range(lm.cfg.n_layers)]
    if len(layers) == lm.cfg.n_layers:
        held += [f"blocks.{n}.{scale}" for n in layers for scale in _SCALES]
        held.append("ln_final.hook_scale")
    changed = {
        f"blocks.{n}.{output}": seen[f"blocks.{n}.{output}"].double().clone()
        for n in layers
        for output in _OUTPUTS
    }
    for i in interventions:
        name = f"blocks.{i.layer // 2}.{_OUTPUTS[i.layer % 2]}"
        if name in changed:
            module = model.module(i.layer)
            own = activations_of(module, inputs[i.layer])[i.position, i.index]
            written = module.decoder.rows(torch.tensor([i.index]))[0].double()
            changed[name][0, i.position] += (i.value - own) * written

    def hold(x: Tensor, hook: Any) -> Tensor:
        return seen[hook.name]

    def change(x: Tensor, hook: Any) -> Tensor:
        return changed[hook.name].to(x.dtype)

    hooks = [(name, hold) for name in held] + [(name, change) for name in changed]
    with torch.no_grad(), lm.hooks(hooks):
        return lm(tokens)[0, -1]


def _recorded(lm: Any, tokens: Tensor) -> tuple[dict[str, Tensor], list[Tensor]]:
    """What may be held, and what each sublayer reads, of the text as it is."""
    seen: dict[str, Tensor] = {}
    layers = range(lm.cfg.n_layers)
    reads = [f"blocks.{n}.{ln}.hook_normalized" for n in layers for ln in ("ln1", "ln2")]
    kept = ("attn.hook_pattern", *_OUTPUTS, *_SCALES)
    names = [
        *reads,
        "ln_final.hook_scale",
        *(f"blocks.{n}.{hook}" for n in layers for hook in kept),
    ]

    def keep(x: Tensor, hook: Any) -> None:
        seen[hook.name] = x.clone()

    with torch.no_grad(), lm.hooks([(name, keep) for name in names]):
        lm(tokens)
    return seen, [seen[name][0] for name in reads]

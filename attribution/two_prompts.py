"""Two prompts as a model reads them, a forward pass each: what a contrast starts from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attribution.contrasted import Contrast
from attribution.freezing import recorded_hooks, run_and_record
from errors import NotFinite


class TwoPrompts(NamedTuple):
    """Both prompts' logits, and what is needed to contrast their features."""

    found: Contrast  # without features
    # From the first prompt's logit to the other's, (d_model,) float32; None: it is the same logit.
    direction: Tensor | None
    seen: dict[str, Tensor]  # in the first prompt, what `recorded_hooks` recorded
    read: list[tuple[Tensor, Tensor]]  # of both, (n_pos, d_model) at each of the inputs


def run_both(
    model: Any, prompt: Sequence[int], other: Sequence[int], inputs: Sequence[str]
) -> TwoPrompts:
    """Run a HookedTransformer on two prompts.

    Args:
        inputs: hooks where features read.

    Raises:
        NotFinite: the logits of one aren't all finite numbers.
    """
    logits, seen = _run(model, prompt, [*recorded_hooks(model), *inputs])
    other_logits, other_seen = _run(model, other, inputs)
    read = [(seen.pop(name)[0], other_seen.pop(name)[0]) for name in inputs]
    predicted, wanted = int(logits.argmax()), int(other_logits.argmax())
    direction = None
    if predicted != wanted:
        direction = model.W_U[:, wanted].float() - model.W_U[:, predicted].float()
    return TwoPrompts(Contrast(logits, other_logits, []), direction, seen, read)


def _run(model: Any, ids: Sequence[int], names: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
    logits, seen = run_and_record(model, torch.tensor(ids, device=model.cfg.device), names)
    if not logits.isfinite().all():
        raise NotFinite.of("the model's logits after a prompt", model.cfg.dtype)
    return logits, seen

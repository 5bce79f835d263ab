"""What the self-tests of both engines share: how far two numbers for one thing may be apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import steering
from attribution.salient_logits import probabilities_of
from steering import Intervention, Options
from steering.kinds import n_context, n_layers

# How far log-probabilities of two runs may be apart. A GPU may add in another order, and the last
# bit of a bfloat16 logit between 32 and 64 is 0.25.
_ROUNDING = 0.5

_SMALLEST = 1e-6  # less likely tokens are compared as if they had this probability


class InconsistentError(Exception):
    """Two ways to compute one number disagree; the message says which."""


class UnexplainedError(Exception):
    """The set explains nothing of the model; the message says how far it is off."""


def tolerance(dtype: torch.dtype) -> float:
    """How far a sum may be off, as a share of the sum of its terms' sizes.

    The terms and the sum are rounded to the dtype, and added in float32.
    """
    return 4 * torch.finfo(dtype).eps + 64 * torch.finfo(torch.float32).eps


def probability_tolerance(dtype: torch.dtype) -> float:
    """How much probability may move when a pass runs in another batch.

    In bfloat16 a quarter, since the last bit of a logit between 16 and 64 is 0.1 to 0.25.
    """
    return min(0.25, 4096 * torch.finfo(dtype).eps)


def check_logits(token_ids: Tensor, probabilities: Tensor, logits: Tensor) -> None:
    """A graph's logit nodes (n,) have the probabilities that a forward pass gives."""
    expected = probabilities_of(logits).cpu()[token_ids.cpu()]
    change = float((probabilities.cpu() - expected).abs().sum())
    if not change <= probability_tolerance(logits.dtype):
        raise InconsistentError(
            f"a graph and a forward pass differ by {change:.2g} in next-token probability"
        )


def check_second_run(first: Tensor, second: Tensor) -> None:
    """A run of the model gives what an earlier one gave."""
    first, second = (probabilities_of(run).clamp_min(_SMALLEST).log() for run in (first, second))
    change = float((second - first).abs().max())
    if not change <= _ROUNDING:
        raise InconsistentError(
            "it predicts otherwise on its second run than on its first (log-probabilities change "
            f"by up to {change:.2g}), as if something of the first run were left over"
        )


def logit_gradients(token_ids: Tensor, model: Any, ids: Sequence[int]) -> Tensor:
    """Gradients of logits, less the mean logit, before the final norm, in float32 on the CPU.

    Args:
        token_ids: (n_logits,) whose logits are meant.
        model: a HookedTransformer.
        ids: the prompt.
    """
    scales: list[Tensor] = []
    with model.hooks([("ln_final.hook_scale", lambda scale, hook: scales.append(scale))]):  # noqa: ARG005
        model(torch.tensor([list(ids)], device=model.cfg.device))
    W_U = model.unembed.W_U
    mean = W_U.mean(-1, dtype=torch.float32).cpu()
    gradients = W_U[:, token_ids.to(W_U.device)].cpu().float().T - mean
    norm = model.ln_final
    if hasattr(norm, "w"):
        gradients = gradients * norm.w.cpu().float()
    if type(norm).__name__.startswith("LayerNorm"):
        gradients = gradients - gradients.mean(-1, keepdim=True)
    return gradients / scales[-1][0, -1].cpu().float()


def check_steer(model: Any, ids: Sequence[int], own: Sequence[Intervention]) -> None:
    """Features held at their own activations change nothing; ablated, they leave finite numbers."""
    cfg = model.cfg
    options = Options(n_tokens=min(1, n_context(model) - len(ids)), top_k=cfg.d_vocab)
    default, held = (
        torch.zeros(cfg.d_vocab).scatter(0, side.top_ids[0], side.top_probs[0])
        for side in steering.generate_both(model, ids, own, options)
    )
    change = float((held - default).abs().sum() / 2)
    if not change <= probability_tolerance(cfg.dtype):
        raise InconsistentError(
            f"features set to the activations that they have move {change:.2g} of the next token's "
            "probability"
        )
    ablated = [replace(intervention, value=0.0) for intervention in own]
    # A feature of each layer ablated on the generated tokens too, so that their passes have hooks.
    ablated += [Intervention(layer, 0, None, 0.0) for layer in range(n_layers(model))]
    steering.generate(model, ids, ablated, options)

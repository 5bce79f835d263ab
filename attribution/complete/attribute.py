"""The attribution graph of a prompt in a complete replacement model."""

from __future__ import annotations

from collections.abc import Callable

import torch

import errors
from attribution.complete.edges import attribution_rows
from attribution.complete.graph import CompleteGraph
from attribution.complete.local_model import LocalCompleteModel
from attribution.expansion import Expansion
from attribution.progress import Progress
from attribution.target_kinds import ActiveOnPrompt
from attribution.targets import Requested, find_targets


@torch.no_grad()
def attribute(
    local: LocalCompleteModel,
    *,
    attribution_targets: Requested | None = None,
    max_n_logits: int = 10,
    desired_logit_prob: float = 0.95,
    batch_size: int = 48,
    max_feature_nodes: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    check: Callable[[], None] = lambda: None,
) -> CompleteGraph:
    """Return the attribution graph of a prompt, that of llamascopium's `attribute`.

    Args:
        local: a model on one prompt, as `freeze` gives it.
        attribution_targets: token ids (n,), circuit-tracer's custom targets, or a list in which
            token ids, token strings, differences of logits and features may mix; None for the
            likeliest tokens.
        max_n_logits: most logit nodes, where targets are not given.
        desired_logit_prob: logit nodes are added until their probabilities sum to this.
        batch_size: features are ranked anew after so many. It decides which are selected.
        max_feature_nodes: most features in the graph; None for all that are active.
        on_progress: called with (feature nodes done, feature nodes in all), from (0, total).
        check: called before each batch; raises to stop the attribution.

    Raises:
        errors.OutOfMemory: not even a batch of one fits.
        errors.NotFinite: the model's numbers on this prompt overflow in its dtype.
        errors.InvalidInput: a target is a feature that isn't active on the prompt.
    """
    progress, model = Progress(max_feature_nodes, on_progress, check), local.model
    targets = find_targets(
        attribution_targets,
        local.logits,
        model.language_model.W_U,
        model.tokenizer,
        ActiveOnPrompt(local.active_features, local.activation_values, has_sublayers=True),
        max_n_logits=max_n_logits,
        desired_logit_prob=desired_logit_prob,
    )
    progress.start(local.shape.n_active)
    expansion = Expansion(local, attribution_rows, targets, batch_size, 1, progress)
    selected, adjacency = expansion.expand(progress.total)
    # One pass without a copy: a number that isn't finite is the least or the largest, or spreads.
    if not torch.stack(adjacency.aminmax()).isfinite().all():
        raise errors.NotFinite.of("the edges of this prompt's graph", model.cfg.dtype)
    return CompleteGraph(
        input_tokens=local.tokens.cpu(),
        logit_targets=targets.logit_targets,
        logit_probabilities=targets.probabilities.cpu(),
        vocab_size=targets.vocab_size,
        active_features=local.active_features.cpu(),
        activation_values=local.activation_values.cpu(),
        selected_features=selected,
        adjacency_matrix=adjacency,
        cfg=model.cfg,
    )

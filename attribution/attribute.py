"""The attribution graph of a prompt: logits first, then the features that matter most to them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Literal

import torch
from circuit_tracer.graph import Graph

import errors
from attribution.expansion import Expansion
from attribution.freezing import build_local_replacement_model
from attribution.library import attribute_with_library
from attribution.progress import Progress
from attribution.support import unsupported
from attribution.sweep import attribution_rows
from attribution.target_kinds import ActiveOnPrompt
from attribution.targets import Requested, find_targets

logger = logging.getLogger(__name__)

Method = Literal["explicit sweep", "circuit-tracer"]


def method_for(model: Any) -> Method:
    """Which way `attribute` takes for this replacement model."""
    return "explicit sweep" if unsupported(model) is None else "circuit-tracer"


@torch.no_grad()
def attribute(
    prompt: str | torch.Tensor | list[int],
    model: Any,
    *,
    attribution_targets: Requested | None = None,
    max_n_logits: int = 10,
    desired_logit_prob: float = 0.95,
    batch_size: int = 48,
    max_feature_nodes: int | None = None,
    update_interval: int = 4,
    on_progress: Callable[[int, int], None] | None = None,
    check: Callable[[], None] = lambda: None,
) -> Graph:
    """Return the attribution graph of `prompt`: what `circuit_tracer.attribute` gives.

    Args:
        prompt: text, or token ids of shape (n_pos,).
        model: a circuit-tracer replacement model. It is left as it came, whatever happens.
        attribution_targets: as `circuit_tracer.attribute` takes them, or a list in which token
            ids, token strings, differences of logits and features may mix; None for the likeliest.
        max_n_logits: most logit nodes, where targets are not given.
        desired_logit_prob: logit nodes are added until their probabilities sum to this.
        batch_size: targets of a batch. Those of `update_interval` batches are carried down at once
            where there is memory for it, fewer than a batch when memory runs out.
        max_feature_nodes: most features in the graph; None for all that are active.
        update_interval: batches between two rankings of which features to expand next.
        on_progress: called with (feature nodes done, feature nodes in all), from (0, total).
        check: called at each layer's features and before each batch; raises to stop.

    Raises:
        errors.OutOfMemory: not even a batch of one fits.
        errors.NotFinite: the model's numbers on this prompt overflow in its dtype.
        errors.InvalidInput: a target is a feature that isn't active on the prompt.
    """
    progress = Progress(max_feature_nodes, on_progress, check)
    reason = unsupported(model)
    if reason is not None:
        logger.info("attributing with circuit-tracer: %s", reason)
        with torch.enable_grad():
            return attribute_with_library(
                prompt,
                model,
                progress,
                attribution_targets=attribution_targets,
                max_n_logits=max_n_logits,
                desired_logit_prob=desired_logit_prob,
                batch_size=batch_size,
                update_interval=update_interval,
            )
    tokens = model.ensure_tokenized(prompt)
    local = build_local_replacement_model(model, tokens, check)
    if not local.logits.isfinite().all():
        raise errors.NotFinite.of("the model's logits after this prompt", model.cfg.dtype)
    active = local.features.activations
    targets = find_targets(
        attribution_targets,
        local.logits,
        model.unembed.W_U,
        model.tokenizer,
        ActiveOnPrompt(active.indices().T, active.values()),
        max_n_logits=max_n_logits,
        desired_logit_prob=desired_logit_prob,
    )
    progress.start(local.shape.n_active)
    expansion = Expansion(local, attribution_rows, targets, batch_size, update_interval, progress)
    selected, adjacency = expansion.expand(progress.total)
    # One pass without a copy: a number that isn't finite is the least or the largest, or spreads.
    if not torch.stack(adjacency.aminmax()).isfinite().all():
        raise errors.NotFinite.of("the edges of this prompt's graph", model.cfg.dtype)
    return Graph(
        input_string=model.tokenizer.decode(tokens),
        input_tokens=tokens,
        logit_targets=targets.logit_targets,
        logit_probabilities=targets.probabilities,
        vocab_size=targets.vocab_size,
        active_features=active.indices().T,
        activation_values=active.values().float(),
        selected_features=selected,
        adjacency_matrix=adjacency,
        cfg=model.cfg,
        scan=model.scan,
    )

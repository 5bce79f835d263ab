"""The attribution graph of a prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch

from attribution.library import attribute_with_library

if TYPE_CHECKING:
    from circuit_tracer.graph import Graph

Method = Literal["explicit sweep", "circuit-tracer"]


def method_for(model: Any) -> Method:  # noqa: ARG001
    """Which way `attribute` takes for this replacement model."""
    return "circuit-tracer"


def attribute(
    prompt: str | torch.Tensor | list[int],
    model: Any,
    *,
    attribution_targets: Sequence[Any] | torch.Tensor | None = None,
    max_n_logits: int = 10,
    desired_logit_prob: float = 0.95,
    batch_size: int = 48,
    max_feature_nodes: int | None = None,
    update_interval: int = 4,
    on_progress: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Graph:
    """Return the attribution graph of `prompt`, as `circuit_tracer.attribute` gives it."""
    return attribute_with_library(
        prompt,
        model,
        attribution_targets=attribution_targets,
        max_n_logits=max_n_logits,
        desired_logit_prob=desired_logit_prob,
        batch_size=batch_size,
        max_feature_nodes=max_feature_nodes,
        update_interval=update_interval,
        on_progress=on_progress,
        should_stop=should_stop,
    )

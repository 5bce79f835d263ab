"""Attribution as circuit-tracer does it: for models that the explicit sweep does not cover."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import circuit_tracer
import torch

from attribution.progress import Progress

if TYPE_CHECKING:
    from circuit_tracer.graph import Graph


def attribute_with_library(
    prompt: str | torch.Tensor | list[int],
    model: Any,
    *,
    attribution_targets: Sequence[Any] | torch.Tensor | None,
    max_n_logits: int,
    desired_logit_prob: float,
    batch_size: int,
    max_feature_nodes: int | None,
    update_interval: int,
    on_progress: Callable[[int, int], None] | None,
    should_stop: Callable[[], bool] | None,
) -> Graph:
    """`circuit_tracer.attribute`, with progress and stopping between its batches.

    Arguments, result and errors are those of `attribution.attribute`.
    """
    watched = _WatchedModel(model, max_feature_nodes, on_progress, should_stop)
    with _own_logging():
        return circuit_tracer.attribute(
            prompt,
            watched,
            attribution_targets=attribution_targets,
            max_n_logits=max_n_logits,
            desired_logit_prob=desired_logit_prob,
            batch_size=batch_size,
            max_feature_nodes=max_feature_nodes,
            update_interval=update_interval,
        )


class _WatchedModel:
    """A replacement model whose attribution context reports each batch and can be stopped."""

    def __init__(
        self,
        model: Any,
        max_feature_nodes: int | None,
        on_progress: Callable[[int, int], None] | None,
        should_stop: Callable[[], bool] | None,
    ) -> None:
        self._model = model
        self._max_feature_nodes = max_feature_nodes
        self._on_progress = on_progress
        self._should_stop = should_stop

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def setup_attribution(self, inputs: torch.Tensor) -> Any:
        context = self._model.setup_attribution(inputs)
        n_active = context.activation_matrix._nnz()
        total = min(self._max_feature_nodes or n_active, n_active)
        progress = Progress(total, self._on_progress, self._should_stop)
        compute_batch = context.compute_batch

        def watched_batch(layers: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            progress.check()
            rows: torch.Tensor = compute_batch(layers, *args, **kwargs)
            if int(layers[0]) < context.n_layers:  # a batch of features, not of logits
                progress.advance(len(layers))
            return rows

        context.compute_batch = watched_batch
        return context


@contextmanager
def _own_logging() -> Iterator[None]:
    """Undo what the library does to the logger "attribution", which is this package's too."""
    logger = logging.getLogger("attribution")
    level, propagate = logger.level, logger.propagate
    try:
        yield
    finally:
        logger.level, logger.propagate = level, propagate

"""Attribution as circuit-tracer does it: for models that the explicit sweep does not cover."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from circuit_tracer.utils.tl_nnsight_mapping import get_mapping

import errors
from attribution.circuit_tracer_names import library_loop, run_forward_pass, unembedding
from attribution.device_errors import is_out_of_memory
from attribution.library_targets import OwnTargets, for_the_library
from attribution.progress import Progress

if TYPE_CHECKING:
    from circuit_tracer.graph import Graph

logger = logging.getLogger(__name__)


def attribute_with_library(
    prompt: str | torch.Tensor | list[int],
    model: Any,
    progress: Progress,
    **settings: Any,
) -> Graph:
    """`circuit_tracer.attribute`, with progress, stopping and less memory between its batches.

    Settings, result and errors are those of `attribution.attribute`. One thing differs from the
    library: with nnsight it leaves Gemma 3's embedding scale out of the edges from tokens.
    """
    targets, own = for_the_library(settings.pop("attribution_targets"))
    watched, n_features = _WatchedModel(model, progress, own), progress.max_feature_nodes
    with _own_logging():
        graph = library_loop()(
            prompt, watched, attribution_targets=targets, max_feature_nodes=n_features, **settings
        )
    if own is not None:
        graph.logit_targets = own.logit_targets
    graph.activation_values = graph.activation_values.float()
    return graph


class _WatchedModel:
    """A replacement model whose attribution context is a `_WatchedContext`.

    The forward pass is the context's. PyPI's loop calls `run_forward_pass` for it; upstream's has
    `ln_final(forward(tokens))`, the prompt once a row, and gets what the context's pass left.
    """

    def __init__(self, model: Any, progress: Progress, own: OwnTargets | None) -> None:
        self._model, self._progress, self._own = model, progress, own

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def setup_attribution(self, inputs: torch.Tensor) -> _WatchedContext:
        context = self._model.setup_attribution(inputs)
        if not context.logits[0, -1].isfinite().all():
            raise errors.NotFinite.of("the model's logits after this prompt", self._model.cfg.dtype)
        # The library takes probabilities in the dtype of the logits.
        context.logits = context.logits[:, -1:].float()
        if self._model.backend == "nnsight":
            context.token_vectors = _embedded(self._model, inputs)
        if self._own is not None:
            self._own.find(context, self._model)
        self._progress.start(context.activation_matrix._nnz())
        self._context = _WatchedContext(context, self._model, self._progress, self._own)
        return self._context

    def run_forward_pass(
        self, input_ids: torch.Tensor, batch_size: int, context: _WatchedContext
    ) -> None:
        context.run_forward_pass(input_ids, batch_size)

    def forward(self, tokens: torch.Tensor, **_: Any) -> torch.Tensor:
        self._context.run_forward_pass(tokens[0], len(tokens))
        normalised: torch.Tensor = self._context._resid_activations[-1]
        return normalised

    def ln_final(self, normalised: torch.Tensor) -> torch.Tensor:
        return normalised

    @property
    def unembed(self) -> Any:
        return SimpleNamespace(W_U=unembedding(self._model))


def _embedded(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """What an nnsight model's embedding gives for `tokens`, (n_pos, d_model).

    The library takes rows of its weight, which Gemma 3 scales by sqrt(d_model) inside the module.
    """
    path = get_mapping(model.cfg.original_architecture).embed_location
    with torch.no_grad():
        embedded: torch.Tensor = model._resolve_attr(model._module, path)(tokens)
        return embedded


class _WatchedContext:
    """The library's attribution context, which reports each batch and can stop before it.

    A batch that doesn't fit the device goes through it in parts, with a forward pass of fewer rows.
    Which features are selected goes by the batch size that was asked for.
    """

    def __init__(
        self, context: Any, model: Any, progress: Progress, own: OwnTargets | None
    ) -> None:
        self._context, self._model, self._progress = context, model, progress
        self._places = None if own is None else own.places
        # The lists that a forward pass fills, as it has to find them.
        names = ("_resid_activations", "_feature_output_activations")
        self._empty = {name: list(getattr(context, name, [])) for name in names}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def install_hooks(self, _model: Any) -> AbstractContextManager[None]:
        return nullcontext()  # each forward pass installs its own

    def run_forward_pass(self, input_ids: torch.Tensor, n_rows: int) -> None:
        # No batch of features is longer, and one of more logits goes through in parts.
        n_rows = min(n_rows, max(self._progress.total, 1))
        self._input_ids, self._n_rows = input_ids, n_rows
        while not self._fits(self._forward):
            self._halve()

    def compute_batch(
        self,
        layers: torch.Tensor,
        positions: torch.Tensor,
        inject_values: torch.Tensor,
        retain_graph: bool = True,
    ) -> torch.Tensor:
        self._progress.check()
        are_targets = int(layers[0]) == self._context.n_layers
        if are_targets and self._places is not None:
            own, self._places = self._places.tensor_split([len(layers)])
            layers, positions = own.T
        parts: list[torch.Tensor] = []
        start = 0
        while start < len(layers):
            end = start + self._n_rows

            def compute(start: int = start, end: int = end) -> None:
                rows = self._context.compute_batch(
                    layers[start:end],
                    positions[start:end],
                    inject_values[start:end],
                    retain_graph=retain_graph or end < len(layers),
                )
                parts.append(rows)

            if self._fits(compute):
                start = end
            else:
                self._halve()
                self.run_forward_pass(self._input_ids, self._n_rows)
        rows = torch.cat(parts)
        if not rows.isfinite().all():
            raise errors.NotFinite.of("the edges of this prompt's graph", self._model.cfg.dtype)
        if not are_targets:
            self._progress.advance(len(layers))
        return rows

    def _forward(self) -> None:
        for name, value in self._empty.items():
            setattr(self._context, name, value.copy())
        run_forward_pass(self._model, self._input_ids, self._n_rows, self._context)

    def _fits(self, step: Callable[[], None]) -> bool:
        """Whether the device has room for a step; what it took is free again if not."""
        try:
            step()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if self._n_rows == 1:
                raise errors.OutOfMemory(
                    "a single attribution target does not fit the device: send a shorter prompt"
                ) from error
            return False
        return True

    def _halve(self) -> None:
        self._n_rows //= 2
        for name in self._empty:
            setattr(self._context, name, [])
        gc.collect()  # what failed refers to itself: nnsight's traces, and the error's frames
        logger.warning("out of memory: attributing in batches of %d", self._n_rows)


@contextmanager
def _own_logging() -> Iterator[None]:
    """Undo what the library does to the logger "attribution", which is this package's too."""
    logger = logging.getLogger("attribution")
    level, propagate = logger.level, logger.propagate
    try:
        yield
    finally:
        logger.level, logger.propagate = level, propagate

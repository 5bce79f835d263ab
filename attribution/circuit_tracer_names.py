"""What circuit-tracer on PyPI, a fork, and its own repository have under different names.

The package on PyPI has one loop for both engines, which asks the model to run its forward pass. The
repository has a loop for each, with the forward pass written out in it. All else that is used here
has one name in both: `model.cfg`, `model.unembed.W_U`, `circuit_tracer.attribution.targets`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from circuit_tracer.graph import Graph


def library_loop() -> Callable[..., Graph]:
    """`circuit_tracer.attribute`, or upstream's loop for TransformerLens.

    Upstream's two loops differ only in the forward pass and in how they name the parts of the
    model. A model that has these under TransformerLens's names can go through that loop.
    """
    try:
        from circuit_tracer.attribution.attribute_transformerlens import attribute
    except ModuleNotFoundError:
        from circuit_tracer import attribute
    loop: Callable[..., Graph] = attribute
    return loop


def attribution_context(model: Any) -> Callable[..., Any]:
    """The class that holds one prompt's attribution, for the engine of this model."""
    if model.backend == "nnsight":
        from circuit_tracer.attribution.context_nnsight import AttributionContext
    else:
        from circuit_tracer.attribution.context_transformerlens import AttributionContext
    return AttributionContext


def unembedding(model: Any) -> torch.Tensor:
    """The unembedding matrix: (d_model, d_vocab), or with nnsight (d_vocab, d_model)."""
    matrix: torch.Tensor = model.unembed_weight if model.backend == "nnsight" else model.unembed.W_U
    return matrix


def run_forward_pass(model: Any, input_ids: torch.Tensor, n_rows: int, context: Any) -> None:
    """Run `input_ids` (n_pos,) in `n_rows` rows, and keep what attribution needs in `context`."""
    if hasattr(model, "run_forward_pass"):
        model.run_forward_pass(input_ids, n_rows, context)
    elif model.backend == "nnsight":
        _trace(model, input_ids.expand(n_rows, -1), context)
    else:
        with context.install_hooks(model):
            residual = model.forward(input_ids.expand(n_rows, -1), stop_at_layer=model.cfg.n_layers)
            context._resid_activations[-1] = model.ln_final(residual)


def _trace(model: Any, tokens: torch.Tensor, context: Any) -> None:
    """Run `tokens` (n_rows, n_pos) through nnsight, with gradients stopped and skips rerouted."""
    with model.trace() as tracer:
        with tracer.invoke(tokens):
            pass
        barrier = tracer.barrier(2)
        model.configure_gradient_flow(tracer)
        model.configure_skip_connection(tracer, barrier=barrier)
        context.cache_residual(model, tracer, barrier=barrier)

"""Inputs of transcoders, cast to the dtype of the transcoders' weights.

In 16 bits a norm is computed in float32, and transcoders that read there get its float32 output,
before it is cast back. torch refuses to multiply that by weights of 16 bits: by encoders of
cross-layer sets and by skip connections. Per-layer encoders cast their inputs themselves.
"""

from functools import wraps
from typing import Any

import torch
from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder
from torch import nn


def cast_inputs(module: nn.Module, *methods: str, back: bool = False) -> None:
    """Make methods of transcoders take tensors of any dtype.

    Args:
        methods: their names. Tensors among their positional arguments are cast to the dtype of the
            module's parameters.
        back: cast the result to the dtype of the last argument.
    """
    for name in methods:
        setattr(module, name, _casting(module, getattr(module, name), back=back))


def cast_skip_inputs(transcoders: Any) -> None:
    """Make skip connections take inputs of any dtype, and give outputs in the same dtype."""
    if transcoders.skip_connection:
        cross_layer = isinstance(transcoders, CrossLayerTranscoder)
        for module in [transcoders] if cross_layer else transcoders:
            cast_inputs(module, "compute_skip", back=True)


def _casting(module: nn.Module, method: Any, *, back: bool) -> Any:
    @wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        dtype = next(module.parameters()).dtype
        cast = [a.to(dtype) if torch.is_tensor(a) else a for a in args]
        result = method(*cast, **kwargs)
        return result.to(args[-1].dtype) if back else result

    return call

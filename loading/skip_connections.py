"""Skip connections of transcoders that read behind a norm, in 16 bits."""

from functools import wraps
from typing import Any

from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder
from torch import Tensor


def take_skip_inputs_of_any_dtype(transcoders: Any) -> None:
    """Have `compute_skip` take inputs of any dtype, and give its output in that of the input.

    TransformerLens hands `ln2.hook_normalized` over in float32 where the model has 16 bits, and
    circuit-tracer multiplies it by weights of 16 bits, which torch refuses: not even a forward pass
    would run.
    """
    if not transcoders.skip_connection:
        return
    cross_layer = isinstance(transcoders, CrossLayerTranscoder)
    for transcoder in [transcoders] if cross_layer else transcoders:
        _wrap(transcoder)


def _wrap(transcoder: Any) -> None:
    compute_skip = transcoder.compute_skip

    @wraps(compute_skip)
    def in_dtype_of_input(*args: Any) -> Tensor:
        *layer, inputs = args
        skipped: Tensor = compute_skip(*layer, inputs.to(transcoder.W_skip.dtype))
        return skipped.to(inputs.dtype)

    transcoder.compute_skip = in_dtype_of_input

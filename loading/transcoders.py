"""Transcoders from their files, as circuit-tracer's modules in memory or left on the disk.

circuit-tracer's own loaders go by Hugging Face ids and ask the hub each time, know ReLU and
JumpReLU but not TopK, and hold a cross-layer set twice while they read Gemma Scope 2's files. Here
its modules are filled a tensor at a time from files that `loading.inspection` checked.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from functools import wraps
from typing import Any, TypeAlias

import torch
from circuit_tracer.transcoder import TranscoderSet
from circuit_tracer.transcoder.activation_functions import JumpReLU, TopK
from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder
from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder
from torch import nn

from loading.inspection import Contents
from loading.layers import Layer

logger = logging.getLogger(__name__)

Transcoders: TypeAlias = TranscoderSet | CrossLayerTranscoder

_BANDWIDTH = 0.1  # circuit-tracer's, of JumpReLU's gradient in training


def transcoders(
    contents: Contents,
    *,
    device: torch.device,
    dtype: torch.dtype,
    lazy_encoder: bool,
    lazy_decoder: bool,
) -> Transcoders:
    """Read a set of transcoders.

    GemmaScope's files (`.npz`, and those of version 2 as published) are read whole, whatever is
    asked for; `loading.converted` makes copies of them that can be left on the disk.

    Raises:
        WeightsError: a file is damaged; the message says what to do.
    """
    lazy = [name for name, on in (("W_enc", lazy_encoder), ("W_dec", lazy_decoder)) if on]
    stuck = [layer for layer in contents.layers if not layer.layout.can_be_lazy]
    if lazy and stuck:
        logger.warning(
            "%s can't be left on the disk in the format it has: %d of %d layers are read whole",
            stuck[0].stored["W_enc"].path,
            len(stuck),
            len(contents.layers),
        )
    files, config = contents.files, contents.files.config
    loaded: Transcoders
    if config.kind == "cross_layer_transcoder":
        loaded = _cross_layer_transcoder(contents, () if stuck else lazy, device, dtype)
    else:
        layers = {
            layer.number: _transcoder(
                layer, contents, lazy if layer.layout.can_be_lazy else (), device, dtype
            )
            for layer in contents.layers
        }
        hooks = (config.feature_input_hook, config.feature_output_hook)
        loaded = TranscoderSet(layers, *hooks, files.scan)
    cast_skip_inputs(loaded)
    return loaded


def _transcoder(
    layer: Layer,
    contents: Contents,
    lazy: Collection[str],
    device: torch.device,
    dtype: torch.dtype,
) -> SingleLayerTranscoder:
    state = {
        name: layer.read(name, device=str(device), dtype=dtype).contiguous()
        for name in _names(layer, lazy)
    }
    activation_function: Any = torch.nn.functional.relu
    if "threshold" in state:
        activation_function = JumpReLU(state["threshold"], _BANDWIDTH)
        state["activation_function.threshold"] = state.pop("threshold")
    elif contents.k is not None:
        activation_function = TopK(contents.k)
    with torch.device("meta"):
        transcoder = SingleLayerTranscoder(
            contents.d_model,
            contents.n_features,
            activation_function,
            layer.number,
            skip_connection=contents.skip,
            transcoder_path=str(layer.stored["W_enc"].path),
            lazy_encoder="W_enc" in lazy,
            lazy_decoder="W_dec" in lazy,
        )
    transcoder.load_state_dict(state, assign=True)
    return transcoder


def _cross_layer_transcoder(
    contents: Contents, lazy: Collection[str], device: torch.device, dtype: torch.dtype
) -> CrossLayerTranscoder:
    files, config = contents.files, contents.files.config
    with torch.device("meta"):
        transcoder = CrossLayerTranscoder(
            len(contents.layers),
            contents.n_features,
            contents.d_model,
            activation_function="jump_relu" if contents.activation == "jump_relu" else "relu",
            skip_connection=contents.skip,
            lazy_encoder="W_enc" in lazy,
            lazy_decoder="W_dec" in lazy,
            feature_input_hook=config.feature_input_hook,
            feature_output_hook=config.feature_output_hook,
            scan=files.scan,
            dtype=dtype,
            clt_path=str(files.folder),
        )
    state = {
        name: torch.empty(parameter.shape, device=device, dtype=dtype)
        for name, parameter in transcoder.named_parameters()
        if not name.startswith("W_dec")
    }
    for layer in contents.layers:
        for name in _names(layer, lazy):
            tensor = layer.read(name, device=str(device), dtype=dtype)
            if name == "W_dec":
                state[f"W_dec.{layer.number}"] = tensor
            elif name == "threshold":
                state["activation_function.threshold"][layer.number] = tensor
            else:
                state[name][layer.number] = tensor
    transcoder.load_state_dict(state, assign=True)
    if contents.k is not None:
        transcoder.activation_function = TopK(contents.k)
    return transcoder


def _names(layer: Layer, lazy: Collection[str]) -> list[str]:
    """The tensors of a layer that are loaded: a k is none of circuit-tracer's."""
    return [name for name in layer.stored if name not in (*lazy, "k")]


def cast_inputs(module: nn.Module, *methods: str, back: bool = False) -> None:
    """Make methods of transcoders take tensors of any dtype.

    In 16 bits a norm is computed in float32, and transcoders that read there get its float32
    output, before it is cast back. torch refuses to multiply that by weights of 16 bits: by
    encoders of cross-layer sets and by skip connections. Per-layer encoders cast their inputs
    themselves.

    Args:
        methods: their names. Tensors among their positional arguments are cast to the dtype of the
            module's parameters.
        back: cast the result to the dtype of the last argument.
    """

    def casting(method: Any) -> Any:
        @wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            dtype = next(module.parameters()).dtype
            cast = [a.to(dtype) if torch.is_tensor(a) else a for a in args]
            result = method(*cast, **kwargs)
            return result.to(args[-1].dtype) if back else result

        return call

    for name in methods:
        setattr(module, name, casting(getattr(module, name)))


def cast_skip_inputs(transcoders: Any) -> None:
    """Make skip connections take inputs of any dtype, and give outputs in the same dtype."""
    if transcoders.skip_connection:
        cross_layer = isinstance(transcoders, CrossLayerTranscoder)
        for module in [transcoders] if cross_layer else transcoders:
            cast_inputs(module, "compute_skip", back=True)

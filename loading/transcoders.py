"""Transcoders on the disk, as circuit-tracer's transcoders in memory or left on the disk.

circuit-tracer's own loaders go by Hugging Face ids and ask the hub each time, know ReLU and
JumpReLU but not TopK, and hold a cross-layer set twice while they read Gemma Scope 2's files. Here
the files are found by `loading.sources`, what they are is told by `loading.inspection`, and
circuit-tracer's modules are filled from them a tensor at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import torch
from circuit_tracer.transcoder import TranscoderSet
from circuit_tracer.transcoder.activation_functions import JumpReLU, TopK
from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder
from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder
from safetensors import safe_open

from loading.inspection import Contents, Layer, inspect
from loading.npz_files import read_arrays
from loading.sources import TranscoderFiles

logger = logging.getLogger(__name__)

Transcoders: TypeAlias = TranscoderSet | CrossLayerTranscoder

_BANDWIDTH = 0.1  # circuit-tracer's, of JumpReLU's gradient in training


def transcoders(
    files: TranscoderFiles,
    *,
    device: torch.device,
    dtype: torch.dtype,
    lazy_encoder: bool,
    lazy_decoder: bool,
) -> Transcoders:
    """Read a set of transcoders.

    GemmaScope's files (`.npz`, and those of version 2 as published) are read whole, whatever is
    asked for; `loading.conversion` makes copies of them that can be left on the disk.

    Raises:
        WeightsError: the files aren't a set that is served; the message says what to do.
        safetensors.SafetensorError, OSError, ValueError: a file is damaged.
    """
    contents = inspect(files)
    lazy = {"W_enc": lazy_encoder, "W_dec": lazy_decoder}
    left = [name for name, is_lazy in lazy.items() if is_lazy]
    stuck = [layer for layer in contents.layers if not layer.layout.can_be_lazy]
    if left and stuck:
        logger.warning(
            "%s can't be left on the disk in the format it has: %d of %d layers are read whole",
            stuck[0].files["W_enc"],
            len(stuck),
            contents.n_layers,
        )
    if files.kind == "cross_layer_transcoder":
        return _cross_layer_transcoder(files, contents, left, device, dtype)
    layers = {
        number: _transcoder(number, layer, contents, left, device, dtype)
        for number, layer in enumerate(contents.layers)
    }
    config = files.config
    return TranscoderSet(layers, config.feature_input_hook, config.feature_output_hook, files.scan)


def _transcoder(
    number: int,
    layer: Layer,
    contents: Contents,
    left_on_disk: Sequence[str],
    device: torch.device,
    dtype: torch.dtype,
) -> SingleLayerTranscoder:
    left = left_on_disk if layer.layout.can_be_lazy else ()
    state = dict(_tensors(layer, left, device, dtype))
    threshold = state.pop("threshold", None)
    if threshold is not None:
        state["activation_function.threshold"] = threshold
    with torch.device("meta"):
        transcoder = SingleLayerTranscoder(
            contents.d_model,
            contents.n_features,
            _activation_function(contents, threshold),
            number,
            skip_connection=contents.skip,
            transcoder_path=str(layer.files["W_enc"]),
            lazy_encoder="W_enc" in left,
            lazy_decoder="W_dec" in left,
        )
    transcoder.load_state_dict(state, assign=True)
    return transcoder


def _activation_function(contents: Contents, threshold: torch.Tensor | None) -> Any:
    if threshold is not None:
        return JumpReLU(threshold, _BANDWIDTH)
    return torch.nn.functional.relu if contents.k is None else TopK(contents.k)


def _cross_layer_transcoder(
    files: TranscoderFiles,
    contents: Contents,
    left_on_disk: Sequence[str],
    device: torch.device,
    dtype: torch.dtype,
) -> CrossLayerTranscoder:
    left = left_on_disk if all(layer.layout.can_be_lazy for layer in contents.layers) else ()
    with torch.device("meta"):
        transcoder = CrossLayerTranscoder(
            contents.n_layers,
            contents.n_features,
            contents.d_model,
            activation_function="jump_relu" if contents.activation == "jump_relu" else "relu",
            skip_connection=contents.skip,
            lazy_encoder="W_enc" in left,
            lazy_decoder="W_dec" in left,
            feature_input_hook=files.config.feature_input_hook,
            feature_output_hook=files.config.feature_output_hook,
            scan=files.scan,
            dtype=dtype,
            clt_path=str(files.folder),
        )
    state = {
        name: torch.empty(parameter.shape, device=device, dtype=dtype)
        for name, parameter in transcoder.named_parameters()
        if not name.startswith("W_dec")
    }
    for number, layer in enumerate(contents.layers):
        for name, tensor in _tensors(layer, left, device, dtype, first_written=number):
            if name == "W_dec":
                state[f"W_dec.{number}"] = tensor
            elif name == "threshold":
                state["activation_function.threshold"][number] = tensor
            else:
                state[name][number] = tensor
    transcoder.load_state_dict(state, assign=True)
    if contents.k is not None:
        transcoder.activation_function = TopK(contents.k)
    return transcoder


def _tensors(
    layer: Layer,
    left_on_disk: Sequence[str],
    device: torch.device,
    dtype: torch.dtype,
    first_written: int = 0,
) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a layer by circuit-tracer's names, but those left on the disk.

    Args:
        first_written: the layer's number, for files that hold decoders to the layers before too.
    """
    wanted = [name for name in layer.files if name not in (*left_on_disk, "k")]
    for path in dict.fromkeys(layer.files[name] for name in wanted):
        here = [name for name in wanted if layer.files[name] == path]
        if path.suffix == ".npz":
            stored = [layer.stored[name] for name in here]
            arrays = read_arrays(path, stored, device=device, dtype=dtype)
            for name, tensor in zip(here, arrays, strict=True):
                yield name, _turned(layer, name, tensor)
            continue
        with safe_open(path, framework="pt", device=str(device)) as opened:
            for name in here:
                if name == "W_dec" and layer.layout.all_decoders:
                    tensor = opened.get_slice(layer.stored[name])[:, first_written:]
                else:
                    tensor = opened.get_tensor(layer.stored[name])
                yield name, _turned(layer, name, tensor.to(dtype))


def _turned(layer: Layer, name: str, tensor: torch.Tensor) -> torch.Tensor:
    return tensor.T.contiguous() if name in layer.layout.transposed else tensor

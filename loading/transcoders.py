"""Transcoders on the disk, as circuit-tracer's transcoders in memory or left on the disk.

circuit-tracer's own loader goes by Hugging Face ids and asks the hub each time. Here the files are
found by `loading.sources`, and which of its readers suits them is read from the files themselves.
"""

from pathlib import Path
from typing import Literal, TypeAlias

import torch
from circuit_tracer.transcoder import TranscoderSet
from circuit_tracer.transcoder.cross_layer_transcoder import (
    CrossLayerTranscoder,
    load_clt,
    load_gemma_scope_2_clt,
)
from circuit_tracer.transcoder.single_layer_transcoder import load_transcoder_set
from safetensors import safe_open

from loading.sources import TranscoderFiles

Transcoders: TypeAlias = TranscoderSet | CrossLayerTranscoder


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
        safetensors.SafetensorError, OSError, ValueError: a file is damaged.
    """
    config = files.config
    hooks = {
        "scan": files.scan,
        "feature_input_hook": config.feature_input_hook,
        "feature_output_hook": config.feature_output_hook,
    }
    lazy = {"lazy_encoder": lazy_encoder, "lazy_decoder": lazy_decoder}
    paths = {layer: str(path) for layer, path in enumerate(files.layers)}
    if config.kind == "transcoder_set":
        return load_transcoder_set(
            paths, device=device, dtype=dtype, special_load_fn=_reader(files), **hooks, **lazy
        )
    if not paths:
        loaded = load_clt(str(files.folder), device=device, dtype=dtype, **hooks, **lazy)
        _add_skips(loaded, files.folder)
        return loaded
    # circuit-tracer 0.5.0 leaves the file of the last key out.
    paths[len(paths)] = ""
    # It also leaves skip connections in the dtype of their files.
    return load_gemma_scope_2_clt(paths, device=device, dtype=dtype, **hooks, **lazy).to(dtype)


def _add_skips(transcoder: CrossLayerTranscoder, folder: Path) -> None:
    """Read a converted set's skip connections, for which circuit-tracer's layout has no place."""
    weights = []
    for layer in range(transcoder.n_layers):
        path = folder / f"W_enc_{layer}.safetensors"
        with safe_open(path, framework="pt", device=str(transcoder.device)) as file:
            if f"W_skip_{layer}" in file.keys():  # noqa: SIM118 - it is no dictionary
                weights.append(file.get_tensor(f"W_skip_{layer}").to(transcoder.dtype))
    if weights:
        transcoder.W_skip = torch.nn.Parameter(torch.stack(weights))
        transcoder.skip_connection = True


def _reader(files: TranscoderFiles) -> Literal["gemma-scope", "gemma-scope-2"] | None:
    """Which of circuit-tracer's readers a set's files are for; None: its own format."""
    if any(path.suffix == ".npz" for path in files.layers):
        return "gemma-scope"
    return "gemma-scope-2" if "w_enc" in _tensor_names(files.layers[0]) else None


def _tensor_names(file: Path) -> set[str]:
    with safe_open(file, framework="pt") as opened:
        return set(opened.keys())

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

    GemmaScope's files (`.npz`, and those of version 2 as published) can't be left on the disk:
    circuit-tracer reads them whole whatever is asked for.

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
        return load_clt(str(files.folder), device=device, dtype=dtype, **hooks, **lazy)
    # circuit-tracer 0.5.0 leaves the file of the last key out.
    paths[len(paths)] = ""
    return load_gemma_scope_2_clt(paths, device=device, dtype=dtype, **hooks, **lazy)


def _reader(files: TranscoderFiles) -> Literal["gemma-scope", "gemma-scope-2"] | None:
    """Which of circuit-tracer's readers a set's files are for; None: its own format."""
    if any(path.suffix == ".npz" for path in files.layers):
        return "gemma-scope"
    return "gemma-scope-2" if "w_enc" in _tensor_names(files.layers[0]) else None


def _tensor_names(file: Path) -> set[str]:
    with safe_open(file, framework="pt") as opened:
        return set(opened.keys())

"""A transcoder set, by Hugging Face id or directory, as circuit-tracer's transcoders."""

from pathlib import Path
from typing import TypeAlias

import torch
import yaml
from circuit_tracer.transcoder import TranscoderSet
from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder, load_clt
from circuit_tracer.utils.hf_utils import load_transcoder_from_hub, load_transcoders

Transcoders: TypeAlias = TranscoderSet | CrossLayerTranscoder


def transcoders(
    reference: str,
    *,
    device: torch.device,
    dtype: torch.dtype,
    lazy_encoder: bool,
    lazy_decoder: bool,
) -> Transcoders:
    """The transcoders of a Hugging Face id (`owner/name[/folder][@revision]`) or a directory.

    Raises:
        FileNotFoundError: the directory holds no transcoders.
    """
    lazy = {"lazy_encoder": lazy_encoder, "lazy_decoder": lazy_decoder}
    directory = Path(reference)
    if not directory.is_dir():
        return load_transcoder_from_hub(reference, device=device, dtype=dtype, **lazy)[0]
    config = yaml.safe_load((directory / "config.yaml").read_text())
    hooks = {key: config[key] for key in ("feature_input_hook", "feature_output_hook")}
    scan = config.get("scan", directory.name)
    if config["model_kind"] == "cross_layer_transcoder":
        return load_clt(str(directory), scan=scan, device=device, dtype=dtype, **hooks, **lazy)
    n_layers = len(list(directory.glob("layer_*.safetensors")))
    if n_layers == 0:
        raise FileNotFoundError(f"no layer_*.safetensors in {directory}")
    files = [str(directory / f"layer_{layer}.safetensors") for layer in range(n_layers)]
    return load_transcoders(
        {**config, "scan": scan, "transcoders": files}, device=device, dtype=dtype, **lazy
    )

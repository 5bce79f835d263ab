"""A random Llama and its transcoders in files, with the demo's tokenizer and layout."""

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from loading.registry import DEMO


def write(
    directory: Path,
    config: LlamaConfig,
    weight: Callable[[torch.Size], Tensor],
    transcoder: Callable[[], dict[str, Tensor]],
) -> None:
    """Write a model into `model`, and a transcoder for each of its layers into `transcoders`.

    Args:
        weight: makes a weight of the model, of this shape.
        transcoder: makes the tensors of a layer's transcoder.
    """
    model, transcoders = directory / "model", directory / "transcoders"
    transcoders.mkdir()
    config.save_pretrained(model)
    with torch.device("meta"):
        shapes = {n: p.shape for n, p in LlamaForCausalLM(config).named_parameters()}
    weights = {name: weight(shape) for name, shape in shapes.items()}
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    copy_tokenizer(model)
    for layer in range(config.num_hidden_layers):
        save_file(transcoder(), transcoders / f"layer_{layer}.safetensors")
    shutil.copy(Path(DEMO.transcoder_set) / "config.yaml", transcoders)


def copy_tokenizer(folder: Path) -> None:
    """Give a model's folder the demo's tokenizer."""
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(Path(DEMO.model) / name, folder)

"""Random sets in circuit-tracer's format: written, edited and read."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.support.conversions import EAGER, LAZY, located, read
from tests.support.tiny_sets import (
    N_LAYERS,
    config_yaml,
    random_cross_layer_transcoder,
    random_transcoder,
)

HOOKS = ("mlp.hook_in", "mlp.hook_out")
PER_LAYER, CROSS_LAYER = "transcoder_set", "cross_layer_transcoder"


def write_set(directory: Path, kind: str = PER_LAYER, *, jump: bool = False, **keys) -> Path:
    """A random set in circuit-tracer's format, with more keys in its configuration."""
    torch.manual_seed(0)
    directory.mkdir(exist_ok=True)
    if kind == CROSS_LAYER:
        random_cross_layer_transcoder(jump=jump).to_safetensors(str(directory))
    else:
        for layer in range(N_LAYERS):
            path = directory / f"layer_{layer}.safetensors"
            random_transcoder(layer, jump=jump).to_safetensors(str(path))
    lines = "".join(f"\n{key}: {value}" for key, value in keys.items())
    (directory / "config.yaml").write_bytes(config_yaml(kind, *HOOKS) + lines.encode())
    return directory


def load(directory: Path, *, lazy: bool = False):
    return read(located(directory, {}), **(LAZY if lazy else EAGER))


def edit(file: Path, **tensors: torch.Tensor | None) -> None:
    """Put tensors into a file, and take out those that are None."""
    held = {name: tensor.clone() for name, tensor in load_file(file).items()} | tensors
    save_file({name: tensor for name, tensor in held.items() if tensor is not None}, file)

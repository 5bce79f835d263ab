"""Sets of transcoders in the layouts that Google publishes, found, converted and read.

Each is a directory of its own: GemmaScope's `.npz` files, and Gemma Scope 2's safetensors, per
layer and cross-layer.
"""

from pathlib import Path

import torch

from loading import converted, sources
from loading.inspection import inspect
from loading.transcoders import transcoders
from tests.support.tiny_sets import (
    N_LAYERS,
    config_yaml,
    gemma_scope_2_layer,
    npz_layer,
    random_cross_layer_transcoder,
    random_transcoder,
    write_listed,
)
from tests.support.weight_files import storage

CPU = torch.device("cpu")
EAGER = {"lazy_encoder": False, "lazy_decoder": False}
LAZY = {"lazy_encoder": True, "lazy_decoder": True}
HOOKS = ("mlp.hook_in", "hook_mlp_out")
FILES = tuple(f"params_layer_{layer}.safetensors" for layer in range(N_LAYERS))


def npz_set(directory: Path) -> Path:
    torch.manual_seed(0)
    directory.mkdir(exist_ok=True)
    names = tuple(f"layer_{layer}.npz" for layer in range(N_LAYERS))
    for layer, name in enumerate(names):
        (directory / name).write_bytes(npz_layer(random_transcoder(layer, jump=True)))
    (directory / "config.yaml").write_bytes(config_yaml("transcoder_set", *HOOKS, names))
    return directory


def scope_2_set(directory: Path, dtype: torch.dtype = torch.float32) -> Path:
    torch.manual_seed(0)
    layers = (random_transcoder(layer, skip=True, jump=True) for layer in range(N_LAYERS))
    states = [gemma_scope_2_layer(layer, dtype=dtype) for layer in layers]
    return write_listed(directory, "transcoder_set", HOOKS, states)


def scope_2_cross_layer(directory: Path) -> Path:
    torch.manual_seed(0)
    whole = random_cross_layer_transcoder(skip=True)
    states = [gemma_scope_2_layer(whole, layer) for layer in range(N_LAYERS)]
    return write_listed(directory, "cross_layer_transcoder", HOOKS, states)


LAYOUTS = {"npz": npz_set, "Scope 2": scope_2_set, "Scope 2 cross-layer": scope_2_cross_layer}


def located(directory, caches) -> sources.TranscoderFiles:
    return sources.transcoder_files(str(directory), storage(caches), N_LAYERS)


def convert(directory, caches) -> sources.TranscoderFiles:
    return converted.convert(inspect(located(directory, caches)), storage(caches))


def read(files, dtype=torch.float32, **lazy):
    return transcoders(inspect(files), device=CPU, dtype=dtype, **{**EAGER, **lazy})


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}

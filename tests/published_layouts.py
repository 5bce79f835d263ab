"""Tiny random transcoders in the layouts that Google publishes, each in a directory of its own.

GemmaScope's `.npz` files, and Gemma Scope 2's safetensors, per layer and cross-layer.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save, save_file

from tests.model_cache import write_repository
from tests.tiny_families import (
    D_MODEL,
    N_FEATURES,
    N_LAYERS,
    Repositories,
    config_yaml,
    random_cross_layer_transcoder,
    random_transcoder,
)

Tensors = dict[str, torch.Tensor]

HOOKS = ("mlp.hook_in", "hook_mlp_out")
FILES = tuple(f"layer_{layer}_width_16k.safetensors" for layer in range(N_LAYERS))


def npz_set(directory: Path) -> Path:
    names = tuple(f"layer_{layer}.npz" for layer in range(N_LAYERS))
    for layer, name in enumerate(names):
        transcoder = random_transcoder(layer, jump=True)
        tensors = {
            "W_enc": transcoder.W_enc.T,
            "W_dec": transcoder.W_dec,
            "b_enc": transcoder.b_enc,
            "b_dec": transcoder.b_dec,
            "threshold": transcoder.activation_function.threshold,
        }
        np.savez(directory / name, **{key: t.detach().numpy() for key, t in tensors.items()})
    (directory / "config.yaml").write_bytes(config_yaml("transcoder_set", *HOOKS, names))
    return directory


def scope_2_tensors(layer: int, dtype: torch.dtype = torch.float32, *, skip: bool) -> Tensors:
    transcoder = random_transcoder(layer, skip=skip, jump=True)
    tensors = {
        "w_enc": transcoder.W_enc.T,
        "w_dec": transcoder.W_dec,
        "b_enc": transcoder.b_enc,
        "b_dec": transcoder.b_dec,
        "threshold": transcoder.activation_function.threshold,
    }
    if skip:
        tensors["affine_skip_connection"] = transcoder.W_skip.T
    return _stored(tensors, dtype)


def scope_2_set(directory: Path, dtype: torch.dtype = torch.float32, *, skip: bool = True) -> Path:
    layers = [scope_2_tensors(layer, dtype, skip=skip) for layer in range(N_LAYERS)]
    return _written(directory, "transcoder_set", layers, FILES)


def scope_2_cross_layer(
    directory: Path, dtype: torch.dtype = torch.float32, *, skip: bool = True
) -> Path:
    original = random_cross_layer_transcoder()
    layers = []
    for layer in range(N_LAYERS):
        # The layers below are in the file too, and mean nothing.
        w_dec = torch.full((N_FEATURES, N_LAYERS, D_MODEL), 7.0)
        w_dec[:, layer:] = original.W_dec[layer].detach()
        tensors = {
            "w_enc": original.W_enc[layer].T,
            "w_dec": w_dec,
            "b_enc": original.b_enc[layer],
            "b_dec": original.b_dec[layer],
            "threshold": original.activation_function.threshold[layer, 0],
        }
        if skip:
            tensors["affine_skip_connection"] = 0.17 * torch.randn(D_MODEL, D_MODEL)
        layers.append(_stored(tensors, dtype))
    return _written(directory, "cross_layer_transcoder", layers, FILES)


LAYOUTS = {"npz": npz_set, "Scope 2": scope_2_set, "Scope 2 cross-layer": scope_2_cross_layer}


def scope_2(name: str) -> Repositories:
    """A set of Gemma Scope 2 on the hub: Google's files, listed by another's configuration."""
    weights = "google/gemma-scope-2-4b-it"
    files = {
        f"transcoder_all/layer_{layer}_width_262k_l0_small_affine/params.safetensors": save(
            scope_2_tensors(layer, skip=True)
        )
        for layer in range(N_LAYERS)
    }
    listed = tuple(f"hf://{weights}/{file}" for file in files)
    owner, repository, *folder = name.split("/")
    config = config_yaml("transcoder_set", *HOOKS, listed)
    inside = {"/".join([*folder, "config.yaml"]): config}
    return {f"{owner}/{repository}": inside, weights: files}


def write_repositories(cache: Path, repositories: Mapping[str, dict[str, bytes]]) -> None:
    for name, files in repositories.items():
        write_repository(cache, name, files)


def _stored(tensors: Tensors, dtype: torch.dtype) -> Tensors:
    return {name: t.detach().to(dtype).contiguous() for name, t in tensors.items()}


def _written(directory: Path, kind: str, layers: list[Tensors], names: tuple[str, ...]) -> Path:
    for tensors, name in zip(layers, names, strict=True):
        save_file(tensors, directory / name)
    (directory / "config.yaml").write_bytes(config_yaml(kind, *HOOKS, names))
    return directory

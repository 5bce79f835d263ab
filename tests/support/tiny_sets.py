"""Tiny random sets of transcoders in the layouts of the published ones, as repositories' files."""

import io
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from circuit_tracer.transcoder.activation_functions import JumpReLU
from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder
from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder
from safetensors.torch import save, save_file

from tests.support.model_cache import files_of

N_LAYERS, D_MODEL, N_FEATURES = 3, 32, 64

Repositories = dict[str, dict[str, bytes]]
Tensors = dict[str, torch.Tensor]


def config_yaml(kind: str, read: str, write: str, listed: tuple[str, ...] = ()) -> bytes:
    lines = [
        f"model_kind: {kind}",
        f"feature_input_hook: {read}",
        f"feature_output_hook: {write}",
    ]
    if listed:
        lines += ["transcoders:", *(f"  - {address!r}" for address in listed)]
    return "\n".join(lines).encode()


def random_transcoder(
    layer: int, *, skip: bool = False, jump: bool = False, n_features: int = N_FEATURES
) -> Any:
    activation = JumpReLU(torch.zeros(n_features), 0.1) if jump else torch.nn.functional.relu
    transcoder = SingleLayerTranscoder(
        D_MODEL, n_features, activation, layer, skip_connection=skip, dtype=torch.float32
    )
    return _randomised(transcoder)


def random_cross_layer_transcoder(*, jump: bool = True, skip: bool = False) -> CrossLayerTranscoder:
    transcoder = CrossLayerTranscoder(
        N_LAYERS,
        N_FEATURES,
        D_MODEL,
        "jump_relu" if jump else "relu",
        skip_connection=skip,
        lazy_decoder=False,
        dtype=torch.float32,
    )
    return _randomised(transcoder)


def _randomised(transcoder: Any) -> Any:
    with torch.no_grad():
        for name, parameter in transcoder.named_parameters():
            if "threshold" in name:
                parameter.fill_(0.3)
            else:
                parameter.normal_(std=0.17 if parameter.ndim > 1 else 0.3)
    return transcoder


def npz_layer(transcoder: Any) -> bytes:
    """A layer as GemmaScope's own files hold it, the encoder (d_model, n_features)."""
    arrays = {
        "W_enc": transcoder.W_enc.detach().T.numpy(),
        "W_dec": transcoder.W_dec.detach().numpy(),
        "b_enc": transcoder.b_enc.detach().numpy(),
        "b_dec": transcoder.b_dec.detach().numpy(),
        "threshold": transcoder.activation_function.threshold.detach().numpy(),
    }
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def gemma_scope_2_layer(
    transcoder: Any, layer: int | None = None, *, dtype: torch.dtype = torch.float32
) -> Tensors:
    """A layer as Gemma Scope 2's own files hold it: names in small letters, encoder transposed.

    Args:
        layer: of a cross-layer transcoder, whose decoders are there for all layers; those to the
            layers before mean nothing.
    """
    threshold = transcoder.activation_function.threshold
    if layer is None:
        tensors = {
            "w_enc": transcoder.W_enc.T,
            "w_dec": transcoder.W_dec,
            "b_enc": transcoder.b_enc,
            "b_dec": transcoder.b_dec,
            "threshold": threshold,
        }
        if transcoder.W_skip is not None:
            tensors["affine_skip_connection"] = transcoder.W_skip.T
    else:
        w_dec = torch.full((N_FEATURES, N_LAYERS, D_MODEL), 7.0)
        w_dec[:, layer:] = transcoder.W_dec[layer].detach()
        tensors = {
            "w_enc": transcoder.W_enc[layer].T,
            "w_dec": w_dec,
            "b_enc": transcoder.b_enc[layer],
            "b_dec": transcoder.b_dec[layer],
            "threshold": threshold[layer, 0],
        }
        if transcoder.W_skip is not None:
            tensors["affine_skip_connection"] = transcoder.W_skip[layer]
    return {name: tensor.detach().to(dtype).contiguous() for name, tensor in tensors.items()}


def write_listed(
    directory: Path,
    kind: str,
    hooks: tuple[str, str],
    states: Sequence[Tensors],
    *,
    again: int | None = None,
) -> Path:
    """Files that hold a layer each, and a configuration that lists them.

    Args:
        again: the layer whose file is listed once more at the end.
    """
    directory.mkdir(exist_ok=True)
    names = [f"params_layer_{layer}.safetensors" for layer in range(len(states))]
    for name, state in zip(names, states, strict=True):
        save_file(state, directory / name)
    listed = names if again is None else [*names, names[again]]
    (directory / "config.yaml").write_bytes(config_yaml(kind, *hooks, tuple(listed)))
    return directory


def gemma_scope(name: str) -> Repositories:
    """One `.npz` a layer in Google's repository, listed by the set's configuration."""
    weights = "google/gemma-scope-2b-pt-transcoders"
    files = {
        f"layer_{layer}/width_16k/average_l0_{70 + layer}/params.npz": npz_layer(
            random_transcoder(layer, jump=True)
        )
        for layer in range(N_LAYERS)
    }
    listed = tuple(f"hf://{weights}/{file}" for file in files)
    config = config_yaml("transcoder_set", "ln2.hook_normalized", "hook_mlp_out", listed)
    return {name: {"config.yaml": config}, weights: files}


def gemma_scope_2(*, clt: bool = False, skip: bool = False) -> Callable[[str], Repositories]:
    """Files of Google's repository as they are, listed by the set's configuration.

    That of a cross-layer transcoder names the last one twice: circuit-tracer leaves one out.
    """

    def repositories(name: str) -> Repositories:
        owner, repository, part, variant = name.split("/")
        whole = random_cross_layer_transcoder(skip=skip) if clt else None
        files = {}
        for layer in range(N_LAYERS):
            if whole is not None:
                path = f"{part}/{variant}/params_layer_{layer}.safetensors"
                files[path] = save(gemma_scope_2_layer(whole, layer))
            else:
                path = f"{part}/layer_{layer}_{variant}/params.safetensors"
                transcoder = random_transcoder(layer, skip=skip, jump=True)
                files[path] = save(gemma_scope_2_layer(transcoder))
        listed = [f"hf://google/{repository}/{path}" for path in files]
        listed += listed[-1:] if clt else []
        kind = "cross_layer_transcoder" if clt else "transcoder_set"
        config = config_yaml(kind, "mlp.hook_in", "hook_mlp_out", tuple(listed))
        return {
            f"{owner}/{repository}": {f"{part}/{variant}/config.yaml": config},
            f"google/{repository}": files,
        }

    return repositories


def per_layer(
    read: str,
    write: str,
    *,
    dtype: torch.dtype = torch.float32,
    more: str = "",
    **kind: Any,
) -> Callable[[str], Repositories]:
    """One safetensors file a layer beside the configuration, at the top or in a folder.

    Args:
        more: lines of the configuration.
        kind: arguments of random_transcoder.
    """

    def repositories(name: str) -> Repositories:
        owner, repository, *folder = name.split("/")
        config = config_yaml("transcoder_set", read, write)
        files = {"config.yaml": config + f"\n{more}".encode()}
        for layer in range(N_LAYERS):
            state = random_transcoder(layer, **kind).state_dict()
            held = {key: value.detach().to(dtype) for key, value in state.items()}
            files[f"layer_{layer}.safetensors"] = save(held)
        inside = {"/".join([*folder, file]): content for file, content in files.items()}
        return {f"{owner}/{repository}": inside}

    return repositories


def cross_layer(
    name: str, *, jump: bool = True, dtype: torch.dtype = torch.float32
) -> Repositories:
    """An encoder and a decoder file a layer."""
    with tempfile.TemporaryDirectory() as directory:
        random_cross_layer_transcoder(jump=jump).to(dtype).to_safetensors(directory)
        files = files_of(Path(directory))
    files["config.yaml"] = config_yaml("cross_layer_transcoder", "hook_resid_mid", "hook_mlp_out")
    return {name: files}

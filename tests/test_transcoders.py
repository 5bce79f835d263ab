"""Transcoders in each of the published formats, read into the same features."""

from pathlib import Path

import pytest
import torch
from circuit_tracer.utils.hf_utils import load_transcoders
from safetensors.torch import save_file

from loading import sources
from loading.transcoders import transcoders
from settings import Settings
from tests.tiny_sets import (
    D_MODEL,
    N_FEATURES,
    N_LAYERS,
    config_yaml,
    random_cross_layer_transcoder,
    random_transcoder,
)

CPU = torch.device("cpu")
EAGER = {"lazy_encoder": False, "lazy_decoder": False}
HOOKS = ("ln2.hook_normalized", "hook_mlp_out")


def load(directory: Path, **lazy):
    places = sources.places_of(Settings(_env_file=None))
    files = sources.transcoder_files(str(directory), places, N_LAYERS)
    return transcoders(files, device=CPU, dtype=torch.float32, **{**EAGER, **lazy})


def inputs():
    return torch.randn(N_LAYERS, 5, D_MODEL, generator=torch.Generator().manual_seed(1))


def write_listed(directory: Path, kind: str, tensors: list[dict[str, torch.Tensor]]) -> Path:
    names = [f"layer_{layer}_width_16k_l0_small_affine.safetensors" for layer in range(N_LAYERS)]
    (directory / "config.yaml").write_bytes(config_yaml(kind, *HOOKS, tuple(names)))
    for name, state in zip(names, tensors, strict=True):
        save_file(
            {key: value.detach().contiguous() for key, value in state.items()}, directory / name
        )
    return directory


def published(transcoder):
    """A transcoder as Gemma Scope 2's own files hold it."""
    return {
        "w_enc": transcoder.W_enc.T,
        "w_dec": transcoder.W_dec,
        "b_enc": transcoder.b_enc,
        "b_dec": transcoder.b_dec,
        "threshold": transcoder.activation_function.threshold,
        "affine_skip_connection": transcoder.W_skip.T,
    }


def test_gemma_scope_2_s_own_files_are_recognised_by_what_is_in_them(tmp_path):
    originals = [random_transcoder(layer, skip=True, jump=True) for layer in range(N_LAYERS)]
    directory = write_listed(tmp_path, "transcoder_set", [published(t) for t in originals])
    loaded = load(directory)
    x = inputs()
    with torch.no_grad():
        expected = torch.stack([t(x[layer]) for layer, t in enumerate(originals)])
        assert torch.allclose(loaded.decode(loaded.encode(x), x), expected, atol=1e-5)


def test_a_cross_layer_transcoder_of_gemma_scope_2_keeps_its_last_layer(tmp_path):
    original = random_cross_layer_transcoder()
    states = []
    for layer in range(N_LAYERS):
        w_dec = torch.zeros(N_FEATURES, N_LAYERS, D_MODEL)
        w_dec[:, layer:] = original.W_dec[layer].detach()
        states.append(
            {
                "w_enc": original.W_enc[layer].T,
                "w_dec": w_dec,
                "b_enc": original.b_enc[layer],
                "b_dec": original.b_dec[layer],
                "threshold": original.activation_function.threshold[layer, 0],
            }
        )
    loaded = load(write_listed(tmp_path, "cross_layer_transcoder", states))
    assert loaded.n_layers == N_LAYERS
    with torch.no_grad():
        assert torch.allclose(loaded(inputs()), original(inputs()), atol=1e-5)


@pytest.mark.parametrize("lazy", [{"lazy_encoder": True}, {"lazy_decoder": True}])
def test_what_is_lazy_is_no_parameter(tmp_path, lazy):
    (tmp_path / "config.yaml").write_bytes(config_yaml("transcoder_set", *HOOKS))
    for layer in range(N_LAYERS):
        random_transcoder(layer).to_safetensors(str(tmp_path / f"layer_{layer}.safetensors"))
    names = {name.split(".")[-1] for name, _ in load(tmp_path, **lazy).named_parameters()}
    assert ("W_enc" in names) != ("lazy_encoder" in lazy)
    assert ("W_dec" in names) != ("lazy_decoder" in lazy)


def test_a_set_is_what_circuit_tracer_s_own_loader_makes_of_it(tmp_path):
    paths = [str(tmp_path / f"layer_{layer}.safetensors") for layer in range(N_LAYERS)]
    for layer, path in enumerate(paths):
        random_transcoder(layer, skip=True, jump=True).to_safetensors(path)
    (tmp_path / "config.yaml").write_bytes(config_yaml("transcoder_set", *HOOKS))
    read, write = HOOKS
    config = {
        "model_kind": "transcoder_set",
        "feature_input_hook": read,
        "feature_output_hook": write,
        "scan": tmp_path.name,
        "transcoders": paths,
    }
    expected = load_transcoders(config, device=CPU, dtype=torch.float32, **EAGER)
    loaded = load(tmp_path)
    described = ("scan", "feature_input_hook", "feature_output_hook", "skip_connection", "n_layers")
    for name in described:
        assert getattr(loaded, name) == getattr(expected, name)
    for ours, theirs in zip(loaded.parameters(), expected.parameters(), strict=True):
        assert torch.equal(ours, theirs)

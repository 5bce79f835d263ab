"""Transcoders in each of the published formats, read into the same features."""

from pathlib import Path

import pytest
import torch
from circuit_tracer.utils.hf_utils import load_transcoders

from tests.support.conversions import CPU, EAGER, located, read
from tests.support.tiny_sets import (
    D_MODEL,
    N_LAYERS,
    config_yaml,
    gemma_scope_2_layer,
    random_cross_layer_transcoder,
    random_transcoder,
    write_listed,
)

HOOKS = ("ln2.hook_normalized", "hook_mlp_out")


def load(directory: Path, **lazy):
    return read(located(directory, {}), **lazy)


def inputs():
    return torch.randn(N_LAYERS, 5, D_MODEL, generator=torch.Generator().manual_seed(1))


def test_gemma_scope_2_s_own_files_are_recognised_by_what_is_in_them(tmp_path):
    originals = [random_transcoder(layer, skip=True, jump=True) for layer in range(N_LAYERS)]
    states = [gemma_scope_2_layer(original) for original in originals]
    loaded = load(write_listed(tmp_path, "transcoder_set", HOOKS, states))
    x = inputs()
    with torch.no_grad():
        expected = torch.stack([t(x[layer]) for layer, t in enumerate(originals)])
        assert torch.allclose(loaded.decode(loaded.encode(x), x), expected, atol=1e-5)


def test_a_cross_layer_transcoder_of_gemma_scope_2_keeps_its_last_layer(tmp_path):
    original = random_cross_layer_transcoder()
    states = [gemma_scope_2_layer(original, layer) for layer in range(N_LAYERS)]
    loaded = load(write_listed(tmp_path, "cross_layer_transcoder", HOOKS, states))
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
    config = {
        "model_kind": "transcoder_set",
        "feature_input_hook": HOOKS[0],
        "feature_output_hook": HOOKS[1],
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

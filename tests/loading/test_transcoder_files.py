"""What a set's files hold is checked from their headers, and whether it belongs to the model."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from loading import WeightsError, sources
from loading.inspection import check_fits, inspect
from tests.support.conversions import LAZY, read
from tests.support.tiny_sets import (
    D_MODEL,
    N_FEATURES,
    N_LAYERS,
    config_yaml,
    gemma_scope_2_layer,
    npz_layer,
    random_cross_layer_transcoder,
    random_transcoder,
    write_listed,
)
from tests.support.transcoder_folders import CROSS_LAYER, PER_LAYER, edit, load, write_set
from tests.support.weight_files import storage

HOOKS = ("mlp.hook_in", "hook_mlp_out")


def weights(directory: Path, model: Path | None = None, n_layers: int | None = None):
    files = sources.transcoder_files(str(directory), storage({}), n_layers)
    return sources.Weights(model or directory, files)


def model_folder(directory: Path, **config) -> Path:
    directory.mkdir()
    (directory / "config.json").write_text(str(config).replace("'", '"'))
    return directory


def published_cross_layer(*, skip: bool = False):
    original = random_cross_layer_transcoder(jump=True, skip=skip)
    return original, [gemma_scope_2_layer(original, layer) for layer in range(N_LAYERS)]


def inputs() -> torch.Tensor:
    return torch.randn(N_LAYERS, 5, D_MODEL, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("again", [None, N_LAYERS - 1], ids=["once", "twice"])
def test_a_list_of_a_cross_layer_set_may_name_its_last_file_twice(tmp_path, again):
    original, states = published_cross_layer(skip=True)
    loaded = load(write_listed(tmp_path, CROSS_LAYER, HOOKS, states, again=again))
    assert loaded.n_layers == N_LAYERS
    x = inputs()
    with torch.no_grad():
        ours = loaded.decode(loaded.encode(x), x)
        assert torch.allclose(ours, original.decode(original.encode(x), x), atol=1e-5)


@pytest.mark.parametrize("kind", [PER_LAYER, CROSS_LAYER])
def test_any_other_repetition_in_a_list_is_refused(tmp_path, kind):
    names = ["a.safetensors", "b.safetensors", "a.safetensors", "c.safetensors"]
    (tmp_path / "config.yaml").write_bytes(config_yaml(kind, *HOOKS, tuple(names)))
    for name in names:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(WeightsError, match=r"lists 'a\.safetensors' twice"):
        weights(tmp_path)


@pytest.mark.parametrize("kind", [PER_LAYER, CROSS_LAYER])
def test_an_empty_list_is_refused(tmp_path, kind):
    (tmp_path / "config.yaml").write_bytes(config_yaml(kind, *HOOKS) + b"\ntranscoders: []\n")
    with pytest.raises(WeightsError, match=r"`transcoders` is empty: .*a layer"):
        weights(tmp_path)


def test_an_entry_of_a_list_that_is_no_address_is_refused(tmp_path):
    text = config_yaml(PER_LAYER, *HOOKS).decode() + "\ntranscoders:\n  - {layer: 0, id: a}\n"
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(WeightsError, match=r"`transcoders` .*an address or a path a layer"):
        weights(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_files_of_any_dtype_are_read_into_the_one_wanted(tmp_path, dtype):
    directory = write_set(tmp_path, jump=True)
    for file in directory.glob("*.safetensors"):
        edit(file, **{name: tensor.to(dtype) for name, tensor in load_file(file).items()})
    for lazy in (False, True):
        loaded = load(directory, lazy=lazy)
        tensors = [*loaded.parameters(), loaded[0].W_enc, loaded[1]._get_decoder_vectors()]
        assert {tensor.dtype for tensor in tensors} == {torch.float32}
        stored = load_file(directory / "layer_1.safetensors")["W_enc"].float()
        assert torch.equal(loaded[1].W_enc, stored)


def test_a_cross_layer_skip_connection_has_the_dtype_of_the_rest(tmp_path):
    _, states = published_cross_layer(skip=True)
    files = weights(write_listed(tmp_path, CROSS_LAYER, HOOKS, states)).transcoders
    loaded = read(files, torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("lazy", [False, True], ids=["eager", "lazy"])
def test_a_converted_cross_layer_set_keeps_its_skip_connection(tmp_path, lazy):
    original = random_cross_layer_transcoder(jump=True, skip=True)
    original.to_safetensors(str(tmp_path))
    for layer in range(N_LAYERS):
        skip = {f"W_skip_{layer}": original.W_skip[layer].detach().clone()}
        edit(tmp_path / f"W_enc_{layer}.safetensors", **skip)
    (tmp_path / "config.yaml").write_bytes(config_yaml(CROSS_LAYER, *HOOKS))
    loaded, x = load(tmp_path, lazy=lazy), inputs()
    with torch.no_grad():
        ours = loaded.decode(loaded.encode(x), x)
        assert torch.allclose(ours, original.decode(original.encode(x), x), atol=1e-5)


MISSING = [
    (PER_LAYER, "layer_1.safetensors", "W_enc"),
    (PER_LAYER, "layer_2.safetensors", "b_dec"),
    (CROSS_LAYER, "W_enc_1.safetensors", "b_dec_1"),
    (CROSS_LAYER, "W_dec_2.safetensors", "W_dec_2"),
]


@pytest.mark.parametrize(("kind", "file", "tensor"), MISSING)
@pytest.mark.parametrize("lazy", [False, True], ids=["eager", "lazy"])
def test_a_missing_tensor_is_named_with_its_file(tmp_path, kind, file, tensor, lazy):
    directory = write_set(tmp_path, kind)
    edit(directory / file, **{tensor: None})
    with pytest.raises(WeightsError, match=f"{file} lacks {tensor}"):
        load(directory, lazy=lazy)


@pytest.mark.parametrize(
    ("kind", "file"), [(PER_LAYER, "layer_1.safetensors"), (CROSS_LAYER, "W_dec_1.safetensors")]
)
def test_a_tensor_that_would_be_ignored_is_refused_by_name(tmp_path, kind, file):
    directory = write_set(tmp_path, kind)
    edit(directory / file, log_threshold=torch.zeros(N_FEATURES))
    with pytest.raises(WeightsError, match=f"{file} holds 'log_threshold'"):
        load(directory, lazy=True)


@pytest.mark.parametrize(
    ("kind", "file", "changed", "complaint"),
    [
        (PER_LAYER, "layer_1.safetensors", {"W_dec": (N_FEATURES, 16)}, r"W_dec of 64 x 16"),
        (PER_LAYER, "layer_1.safetensors", {"b_enc": (63,)}, r"b_enc of 63"),
        (PER_LAYER, "layer_2.safetensors", {"W_skip": (D_MODEL, 16)}, r"W_skip of 32 x 16"),
        (
            CROSS_LAYER,
            "W_dec_1.safetensors",
            {"W_dec_1": (N_FEATURES, N_LAYERS, D_MODEL)},
            r"W_dec_1 of 64 x 3 x 32, .*64 x 2 x 32",
        ),
    ],
)
def test_a_tensor_of_another_shape_is_named(tmp_path, kind, file, changed, complaint):
    directory = write_set(tmp_path, kind)
    if "W_skip" in changed:
        for other in directory.glob("layer_*.safetensors"):
            edit(other, W_skip=torch.zeros(D_MODEL, D_MODEL))
    edit(directory / file, **{name: torch.zeros(shape) for name, shape in changed.items()})
    with pytest.raises(WeightsError, match=f"{file} has {complaint}"):
        load(directory, lazy=True)


def test_layers_of_different_widths_are_named(tmp_path):
    directory = write_set(tmp_path)
    narrow = {"W_enc": (32, D_MODEL), "W_dec": (32, D_MODEL), "b_enc": (32,)}
    shapes = {name: torch.zeros(shape) for name, shape in narrow.items()}
    edit(directory / "layer_2.safetensors", **shapes)
    with pytest.raises(WeightsError, match=r"layer_2\.safetensors has W_enc of 32 x 32, .*64 x 32"):
        load(directory)


def test_a_skip_connection_in_some_layers_is_refused(tmp_path):
    directory = write_set(tmp_path)
    edit(directory / "layer_0.safetensors", W_skip=torch.zeros(D_MODEL, D_MODEL))
    with pytest.raises(WeightsError, match=r"layer_1\.safetensors lacks W_skip"):
        load(directory)


def test_the_headers_tell_what_a_set_is(tmp_path):
    torch.manual_seed(0)
    npz, own = tmp_path / "layer_0.npz", tmp_path / "layer_1.safetensors"
    npz.write_bytes(npz_layer(random_transcoder(0, jump=True)))
    save_file(gemma_scope_2_layer(random_transcoder(1, jump=True)), own)
    random_transcoder(2, jump=True).to_safetensors(str(tmp_path / "layer_2.safetensors"))
    listed = (npz.name, own.name, "layer_2.safetensors")
    (tmp_path / "config.yaml").write_bytes(config_yaml(PER_LAYER, *HOOKS, listed))
    contents = inspect(weights(tmp_path).transcoders)
    assert (contents.n_layers, contents.d_model, contents.n_features) == (3, D_MODEL, N_FEATURES)
    assert (contents.activation, contents.skip) == ("jump_relu", False)
    assert [layer.layout.can_be_lazy for layer in contents.layers] == [False, False, True]
    loaded = load(tmp_path, lazy=True)
    assert [transcoder.lazy_encoder for transcoder in loaded] == [False, False, True]


def test_a_truncated_file_is_named(tmp_path):
    directory = write_set(tmp_path)
    file = directory / "layer_1.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(WeightsError, match=r"layer_1\.safetensors is damaged: replace it"):
        load(directory)


@pytest.mark.parametrize("kind", [PER_LAYER, CROSS_LAYER])
def test_a_set_that_can_not_be_left_on_the_disk_is_named_in_a_warning(tmp_path, kind, caplog):
    _, states = published_cross_layer()
    if kind == PER_LAYER:
        states = [gemma_scope_2_layer(random_transcoder(layer, jump=True)) for layer in range(3)]
    directory = write_listed(tmp_path, kind, HOOKS, states)
    load(directory)
    assert caplog.text == ""
    load(directory, lazy=True)
    assert "params_layer_0.safetensors can't be left on the disk" in caplog.text


def test_an_npz_that_is_none_is_named(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 and no more")
    (tmp_path / "config.yaml").write_bytes(config_yaml(PER_LAYER, *HOOKS, ("a.npz",)))
    with pytest.raises(WeightsError, match=r"a\.npz is damaged: replace it"):
        inspect(weights(tmp_path).transcoders)


@pytest.mark.parametrize("config", [{"hidden_size": 48}, {"n_embd": 48}])
def test_transcoders_of_another_width_are_refused_before_they_are_read(tmp_path, config):
    directory = write_set(tmp_path / "set")
    for file in directory.glob("*.safetensors"):
        content = file.read_bytes()
        header = 8 + int.from_bytes(content[:8], "little")
        file.write_bytes(content[:header] + bytes(len(content) - header))
    model = model_folder(tmp_path / "model", num_hidden_layers=N_LAYERS, **config)
    with pytest.raises(WeightsError, match=r"d_model of the model is 48, .*32: name"):
        check_fits(weights(directory, model))


@pytest.mark.parametrize("kind", [PER_LAYER, CROSS_LAYER])
def test_transcoders_of_another_depth_are_refused(tmp_path, kind):
    model = model_folder(tmp_path / "model", num_hidden_layers=2, hidden_size=D_MODEL)
    with pytest.raises(WeightsError, match="the model has 2 layers, its transcoders cover 3"):
        check_fits(weights(write_set(tmp_path / "set", kind), model))


def test_a_listed_cross_layer_set_without_a_layer_is_refused(tmp_path):
    _, states = published_cross_layer()
    directory = write_listed(tmp_path, CROSS_LAYER, HOOKS, states[:-1])
    with pytest.raises(WeightsError, match=r"w_dec of 64 x 3 x 32, .*64 x 2 x 32"):
        inspect(weights(directory).transcoders)


def test_a_set_of_the_model_s_shape_fits(tmp_path):
    model = model_folder(tmp_path / "model", num_hidden_layers=N_LAYERS, hidden_size=D_MODEL)
    check_fits(weights(write_set(tmp_path / "set"), model))


def test_npz_files_hold_what_numpy_saved(tmp_path):
    torch.manual_seed(0)
    original = random_transcoder(0, jump=True)
    (tmp_path / "a.npz").write_bytes(npz_layer(original))
    held = np.load(tmp_path / "a.npz")
    assert held["W_enc"].shape == (D_MODEL, N_FEATURES)
    (tmp_path / "config.yaml").write_bytes(config_yaml(PER_LAYER, *HOOKS, ("a.npz",)))
    loaded = read(weights(tmp_path).transcoders, **LAZY)
    assert torch.equal(loaded[0].W_enc, original.W_enc)
    assert torch.equal(
        loaded[0].activation_function.threshold, original.activation_function.threshold
    )

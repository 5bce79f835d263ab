"""The activation of a set is what its configuration and its files say, or a refusal names it."""

import pytest
import torch
from circuit_tracer.transcoder.activation_functions import JumpReLU, TopK

import attribution
import steering
from loading import WeightsError
from tests.support.same_graph import assert_same_graph
from tests.support.tiny_models import prompt_tokens, tiny_model
from tests.support.tiny_sets import D_MODEL, N_FEATURES, N_LAYERS
from tests.support.transcoder_folders import CROSS_LAYER, PER_LAYER, edit, load, write_set

KINDS = pytest.mark.parametrize("kind", [PER_LAYER, CROSS_LAYER])


def before_activation(loaded) -> torch.Tensor:
    """Random inputs, through the encoder alone: (n_layers, n_pos, n_features)."""
    x = torch.randn(N_LAYERS, 5, D_MODEL, generator=torch.Generator().manual_seed(1))
    layers = [loaded.encode_layer(x[i], i, False) for i in range(N_LAYERS)]
    return torch.stack(layers).detach()


def activations(loaded) -> torch.Tensor:
    x = torch.randn(N_LAYERS, 5, D_MODEL, generator=torch.Generator().manual_seed(1))
    return torch.stack([loaded.encode_layer(x[i], i) for i in range(N_LAYERS)]).detach()


def largest(before: torch.Tensor, k: int) -> torch.Tensor:
    """All but the k largest of each position set to zero, by sorting."""
    least = before.sort(dim=-1, descending=True).values[..., k - 1 : k]
    return torch.where(before >= least, before, 0)


@KINDS
@pytest.mark.parametrize("lazy", [False, True], ids=["eager", "lazy"])
@pytest.mark.parametrize("name", ["topk", "TopK", "top_k"])
def test_top_k_keeps_the_k_largest_of_each_layer_and_token(tmp_path, kind, lazy, name):
    loaded = load(write_set(tmp_path, kind, activation=name, k=7), lazy=lazy)
    expected = largest(before_activation(loaded), 7)
    assert torch.equal(activations(loaded), expected)
    assert (expected != 0).sum(-1).eq(7).all()
    assert expected.ne(before_activation(loaded).relu()).any()


def test_top_k_without_a_k_is_circuit_tracer_s_128(tmp_path, caplog):
    directory = write_set(tmp_path, activation="topk")
    for layer in range(N_LAYERS):
        wide = {
            "W_enc": torch.randn(200, D_MODEL),
            "W_dec": torch.randn(200, D_MODEL),
            "b_enc": torch.randn(200),
        }
        edit(directory / f"layer_{layer}.safetensors", **wide)
    with caplog.at_level("INFO"):
        loaded = load(directory)
    assert torch.equal(activations(loaded), largest(before_activation(loaded), 128))
    assert "names no k: 128" in caplog.text


def test_a_k_in_the_files_is_read_as_circuit_tracer_saves_it(tmp_path):
    directory = write_set(tmp_path)
    for layer in range(N_LAYERS):
        edit(directory / f"layer_{layer}.safetensors", k=torch.tensor(9))
    loaded = load(directory, lazy=True)
    assert isinstance(loaded[0].activation_function, TopK)
    assert torch.equal(activations(loaded), largest(before_activation(loaded), 9))


@KINDS
def test_thresholds_make_jump_relu_and_their_absence_relu(tmp_path, kind):
    with_thresholds = load(write_set(tmp_path / "a", kind, jump=True))
    before = before_activation(with_thresholds)
    assert torch.equal(activations(with_thresholds), torch.where(before > 0.3, before, 0))
    without = load(write_set(tmp_path / "b", kind))
    assert torch.equal(activations(without), before_activation(without).relu())


@KINDS
@pytest.mark.parametrize(
    ("key", "name", "jump"),
    [
        ("activation", "relu", False),
        ("activation_function", "relu", False),
        ("activation", "jump_relu", True),
        ("activation_function", "JumpReLU", True),
    ],
)
def test_a_name_that_agrees_with_the_files_changes_nothing(tmp_path, kind, key, name, jump):
    named = load(write_set(tmp_path / "a", kind, jump=jump, **{key: name}))
    unnamed = load(write_set(tmp_path / "b", kind, jump=jump))
    assert torch.equal(activations(named), activations(unnamed))


def test_the_bandwidth_is_circuit_tracer_s(tmp_path):
    function = load(write_set(tmp_path, jump=True))[0].activation_function
    assert isinstance(function, JumpReLU)
    assert function.bandwidth == 0.1


@KINDS
@pytest.mark.parametrize(
    ("keys", "jump", "complaint"),
    [
        ({"activation": "batch_topk", "k": 8}, False, "activation 'batch_topk' is not served"),
        ({"activation_function": "gelu"}, False, "activation_function 'gelu' is not served"),
        ({"activation": "[relu]"}, False, r"activation \['relu'\] is not served"),
        (
            {"activation": "topk", "activation_function": "relu", "k": 8},
            False,
            "activation 'topk' and activation_function 'relu'",
        ),
        ({"activation": "relu"}, True, "holds a threshold, .* says 'relu'"),
        ({"activation": "topk", "k": 8}, True, "holds a threshold, .* says 'topk'"),
        ({"activation": "jump_relu"}, False, "lacks .*threshold"),
        ({"activation": "topk", "k": 0}, False, "k: 0, .*from 1 to 64"),
        ({"activation": "topk", "k": N_FEATURES + 1}, False, "k: 65, .*from 1 to 64"),
        ({"activation": "topk", "k": "many"}, False, "k: 'many', .*whole number"),
        ({"activation": "topk", "k": "true"}, False, "k: True, .*whole number"),
        ({"k": 8}, False, "k: 8, .*activation: topk"),
        ({"activation": "relu", "k": 8}, False, "k: 8, .*activation: topk"),
    ],
)
def test_what_can_not_be_right_is_refused_by_name(tmp_path, kind, keys, jump, complaint):
    with pytest.raises(WeightsError, match=complaint):
        load(write_set(tmp_path, kind, jump=jump, **keys))


@KINDS
def test_a_layer_without_the_others_threshold_is_named(tmp_path, kind):
    directory = write_set(tmp_path, kind, jump=True)
    name, tensor = {
        PER_LAYER: ("layer_1.safetensors", "activation_function.threshold"),
        CROSS_LAYER: ("W_enc_1.safetensors", "threshold_1"),
    }[kind]
    edit(directory / name, **{tensor: None})
    with pytest.raises(WeightsError, match=f"{name} lacks {tensor}"):
        load(directory)


def test_files_of_different_k_are_refused(tmp_path):
    directory = write_set(tmp_path)
    for layer in range(N_LAYERS):
        edit(directory / f"layer_{layer}.safetensors", k=torch.tensor(8 + layer))
    with pytest.raises(
        WeightsError, match=r"layer_1\.safetensors has k: 9, and .*layer_0\.safetensors has k: 8"
    ):
        load(directory)


def test_another_k_in_the_configuration_than_in_the_files_is_refused(tmp_path):
    directory = write_set(tmp_path, activation="topk", k=7)
    for layer in range(N_LAYERS):
        edit(directory / f"layer_{layer}.safetensors", k=torch.tensor(8))
    with pytest.raises(WeightsError, match=r"layer_0\.safetensors has k: 8, and .* has k: 7"):
        load(directory)


@pytest.mark.parametrize(
    "keys",
    [
        {"model_name": "google/gemma-2-2b", "scan": "[a, b]"},
        {"repo_id": "owner/name", "revision": "null", "subfolder": "null"},
        {"urls": "[https://example.com]", "description": "words", "license": "mit"},
        {"converted": "{format: 1, repository: owner/name}"},
    ],
)
def test_keys_that_only_describe_are_no_matter(tmp_path, keys):
    assert load(write_set(tmp_path, **keys)).n_layers == N_LAYERS


@KINDS
@pytest.mark.parametrize("key", ["normalize_activations", "rescale_acts_by_decoder_norm"])
def test_a_key_that_may_change_the_mathematics_is_refused_by_name(tmp_path, kind, key):
    with pytest.raises(WeightsError, match=f"{key!r}, which the worker doesn't know"):
        load(write_set(tmp_path, kind, **{key: "true"}))


@pytest.mark.parametrize("skip", [False, True], ids=["plain", "skip"])
def test_a_cross_layer_top_k_set_is_attributed_and_steered_as_the_library_does(skip):
    model = tiny_model("gemma3", "cross_layer_relu", "mlp", skip=skip)
    model.transcoders.activation_function = TopK(7)
    assert attribution.method_for(model) == "explicit sweep"
    graph = assert_same_graph(model)
    assert len(graph.active_features) == N_LAYERS * (graph.n_pos - 1) * 7
    tokens = prompt_tokens()
    _, expected = model.get_activations(tokens)
    features = [(1, 4, index) for index in range(N_FEATURES)]
    read = steering.feature_activations(model, tokens.tolist(), features)
    assert read == pytest.approx(expected[1, 4].tolist(), abs=1e-5)

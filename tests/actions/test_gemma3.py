"""A Gemma 3 chat model with Gemma Scope 2 transcoders: attribution and steering are the library's.

The model is Hugging Face's own, with vision tower, linear rope and windows shorter than the prompt;
the transcoders come from files laid out as google/gemma-scope-2's, by circuit-tracer's loaders.
"""

import circuit_tracer
import pytest
import torch
from circuit_tracer import ReplacementModel
from circuit_tracer.transcoder.cross_layer_transcoder import load_gemma_scope_2_clt
from circuit_tracer.transcoder.single_layer_transcoder import load_transcoder_set
from safetensors.torch import save_file
from transformers import Gemma3TextConfig

import attribution
import steering
from loading.transformerlens_engine import replacement_model
from steering import Intervention
from tests.support.model_configs import GEMMA3, LINEAR_ROPE, gemma3_with_vision, hugging_face_model
from tests.support.same_graph import assert_same_graph
from tests.support.steering_cases import (
    assert_same_predictions,
    library_form,
    library_logits,
    options,
)
from tests.support.tiny_tokenizers import gemma3

D_MODEL, N_FEATURES, N_LAYERS, D_VOCAB = 32, 64, 3, 4400
PREFIX = [2, 105, 2364, 107]
# Where google/gemma-scope-2's files say that they read and write (`pre_feedforward_layernorm`'s
# and `post_feedforward_layernorm`'s output), as circuit-tracer calls it.
HOOKS = {"feature_input_hook": "mlp.hook_in", "feature_output_hook": "hook_mlp_out"}
CPU = torch.device("cpu")


def layer_file(path, *, affine, decoder_shape):
    """A layer in Gemma Scope 2's layout: encoder (d_in, d_sae), affine part (d_in, d_out)."""
    tensors = {
        "w_enc": torch.randn(D_MODEL, N_FEATURES) * D_MODEL**-0.5,
        "w_dec": torch.randn(decoder_shape) * 0.2,
        "b_enc": torch.randn(N_FEATURES) * 0.3,
        "b_dec": torch.randn(D_MODEL) * 0.3,
        "threshold": 0.2 + torch.rand(N_FEATURES),
    }
    if affine:
        tensors["affine_skip_connection"] = torch.randn(D_MODEL, D_MODEL) * 0.2
    save_file(tensors, path)
    return str(path)


def per_layer(directory, *, affine):
    paths = {
        layer: layer_file(
            directory / f"{layer}.safetensors", affine=affine, decoder_shape=(N_FEATURES, D_MODEL)
        )
        for layer in range(N_LAYERS)
    }
    loading = {"special_load_fn": "gemma-scope-2", "lazy_encoder": False, "lazy_decoder": False}
    return load_transcoder_set(paths, scan="tiny", device=CPU, **HOOKS, **loading)


def cross_layer(directory, *, affine):
    shape = (N_FEATURES, N_LAYERS, D_MODEL)
    paths = {
        layer: layer_file(directory / f"{layer}.safetensors", affine=affine, decoder_shape=shape)
        for layer in range(N_LAYERS)
    }
    # circuit-tracer 0.5 takes the largest key for the number of layers and leaves the last out.
    paths[N_LAYERS] = ""
    return load_gemma_scope_2_clt(paths, scan="tiny", device=CPU, dtype=torch.float32, **HOOKS)


KINDS = {
    "affine": (per_layer, True),
    "plain": (per_layer, False),
    "cross-layer, affine": (cross_layer, True),
}


@pytest.fixture(scope="module")
def hf_model():
    return hugging_face_model(gemma3_with_vision(vocab_size=D_VOCAB, rope_scaling=LINEAR_ROPE))


@pytest.fixture(scope="module", params=KINDS)
def model(request, hf_model, tmp_path_factory):
    torch.manual_seed(3)
    load, affine = KINDS[request.param]
    transcoders = load(tmp_path_factory.mktemp("transcoders"), affine=affine)
    built = replacement_model(hf_model, transcoders, "google/gemma-3-4b-it", CPU, torch.float32)
    built.tokenizer = gemma3()
    built.tokenizer.padding_side = "right"
    return built


@pytest.fixture(scope="module")
def prompt():
    """The required prefix and 20 more tokens, three windows long in all."""
    text = torch.randint(1000, 1300, (20,), generator=torch.Generator().manual_seed(5))
    return [*PREFIX, *text.tolist()]


def test_the_graph_is_the_library_s_and_by_the_explicit_sweep(model, prompt):
    assert attribution.method_for(model) == "explicit sweep"
    graph = assert_same_graph(model, torch.tensor(prompt), max_feature_nodes=60)
    assert graph.active_features[:, 1].min() == len(PREFIX)


def test_the_library_demands_the_prefix(model, prompt):
    with pytest.raises(AssertionError, match="<start_of_turn>user"):
        circuit_tracer.attribute(torch.tensor([2, *prompt[4:]]), model)


def test_the_graph_is_that_of_the_library_s_other_engine(tmp_path, prompt):
    """On nnsight circuit-tracer runs Hugging Face's model itself. It loads no vision models."""
    config = Gemma3TextConfig(**{**GEMMA3, "vocab_size": D_VOCAB}, rope_scaling=LINEAR_ROPE)
    hf_model = hugging_face_model(config)
    directory = tmp_path / "gemma-3-1b-it"
    hf_model.save_pretrained(directory)
    gemma3().save_pretrained(directory)
    torch.manual_seed(3)
    transcoders = per_layer(tmp_path, affine=True)
    settings = {"max_feature_nodes": 60, "batch_size": 16}
    model = replacement_model(hf_model, transcoders, directory.name, CPU, torch.float32)
    model.tokenizer = gemma3()
    ours = attribution.attribute(torch.tensor(prompt), model, **settings)
    other = ReplacementModel.from_pretrained_and_transcoders(
        str(directory), transcoders, backend="nnsight", device=CPU, dtype=torch.float32
    )
    theirs = circuit_tracer.attribute(torch.tensor(prompt), other, **settings)
    assert torch.equal(ours.active_features, theirs.active_features)
    assert torch.equal(ours.selected_features, theirs.selected_features)
    # It takes token vectors without the scale that Gemma 3 has on its embeddings.
    n_others = len(ours.selected_features) + N_LAYERS * len(prompt)
    tokens = slice(n_others, n_others + len(prompt))
    theirs.adjacency_matrix[:, tokens] *= D_MODEL**0.5
    torch.testing.assert_close(ours.adjacency_matrix, theirs.adjacency_matrix, atol=1e-4, rtol=1e-4)


def strongest(model, prompt):
    """The strongest feature of each layer at a position of its own."""
    _, activations = model.get_activations(torch.tensor(prompt))
    found = []
    for layer in range(N_LAYERS):
        position = 9 + 3 * layer
        value, index = activations[layer, position].max(dim=0)
        assert value > 0
        found.append((layer, position, index.item(), value.item()))
    return found


def test_activations_are_the_library_s(model, prompt):
    found = strongest(model, prompt)
    features = [(layer, position, index) for layer, position, index, _ in found]
    read = steering.feature_activations(model, prompt, [*features, (0, 3, features[0][2])])
    assert read == pytest.approx([*(value for *_, value in found), 0.0], abs=1e-4)


@pytest.mark.parametrize("frozen", [False, True], ids=["free", "frozen"])
def test_steering_is_the_library_s(model, prompt, frozen):
    interventions = [
        Intervention(layer, index, position, 4 * value if layer else 0.0)
        for layer, position, index, value in strongest(model, prompt)
    ]
    ours = steering.generate(
        model,
        prompt,
        interventions,
        options(n_tokens=1, top_k=D_VOCAB, freeze_attention=frozen),
    )
    logits, _ = model.feature_intervention(
        torch.tensor(prompt), library_form(interventions), freeze_attention=frozen
    )
    assert_same_predictions(ours, logits[0, -1:])


def test_steered_tokens_go_on_through_the_cache(model, prompt):
    interventions = [
        Intervention(layer, index, None, value + 2)
        for layer, _, index, value in strongest(model, prompt)
    ]
    ours = steering.generate(model, prompt, interventions, options(n_tokens=10, top_k=D_VOCAB))
    logits = library_logits(model, interventions, ours.token_ids, len(prompt))
    assert_same_predictions(ours, logits)


def test_a_generation_without_interventions_is_hugging_face_s(model, hf_model, prompt):
    # Beyond the window in the cache too.
    ours = steering.generate(model, prompt, [], options(n_tokens=12, top_k=D_VOCAB))
    with torch.no_grad():
        logits = hf_model(torch.tensor([ours.token_ids])).logits
    assert_same_predictions(ours, logits[0, len(prompt) - 1 :])

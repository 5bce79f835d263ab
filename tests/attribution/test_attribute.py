"""The explicit sweep against circuit-tracer's own attribution."""

import circuit_tracer
import pytest
import torch

import attribution
from attribution import expansion
from benchmarks.reference_workload import build
from tests.support import tiny_models
from tests.support.same_graph import assert_same_graph
from tests.support.tiny_models import (
    ARCHITECTURES,
    CROSS_LAYER,
    HOOKS,
    PER_LAYER,
    prompt_tokens,
    tiny_model,
)

SWEPT = [name for name in ARCHITECTURES if name != "parallel"]


@pytest.mark.parametrize("hooks", HOOKS)
@pytest.mark.parametrize("architecture", SWEPT)
def test_architectures_match_the_library_wherever_features_read_and_write(architecture, hooks):
    model = tiny_model(architecture, hooks=hooks)
    assert attribution.method_for(model) == "explicit sweep"
    assert_same_graph(model)


@pytest.mark.parametrize("skip", [False, True], ids=["plain", "skip"])
@pytest.mark.parametrize("dictionary", [*PER_LAYER, *CROSS_LAYER])
@pytest.mark.parametrize("architecture", ["gemma2", "gpt2"])
def test_dictionaries_match_the_library(architecture, dictionary, skip):
    # Behind a norm and before another: every fold of a decoder, an encoder and a skip is used.
    model = tiny_model(architecture, dictionary, hooks="mlp", skip=skip)
    assert attribution.method_for(model) == "explicit sweep"
    assert_same_graph(model, max_feature_nodes=60, batch_size=7)


@pytest.mark.parametrize("dictionary", ["relu", "cross_layer_jump_relu"])
def test_lazy_encoders_and_decoders_match_the_library(dictionary, tmp_path):
    model = tiny_model("qwen3", dictionary, lazy_in=tmp_path)
    assert_same_graph(model, max_feature_nodes=50)


@pytest.mark.parametrize("max_feature_nodes", [1, 30, 100, 10_000, None])
def test_any_number_of_feature_nodes_matches_the_library(max_feature_nodes):
    model = tiny_model("gemma2", "relu", hooks="gemma scope")
    graph = assert_same_graph(model, max_feature_nodes=max_feature_nodes, batch_size=16)
    n_active = len(graph.active_features)
    assert n_active > 100
    assert len(graph.selected_features) == min(max_feature_nodes or n_active, n_active)


@pytest.mark.parametrize("update_interval", [1, 2, 4, 1000])
@pytest.mark.parametrize("batch_size", [5, 48])
def test_rankings_as_often_as_asked_select_the_same_features(update_interval, batch_size):
    model = tiny_model("llama", "relu")
    assert_same_graph(
        model, max_feature_nodes=90, batch_size=batch_size, update_interval=update_interval
    )


def test_rankings_more_often_select_other_features():
    # Else the test above would hold for any interval.
    model, settings = tiny_model("llama", "relu"), {"max_feature_nodes": 90, "batch_size": 5}
    often, once = (
        attribution.attribute(prompt_tokens(), model, update_interval=interval, **settings)
        for interval in (1, 1000)
    )
    assert not torch.equal(often.selected_features, once.selected_features)


@pytest.mark.parametrize(
    "targets",
    [
        ["w7", "w30"],
        torch.tensor([4, 44, 9]),
        [("w7 less w8", 0.6, torch.linspace(-1, 1, tiny_models.D_MODEL))],
    ],
    ids=["token strings", "token ids", "a direction"],
)
def test_custom_targets_match_the_library(targets):
    model = tiny_model("gemma3", hooks="gemma scope")
    graph = assert_same_graph(model, attribution_targets=targets, max_feature_nodes=40)
    assert len(graph.logit_targets) == len(targets)


def test_text_and_lists_of_ids_are_prompts_too():
    model = tiny_model()
    assert_same_graph(model, "w5 w17 w23 w4", max_feature_nodes=20)
    assert_same_graph(model, [1, 5, 17, 23, 4], max_feature_nodes=20)


def test_more_logits_than_a_batch_holds_match_the_library():
    targets = torch.arange(3, 13)
    assert_same_graph(tiny_model(), attribution_targets=targets, batch_size=4, max_feature_nodes=20)


def test_the_reference_workload_matches_the_library():
    model, tokens, settings = build("R0")
    assert_same_graph(model, tokens, **settings)


def test_gemma_3_chat_models_ignore_their_whole_prefix():
    model = tiny_model("gemma3", "relu")
    model.zero_positions = slice(0, 4)  # what circuit-tracer sets by the model's name
    graph = assert_same_graph(model, max_feature_nodes=40)
    assert graph.active_features[:, 1].min() == 4


@pytest.mark.parametrize("dictionary", ["jump_relu", "cross_layer_relu"])
def test_half_precision_matches_the_library_to_its_rounding(dictionary):
    model = tiny_model("gemma2", dictionary, hooks="mlp", skip=True, dtype=torch.bfloat16)
    ours = attribution.attribute(prompt_tokens(), model)
    theirs = circuit_tracer.attribute(prompt_tokens(), model, batch_size=48)
    assert torch.equal(ours.active_features, theirs.active_features)
    off = (ours.adjacency_matrix - theirs.adjacency_matrix).abs().max()
    assert off <= 0.03 * theirs.adjacency_matrix.abs().max()


def test_models_that_the_sweep_does_not_cover_go_the_librarys_way():
    model = tiny_model("parallel", hooks="gemma scope")
    assert attribution.method_for(model) == "circuit-tracer"
    assert_same_graph(model, max_feature_nodes=40)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("share", [0.6, 0.0], ids=["rows on the device", "rows on the host"])
def test_a_gpu_gives_the_librarys_graph_wherever_rows_are_kept(share, monkeypatch):
    monkeypatch.setattr(expansion, "_SHARE_OF_DEVICE", share)
    model, tokens, settings = build("R0", device="cuda")
    assert_same_graph(model, tokens, **settings)

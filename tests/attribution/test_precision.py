"""Graphs in 16 bits against the truth: the same weights, widened, in float32.

Numbers in 16 bits can't be compared bit by bit. What can be: how near they are to the truth, beside
how near circuit-tracer's are in the same dtype.
"""

import pytest
import torch

import attribution
from attribution.salient_logits import probabilities_of, salient_logits
from benchmarks.precision import DTYPES, Agreement, agreement, compare, in_float32
from tests.support.tiny_models import (
    ARCHITECTURES,
    CROSS_LAYER,
    HOOKS,
    PER_LAYER,
    prompt_tokens,
    tiny_model,
)

PROMPTS = [prompt_tokens(10, seed) for seed in range(3)]
SETTINGS = {"max_feature_nodes": 60, "batch_size": 16}
# Rounding is luck to a part: of 180 features two more may be exchanged, and a tenth of the error.
FEATURES_OF_LUCK, ERROR_OF_LUCK = 4 / 180, 1.1
# What 16 bits leave of the edges, were the library not there to compare with.
LARGEST_ERROR = {torch.bfloat16: 0.04, torch.float16: 0.02}


def builder(architecture, dictionary="jump_relu", hooks="residual", **kind):
    return lambda dtype: tiny_model(architecture, dictionary, hooks, dtype=dtype, **kind)


def assert_as_near_as_the_library(build, dtype):
    ours, library = compare(build, dtype, PROMPTS, **SETTINGS)
    assert ours.error <= LARGEST_ERROR[dtype]
    assert ours.jaccard >= 0.9
    if library is not None:
        assert ours.jaccard >= library.jaccard - FEATURES_OF_LUCK
        assert ours.error <= library.error * ERROR_OF_LUCK
    return library


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("hooks", HOOKS)
@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "parallel"])
def test_graphs_in_16_bits_are_as_near_the_truth_as_the_librarys(architecture, hooks, dtype):
    assert assert_as_near_as_the_library(builder(architecture, hooks=hooks), dtype) is not None


@pytest.mark.parametrize("skip", [False, True], ids=["plain", "skip"])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("dictionary", [*PER_LAYER, *CROSS_LAYER])
def test_every_dictionary_in_16_bits_is_as_near_the_truth_as_the_librarys(dictionary, dtype, skip):
    build = builder("llama", dictionary, skip=skip)
    assert assert_as_near_as_the_library(build, dtype) is not None


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_a_model_that_goes_the_librarys_way_is_as_near_the_truth(dtype):
    build = builder("parallel", hooks="gemma scope")
    assert assert_as_near_as_the_library(build, dtype) is not None


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_cross_layer_features_behind_a_norm_are_served_where_the_library_fails(dtype):
    build = builder("gemma2", "cross_layer_jump_relu", "gemma scope")
    assert assert_as_near_as_the_library(build, dtype) is None


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("dictionary", ["relu", "cross_layer_jump_relu"])
def test_in_16_bits_lazy_and_eager_transcoders_give_the_same_graph(dictionary, dtype, tmp_path):
    eager = tiny_model("gemma2", dictionary, "mlp", dtype=dtype)
    lazy = tiny_model("gemma2", dictionary, "mlp", dtype=dtype, lazy_in=tmp_path)
    graphs = [attribution.attribute(PROMPTS[0], model, **SETTINGS) for model in (eager, lazy)]
    assert torch.equal(graphs[0].selected_features, graphs[1].selected_features)
    assert torch.equal(graphs[0].adjacency_matrix, graphs[1].adjacency_matrix)


def test_a_graph_is_float32_whatever_the_models_dtype():
    graph = attribution.attribute(PROMPTS[0], tiny_model(dtype=torch.bfloat16), **SETTINGS)
    assert graph.adjacency_matrix.dtype == torch.float32
    assert graph.activation_values.dtype == torch.float32
    assert graph.logit_probabilities.dtype == torch.float32


def test_the_yardstick_tells_a_rounded_graph_from_the_true_one():
    build = builder("llama")
    model = build(torch.bfloat16)
    truth = attribution.attribute(PROMPTS[0], in_float32(model, build), **SETTINGS)
    assert agreement(truth, truth) == Agreement(1.0, 0.0)
    rounded = attribution.attribute(PROMPTS[0], model, **SETTINGS)
    assert 1e-3 < agreement(rounded, truth).error < 0.1


@pytest.mark.parametrize("dtype", [torch.float32, *DTYPES.values()])
def test_probabilities_are_a_float32_softmax_of_logits_of_any_dtype(dtype):
    logits = (4 * torch.randn(50, generator=torch.Generator().manual_seed(0))).to(dtype)
    probabilities = probabilities_of(logits)
    assert probabilities.dtype == torch.float32
    torch.testing.assert_close(probabilities, logits.double().softmax(-1).float())


@pytest.mark.parametrize(
    ("probabilities", "wanted", "at_most", "expected"),
    [
        ([0.5, 0.3, 0.2], 0.79, 3, 2),
        ([0.5, 0.3, 0.2], 0.81, 3, 3),
        ([0.5, 0.3, 0.2], 0.81, 2, 2),
        ([0.5, 0.3, 0.2], 1.0, 3, 3),
        ([0.2, 0.3, 0.5], 0.1, 3, 1),
    ],
)
def test_as_few_logits_are_salient_as_reach_the_wanted_probability(
    probabilities, wanted, at_most, expected
):
    logits = torch.tensor(probabilities).log()
    salient = salient_logits(logits, at_most, wanted)
    order = logits.argsort(descending=True)[:expected]
    assert salient.token_ids.tolist() == order.tolist()
    torch.testing.assert_close(salient.probabilities, logits.exp()[order])


def test_a_graphs_logits_in_16_bits_are_those_of_a_float32_softmax():
    model = tiny_model(dtype=torch.bfloat16)
    wanted = {"max_n_logits": 40, "desired_logit_prob": 0.999}
    graph = attribution.attribute(PROMPTS[0], model, **wanted)
    expected = salient_logits(model(PROMPTS[0])[0, -1].detach(), **wanted)
    assert graph.logit_token_ids.tolist() == expected.token_ids.tolist()
    torch.testing.assert_close(graph.logit_probabilities, expected.probabilities)
    # In bfloat16 itself the sum reaches that a token earlier.
    rounded = model(PROMPTS[0])[0, -1].detach().softmax(-1).topk(40).values.cumsum(0)
    assert int(torch.searchsorted(rounded, 0.999)) + 1 < len(expected.token_ids)

"""Targets besides tokens: differences of logits, and features at a position.

Differences are compared with circuit-tracer's custom targets, features with the row that the same
feature has in a whole graph of the prompt. Both ways of attributing are tried.
"""

import re

import circuit_tracer
import pytest
import torch
from circuit_tracer.attribution.targets import CustomTarget
from circuit_tracer.graph import compute_graph_scores, prune_graph

import attribution
from attribution import FeatureTarget, LogitDifference
from attribution.circuit_tracer_names import unembedding
from attribution.influence import NodeRanges
from errors import InvalidInput
from tests.support.cuda_devices import DEVICES, cuda_device, on_cuda
from tests.support.hugging_face_models import shared_model
from tests.support.tiny_models import D_VOCAB, prompt_tokens, tiny_model

TOKENS = prompt_tokens(9)
LAST = len(TOKENS) - 1
TOLERANCE = 1e-5  # of the largest entry
# The difference of 16-bit numbers that the library takes, and of float32 ones, as they are here.
IN_16_BITS = {torch.bfloat16: 0.03, torch.float16: 0.005}

ONE_LESS_ANOTHER = LogitDifference((7,), (30,), "w7 - w30")
MEANS = LogitDifference((5, 8, 41), (11, 12), "mean[w5, w8, w41] - mean[w11, w12]")
SWEPT = [("gemma2", "jump_relu", "mlp"), ("llama", "relu", "residual"), ("gpt2", "top_k", "mlp")]
SWEPT += [("qwen3", "cross_layer_relu", "residual"), ("gemma3", "relu", "gemma scope")]


def swept(architecture, dictionary, hooks, dtype=torch.float32):
    model = tiny_model(architecture, dictionary, hooks, dtype=dtype)
    assert attribution.method_for(model) == "explicit sweep"
    return model


def traced(which):
    """A model that goes circuit-tracer's way."""
    if which == "parallel":
        model = tiny_model("parallel", hooks="gemma scope")
    else:
        model = shared_model("nnsight", which)
    assert attribution.method_for(model) == "circuit-tracer"
    return model


def library_target(model, difference, tokens=TOKENS):
    """A difference as circuit-tracer's notebook on attribution targets makes it."""
    matrix = unembedding(model)
    columns = matrix.T if matrix.shape[0] == D_VOCAB else matrix
    with torch.no_grad():
        logits = model.get_activations(tokens)[0][0, -1]
    probabilities = logits.float().softmax(-1)
    plus, minus = list(difference.plus), list(difference.minus)
    weight = (probabilities[plus].mean() - probabilities[minus].mean()).abs()
    vector = columns[:, plus].mean(1) - columns[:, minus].mean(1)
    return CustomTarget(difference.label, max(weight.item(), 1e-6), vector.detach())


def assert_same(ours, theirs, tolerance=TOLERANCE):
    assert torch.equal(ours.active_features.cpu(), theirs.active_features.cpu())
    assert torch.equal(ours.selected_features, theirs.selected_features)
    assert ours.logit_targets == theirs.logit_targets
    torch.testing.assert_close(ours.logit_probabilities.cpu(), theirs.logit_probabilities.cpu())
    largest = theirs.adjacency_matrix.abs().max()
    assert ours.adjacency_matrix.shape == theirs.adjacency_matrix.shape
    difference = (ours.adjacency_matrix - theirs.adjacency_matrix).abs().max()
    assert difference <= tolerance * largest


def some_features(graph, n=4):
    """Active features that read something, in no order of their layers."""
    whole = graph.adjacency_matrix[: len(graph.active_features)]
    assert len(graph.selected_features) == len(graph.active_features)
    read = whole.abs().sum(1).nonzero().flatten()
    chosen = read[torch.linspace(0, len(read) - 1, n).long()].tolist()
    return chosen[::2] + chosen[1::2]


def named(graph, number):
    layer, position, index = graph.active_features[number].tolist()
    return FeatureTarget(layer, index, position)


def rows_of_targets(graph):
    nodes = NodeRanges.of(graph)
    return graph.adjacency_matrix[-nodes.n_logits :, : -nodes.n_logits]


@pytest.mark.parametrize("max_feature_nodes", [40, None], ids=["ranked", "all"])
@pytest.mark.parametrize("case", SWEPT, ids=", ".join)
def test_differences_of_logits_are_the_librarys_custom_targets(case, max_feature_nodes):
    model = swept(*case)
    how = {"max_feature_nodes": max_feature_nodes, "batch_size": 16}
    differences = [ONE_LESS_ANOTHER, MEANS]
    ours = attribution.attribute(TOKENS, model, attribution_targets=differences, **how)
    customs = [library_target(model, each) for each in differences]
    theirs = circuit_tracer.attribute(TOKENS, model, attribution_targets=customs, **how)
    assert_same(ours, theirs)
    assert [target.vocab_idx for target in ours.logit_targets] == [D_VOCAB, D_VOCAB + 1]
    assert rows_of_targets(ours).abs().max() > 0


@pytest.mark.parametrize("which", ["parallel", "llama", "gemma2"])
def test_the_librarys_way_has_the_same_differences(which):
    model = traced(which)
    how = {"max_feature_nodes": 40, "batch_size": 1}
    differences = [MEANS, ONE_LESS_ANOTHER]
    ours = attribution.attribute(TOKENS, model, attribution_targets=differences, **how)
    customs = [library_target(model, each) for each in differences]
    assert_same(ours, circuit_tracer.attribute(TOKENS, model, attribution_targets=customs, **how))


@pytest.mark.parametrize("dtype", IN_16_BITS, ids=str)
def test_differences_in_16_bits_are_the_librarys_to_its_rounding(dtype):
    model = swept("gemma2", "jump_relu", "mlp", dtype)
    ours = attribution.attribute(TOKENS, model, attribution_targets=[ONE_LESS_ANOTHER, MEANS])
    customs = [library_target(model, each) for each in (ONE_LESS_ANOTHER, MEANS)]
    theirs = circuit_tracer.attribute(TOKENS, model, attribution_targets=customs, batch_size=48)
    assert_same(ours, theirs, IN_16_BITS[dtype])


def test_equal_probabilities_leave_a_difference_the_librarys_least_weight():
    model = swept("llama", "relu", "residual")
    model.unembed.W_U.data[:, 30] = model.unembed.W_U.data[:, 7]
    model.unembed.b_U.data[30] = model.unembed.b_U.data[7]
    graph = attribution.attribute(TOKENS, model, attribution_targets=[ONE_LESS_ANOTHER])
    assert graph.logit_probabilities.tolist() == pytest.approx([1e-6])


@pytest.mark.parametrize("max_feature_nodes", [40, None], ids=["ranked", "all"])
@pytest.mark.parametrize("batch_size", [1, 48])
@pytest.mark.parametrize("case", SWEPT, ids=", ".join)
def test_a_feature_target_has_the_row_that_the_feature_has(case, batch_size, max_feature_nodes):
    assert_rows_of_features(swept(*case), batch_size, max_feature_nodes)


@pytest.mark.parametrize("max_feature_nodes", [40, None], ids=["ranked", "all"])
@pytest.mark.parametrize("batch_size", [1, 48])
@pytest.mark.parametrize("which", ["parallel", "llama", "gemma2"])
def test_the_librarys_way_has_it_too(which, batch_size, max_feature_nodes):
    assert_rows_of_features(traced(which), batch_size, max_feature_nodes)


def assert_rows_of_features(model, batch_size, max_feature_nodes):
    whole = attribution.attribute(TOKENS, model)
    chosen = some_features(whole)
    targets = [named(whole, number) for number in chosen]
    graph = attribution.attribute(
        TOKENS,
        model,
        attribution_targets=targets,
        batch_size=batch_size,
        max_feature_nodes=max_feature_nodes,
    )
    n_active, n_logits = len(whole.active_features), len(whole.logit_targets)
    sources = torch.cat(
        [
            graph.selected_features,
            torch.arange(n_active, len(whole.adjacency_matrix) - n_logits),
        ]
    )
    expected = whole.adjacency_matrix[chosen][:, sources]
    off = (rows_of_targets(graph) - expected).abs().amax(1)
    assert (off <= TOLERANCE * expected.abs().amax(1)).all()
    assert (expected.abs().amax(1) > 0).all()
    assert graph.logit_probabilities.tolist() == [1.0] * len(targets)
    assert [target.vocab_idx for target in graph.logit_targets] == [
        D_VOCAB + n for n in range(len(targets))
    ]
    assert graph.logit_targets[0].token_str == targets[0].label


@pytest.mark.parametrize("dtype", IN_16_BITS, ids=str)
def test_a_feature_target_in_16_bits_has_the_features_row(dtype):
    model = swept("gemma2", "jump_relu", "mlp", dtype)
    whole = attribution.attribute(TOKENS, model)
    chosen = some_features(whole)
    targets = [named(whole, number) for number in chosen]
    graph = attribution.attribute(TOKENS, model, attribution_targets=targets)
    expected = whole.adjacency_matrix[chosen][:, : -len(whole.logit_targets)]
    # The same float32 sums of the same rounded numbers; only the shapes of the products differ.
    off = (rows_of_targets(graph) - expected).norm()
    assert off <= 0.01 * expected.norm()


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(lambda: swept("gemma3", "relu", "gemma scope"), id="swept"),
        pytest.param(lambda: traced("parallel"), id="the library's way"),
        pytest.param(lambda: traced("qwen3"), id="nnsight"),
    ],
)
def test_kinds_mix_in_any_order_and_each_row_is_what_it_is_alone(model):
    model = model()
    whole = attribution.attribute(TOKENS, model)
    low, high = some_features(whole, 2)
    mixed = [named(whole, high), 9, MEANS, named(whole, low), 44]
    graph = attribution.attribute(TOKENS, model, attribution_targets=mixed, batch_size=2)
    ids = [D_VOCAB, 9, D_VOCAB + 2, D_VOCAB + 3, 44]
    assert [target.vocab_idx for target in graph.logit_targets] == ids
    for n, target in enumerate(mixed):
        alone = attribution.attribute(TOKENS, model, attribution_targets=[target])
        row, expected = rows_of_targets(graph)[n], rows_of_targets(alone)[0]
        assert (row - expected).abs().max() <= TOLERANCE * expected.abs().max()
        torch.testing.assert_close(graph.logit_probabilities[n], alone.logit_probabilities[0])
    tokens = attribution.attribute(TOKENS, model, attribution_targets=torch.tensor([9, 44]))
    assert [graph.logit_targets[n] for n in (1, 4)] == tokens.logit_targets


def test_rankings_go_by_the_weights_of_all_kinds():
    """What is selected is what has most influence on these targets in the whole graph."""
    model = swept("llama", "relu", "residual")
    whole = attribution.attribute(TOKENS, model)
    targets = [named(whole, some_features(whole, 2)[0]), MEANS, 7]
    everything = attribution.attribute(TOKENS, model, attribution_targets=targets)
    influence = attribution.influence.node_influence(everything)[0][: len(whole.active_features)]
    graph = attribution.attribute(
        TOKENS,
        model,
        attribution_targets=targets,
        max_feature_nodes=30,
        batch_size=1,
        update_interval=1,
    )
    chosen = influence[graph.selected_features].sum()
    assert chosen >= 0.95 * influence.topk(30).values.sum()


@pytest.mark.parametrize("mixed", [False, True], ids=["a feature", "all kinds"])
def test_pruning_and_scores_are_the_librarys(mixed):
    model = swept("gemma2", "jump_relu", "mlp")
    whole = attribution.attribute(TOKENS, model)
    targets = [named(whole, some_features(whole)[-1]), *([MEANS, 7] if mixed else [])]
    graph = attribution.attribute(TOKENS, model, attribution_targets=targets)
    ours, theirs = attribution.prune(graph), prune_graph(graph)
    kept = torch.zeros_like(theirs.edge_mask)
    kept[ours.edge_targets, ours.edge_sources] = True
    assert torch.equal(ours.node_mask, theirs.node_mask)
    assert torch.equal(kept, theirs.edge_mask)
    scores = ours.replacement_score, ours.completeness_score
    assert scores == pytest.approx(compute_graph_scores(graph), abs=1e-5)


def test_what_is_kept_of_a_feature_targets_graph_is_below_it():
    model = swept("qwen3", "cross_layer_relu", "residual")
    whole = attribution.attribute(TOKENS, model)
    below = (whole.active_features[:, 0] == 1).nonzero().flatten()
    target = named(whole, int(below[len(below) // 2]))
    pruned = attribution.prune(attribution.attribute(TOKENS, model, attribution_targets=[target]))
    features = whole.active_features[pruned.node_mask[: len(whole.active_features)]]
    assert len(features) > 0
    assert (features[:, 0] < target.layer).all()
    assert (features[:, 1] <= target.position).all()


@pytest.mark.parametrize("model", [swept, traced], ids=["swept", "the library's way"])
@pytest.mark.parametrize(
    ("target", "error", "words"),
    [
        (1.5, TypeError, "attribution_targets[0] is a float"),
        (D_VOCAB, ValueError, f"attribution target {D_VOCAB} is not from 0 to {D_VOCAB - 1}"),
        (LogitDifference((7,), (-1,), ""), ValueError, "attribution target -1 is not from 0"),
        ("w7 w8", ValueError, "'w7 w8' is 2 tokens"),
    ],
)
def test_what_is_no_target_is_refused(model, target, error, words):
    model = model("llama", "relu", "residual") if model is swept else model("llama")
    with pytest.raises(error, match=re.escape(words)):
        attribution.attribute(TOKENS, model, attribution_targets=[target, ONE_LESS_ANOTHER])


@pytest.mark.parametrize("sides", [((), (7,)), ((7,), ())])
def test_a_difference_has_tokens_on_both_sides(sides):
    with pytest.raises(ValueError, match="one token at least on either side"):
        LogitDifference(*sides, "")


class TestFeatureThatIsNotActive:
    @pytest.fixture(params=["swept", "the library's way"])
    def model(self, request):
        return swept("llama", "relu", "residual") if request.param == "swept" else traced("llama")

    def refusal(self, model, *targets):
        with pytest.raises(InvalidInput) as raised:
            attribution.attribute(TOKENS, model, attribution_targets=list(targets))
        return str(raised.value)

    def test_is_refused_with_its_name_and_those_that_are_active_there(self, model):
        graph = attribution.attribute(TOKENS, model)
        there = (graph.active_features[:, :2] == torch.tensor([1, LAST])).all(1)
        values, indices = graph.activation_values[there], graph.active_features[there, 2]
        by_strength = indices[values.argsort(descending=True)].tolist()
        inactive = next(n for n in range(64) if n not in by_strength)

        message = self.refusal(model, 9, FeatureTarget(1, inactive, LAST))

        assert message.startswith("invalid_input: attribution_targets[1] is ")
        assert f"feature {inactive} of layer 1 at position {LAST}, which isn't active" in message
        listed = ", ".join(map(str, by_strength[:8]))
        assert f"active there are {listed} and {len(by_strength) - 8} more" in message

    def test_is_told_where_else_it_is(self, model):
        graph = attribution.attribute(TOKENS, model)
        places = graph.active_features.tolist()
        layer, index, other = next(
            (layer, index, other)
            for layer, _, index in places
            for other in range(1, len(TOKENS))
            if [layer, other, index] not in places
        )
        positions = [at for its, at, number in places if (its, number) == (layer, index)]
        message = self.refusal(model, FeatureTarget(layer, index, other))
        assert f"it is active at {', '.join(map(str, positions))}" in message

    def test_is_told_when_nothing_is(self, model):
        message = self.refusal(model, FeatureTarget(0, 3, 0))
        assert "no feature of layer 0 is active at position 0" in message


@pytest.mark.parametrize("max_feature_nodes", [50, None])
@pytest.mark.parametrize("share", [0.6, 0.0], ids=["rows on the device", "rows on the host"])
@pytest.mark.parametrize("device", DEVICES)
def test_a_cuda_device_gives_the_cpus_graph(device, share, max_feature_nodes, monkeypatch):
    model = swept("gemma2", "jump_relu", "mlp")
    whole = attribution.attribute(TOKENS, model)
    low, high = some_features(whole, 2)
    how = {
        "attribution_targets": [named(whole, low), 9, MEANS, named(whole, high)],
        "max_feature_nodes": max_feature_nodes,
        "batch_size": 8,
    }
    expected = attribution.attribute(TOKENS, model, **how)
    monkeypatch.setattr(attribution.expansion, "_SHARE_OF_DEVICE", share)
    with cuda_device(device):
        graph = attribution.attribute(TOKENS, on_cuda(model), **how)
        assert_same(graph, expected, 1e-6)
        with pytest.raises(InvalidInput, match="isn't active"):
            attribution.attribute(TOKENS, model, attribution_targets=[FeatureTarget(0, 3, 0)])

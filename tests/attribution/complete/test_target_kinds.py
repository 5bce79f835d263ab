"""Differences of logits and features as targets in complete replacement models."""

import pytest
import torch

from attribution import FeatureTarget, LogitDifference
from attribution.complete import attribute, freeze, prune, trace_attention
from attribution.influence import NodeRanges
from errors import InvalidInput
from tests.support.complete_cases import CASES, ONE_OF_EACH, write_case
from tests.support.complete_engine import complete_model, in_float32
from tests.support.cuda_devices import DEVICES, cuda_device

DIFFERENCE = LogitDifference((5, 8, 41), (11, 12), "mean[5, 8, 41] - mean[11, 12]")
TOLERANCE = 1e-5  # of a row's largest entry
# What 16 bits leave of a row, in parts of its length.
FAR = {torch.bfloat16: 0.06, torch.float16: 0.01}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("cases")


def frozen(name, directory, device="cpu", dtype=torch.float32):
    case = CASES[name]
    model = complete_model(write_case(directory, case), dtype, device=device)
    return freeze(model, tokens_of(name, model))


def tokens_of(name, model):
    return torch.tensor(model.tokenizer.encode(CASES[name].prompt, add_special_tokens=False))


def named(graph, number):
    sublayer, position, index = graph.active_features[number].tolist()
    kind = "transcoder" if sublayer % 2 else "lorsa"
    return FeatureTarget(sublayer // 2, index, position, kind)


def one_of_each_kind(graph):
    """A Lorsa's feature and a transcoder's, each of which reads something; the lower one first."""
    reads = graph.adjacency_matrix[: len(graph.active_features)].abs().sum(1) > 0
    is_lorsa = graph.active_features[:, 0] % 2 == 0
    lorsas, transcoders = ((reads & kind).nonzero().flatten() for kind in (is_lorsa, ~is_lorsa))
    return [int(lorsas[len(lorsas) // 3]), int(transcoders[-1])]


def rows_of_targets(graph):
    return graph.adjacency_matrix[-NodeRanges.of(graph).n_logits :]


def assert_close(row, expected):
    assert expected.abs().max() > 0
    assert (row - expected).abs().max() <= TOLERANCE * expected.abs().max()


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_features_row_is_the_one_that_it_has_in_the_whole_graph(name, directory):
    local = frozen(name, directory)
    whole = attribute(local)
    chosen = one_of_each_kind(whole)
    targets = [named(whole, number) for number in chosen]
    assert {target.kind for target in targets} == {"lorsa", "transcoder"}

    for batch_size in (1, 48):
        graph = attribute(local, attribution_targets=targets, batch_size=batch_size)

        n_sources = len(graph.adjacency_matrix) - len(targets)
        for row, number in zip(rows_of_targets(graph), chosen, strict=True):
            assert_close(row[:n_sources], whole.adjacency_matrix[number, :n_sources])
        assert graph.logit_probabilities.tolist() == [1.0, 1.0]
        assert [target.token_str for target in graph.logit_targets] == [t.label for t in targets]


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_difference_is_that_of_the_mean_rows_of_its_tokens(name, directory):
    local = frozen(name, directory)
    tokens = [*DIFFERENCE.plus, *DIFFERENCE.minus]
    of_tokens = attribute(local, attribution_targets=torch.tensor(tokens))
    rows = rows_of_targets(of_tokens)[:, : -len(tokens)]
    probabilities = of_tokens.logit_probabilities

    graph = attribute(local, attribution_targets=[DIFFERENCE])

    assert_close(rows_of_targets(graph)[0, :-1], rows[:3].mean(0) - rows[3:].mean(0))
    expected = (probabilities[:3].mean() - probabilities[3:].mean()).abs()
    torch.testing.assert_close(graph.logit_probabilities, expected[None])
    assert graph.logit_targets == [(DIFFERENCE.label, len(local.logits))]


def test_kinds_mix_and_the_graph_is_ranked_pruned_and_traced(directory):
    local = frozen("jumprelu-9", directory)
    whole = attribute(local)
    low, high = (named(whole, number) for number in one_of_each_kind(whole))
    targets = [low, 9, DIFFERENCE, high]
    vocabulary = len(local.logits)

    graph = attribute(local, attribution_targets=targets, max_feature_nodes=30, batch_size=4)

    ids = [target.vocab_idx for target in graph.logit_targets]
    assert ids == [vocabulary, 9, vocabulary + 2, vocabulary + 3]
    for row, target in zip(rows_of_targets(graph), targets, strict=True):
        alone = attribute(local, attribution_targets=[target])
        columns = torch.cat(
            [
                graph.selected_features,
                torch.arange(len(whole.active_features), len(alone.adjacency_matrix) - 1),
            ]
        )
        assert_close(row[: -len(targets)], rows_of_targets(alone)[0, columns])
    pruned = prune(graph)
    assert pruned.node_mask[: len(graph.selected_features)].any()
    assert pruned.node_mask[-len(targets) :].all()
    assert trace_attention(graph, local)


def test_what_is_kept_of_a_lorsa_features_graph_is_below_it(directory):
    local = frozen("jumprelu-9", directory)
    whole = attribute(local)
    number = one_of_each_kind(whole)[0]
    sublayer, position, _ = whole.active_features[number].tolist()

    pruned = prune(attribute(local, attribution_targets=[named(whole, number)]))

    features = whole.active_features[pruned.node_mask[: len(whole.active_features)]]
    assert (features[:, 0] < sublayer).all()
    assert (features[:, 1] <= position).all()


def test_a_feature_that_is_not_active_is_refused_with_its_kind_and_those_that_are(directory):
    local = frozen("jumprelu-9", directory)
    places = local.active_features.tolist()
    sublayer, position, index = next(
        (sublayer, position, index)
        for sublayer, position, index in places
        if sublayer % 2 == 0 and [sublayer + 1, position, index] not in places
    )
    with pytest.raises(InvalidInput) as raised:
        attribute(local, attribution_targets=[FeatureTarget(sublayer // 2, index, position)])
    message = str(raised.value)
    layer = sublayer // 2
    assert f"is transcoder feature {index} of layer {layer} at position {position}" in message
    assert "isn't active" in message
    assert 'the one with kind "lorsa" is active there' in message


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["jumprelu-9", "glu-6"])
def test_a_cuda_device_gives_the_cpus_rows(name, device, directory, tmp_path):
    local = frozen(name, directory)
    whole = attribute(local)
    low, high = (named(whole, number) for number in one_of_each_kind(whole))
    how = {"attribution_targets": [high, 9, DIFFERENCE, low], "max_feature_nodes": 40}
    expected = attribute(local, **how)
    with cuda_device(device):
        graph = attribute(frozen(name, tmp_path, "cuda:0"), **how)
    assert torch.equal(graph.selected_features, expected.selected_features)
    assert graph.logit_targets == expected.logit_targets
    torch.testing.assert_close(graph.logit_probabilities, expected.logit_probabilities)
    for row, other in zip(rows_of_targets(graph), rows_of_targets(expected), strict=True):
        assert_close(row, other)


def columns_of(graph):
    """What a graph's columns but those of its targets are, with their numbers."""
    features = [tuple(f) for f in graph.active_features[graph.selected_features].tolist()]
    others = range(len(graph.adjacency_matrix) - len(features) - len(graph.logit_targets))
    return {name: n for n, name in enumerate([*features, *others])}


@pytest.mark.parametrize("device", ["cpu", *DEVICES])
@pytest.mark.parametrize("dtype", FAR, ids=str)
@pytest.mark.parametrize("name", ["relu-6", "jumprelu-9", "glu-6", "few-heads-9"])
def test_in_16_bits_rows_are_near_those_of_the_same_weights_in_float32(
    name, dtype, device, directory, tmp_path
):
    local = frozen(name, directory, dtype=dtype)
    exact = freeze(in_float32(local.model), tokens_of(name, local.model))
    truth = attribute(exact)
    strongest = {}
    for number, value in enumerate(truth.activation_values.tolist()):
        sublayer, position, _ = truth.active_features[number].tolist()
        if position > 1 and value > strongest.get(sublayer, (0.0, None))[0]:
            strongest[sublayer] = value, named(truth, number)
    # A Lorsa's and a transcoder's of the third layer, far from their thresholds.
    how = {"attribution_targets": [strongest[4][1], DIFFERENCE, strongest[5][1]]}
    truth = attribute(exact, **how)
    if device == "cpu":
        graph = attribute(local, **how)
    else:
        with cuda_device(device):
            graph = attribute(frozen(name, tmp_path, "cuda:0", dtype), **how)
    ours, wanted = columns_of(graph), columns_of(truth)
    common = sorted(ours.keys() & wanted.keys(), key=str)
    assert len(common) >= 0.95 * len(wanted)
    for row, expected in zip(rows_of_targets(graph), rows_of_targets(truth), strict=True):
        row, expected = row[[ours[c] for c in common]], expected[[wanted[c] for c in common]]
        assert expected.norm() > 0
        assert (row - expected).norm() <= FAR[dtype] * expected.norm()

"""A graph opens with its features in named groups, and with its strongest paths."""

import dataclasses

import pytest
import torch
from circuit_tracer.attribution.targets import LogitTarget
from circuit_tracer.graph import Graph
from hypothesis import given, settings
from hypothesis import strategies as st

from attribution import PrunedGraph, prune
from graphs.flow import Flow
from graphs.supernodes import Output, Words, find
from schemas import MAX_GROUPS
from tests.support.synthetic_graph import make_config, make_graph

TOKENS = ["<bos>", " Michael", " Jordan", " joue", " au"]
WORDS = Words(
    tokens=TOKENS,
    first_position=1,
    outputs=[Output("say", '" basket"'), Output("say", '" tennis"')],
    labels={},
)
N_LAYERS = 3
# A layer and a position each. Rows 0 and 1, and 4 and 5, are alike below; the others aren't.
FEATURES = [(0, 1), (0, 1), (0, 4), (1, 2), (2, 4), (2, 4), (2, 4), (2, 4)]


def node(name: str) -> int:
    """The row of `E3` (a token), `P0` (a logit) or `2` (a feature) in graphs of FEATURES."""
    first_token = len(FEATURES) + N_LAYERS * len(TOKENS)
    if name.startswith("E"):
        return first_token + int(name[1:])
    if name.startswith("P"):
        return first_token + len(TOKENS) + int(name[1:])
    return int(name)


LINKS = {
    # What the name reads and the last layer writes.
    ("0", "E1"): 2.0,
    ("1", "E1"): 1.0,
    ("4", "0"): 3.0,
    ("4", "1"): 3.0,
    ("5", "0"): 3.0,
    ("5", "1"): 3.0,
    ("4", "E3"): 1.0,
    ("P0", "4"): 4.0,
    ("P0", "5"): 3.0,
    # What is like nothing else.
    ("2", "E4"): 1.0,
    ("3", "E2"): 1.0,
    ("6", "2"): 1.0,
    ("7", "3"): 1.0,
    ("P1", "6"): -1.0,
    ("P1", "7"): 1.0,
    ("P0", "E4"): 1.0,
}


def pruned_of(links=LINKS, features=FEATURES, n_logits=2) -> PrunedGraph:
    """A graph with these links and no others, all of it kept."""
    n_tokens, n_features = len(TOKENS), len(features)
    n_nodes = n_features + N_LAYERS * n_tokens + n_tokens + n_logits
    matrix = torch.zeros(n_nodes, n_nodes)
    for (target, source), weight in links.items():
        matrix[node(target), node(source)] = weight
    places = [[layer, position, index] for index, (layer, position) in enumerate(features)]
    graph = Graph(
        input_string="synthetic",
        input_tokens=torch.arange(n_tokens),
        active_features=torch.tensor(places, dtype=torch.int64).reshape(-1, 3),
        adjacency_matrix=matrix,
        cfg=make_config(N_LAYERS),
        selected_features=torch.arange(n_features),
        activation_values=torch.ones(n_features),
        logit_targets=[LogitTarget(f" word{n}", 7 + n) for n in range(n_logits)],
        logit_probabilities=torch.tensor([0.75, 0.25][:n_logits]),
    )
    targets, sources = matrix.nonzero(as_tuple=True)
    kept = torch.ones(n_nodes, dtype=torch.bool)
    weights = matrix[targets, sources]
    scores = torch.linspace(0, 1, n_nodes)
    return PrunedGraph(graph, kept, scores, targets, sources, weights, 1.0, 1.0)


def found(links=LINKS, **words):
    return find(Flow.of(pruned_of(links)), dataclasses.replace(WORDS, **words))


def test_features_that_read_and_write_alike_are_in_one_group():
    assert [members for _, members in found().groups] == [[4, 5], [0, 1]]


def test_a_group_is_named_by_the_token_it_pushes_and_by_the_one_it_reads():
    assert [name for name, _ in found().groups] == ['say " basket"', '" Michael" → " basket"']


def test_a_group_before_the_last_token_says_nothing_though_it_writes_to_the_logits():
    links = {**LINKS, ("P0", "0"): 90.0, ("P0", "1"): 90.0}
    assert '" Michael" → " basket"' in [name for name, _ in found(links).groups]


def test_a_group_that_lowers_every_output_is_named_so():
    links = {**LINKS, ("P0", "4"): -4.0, ("P0", "5"): -3.0, ("P1", "4"): -1.0, ("P1", "5"): -1.0}
    assert [name for name, _ in found(links).groups] == [
        'not say " basket"',
        '" Michael" → not " basket"',
    ]


def test_an_output_that_is_no_token_is_raised_and_not_said():
    outputs = [Output("raise", "layer 2 feature 5 at 4"), WORDS.outputs[1]]
    [first, second] = [name for name, _ in found(outputs=outputs).groups]
    assert first == "raise layer 2 feature 5 at 4"
    assert second == '" Michael" → layer 2 feature 5 at 4'


def test_a_label_that_more_than_half_of_a_group_has_names_it():
    labels = {0: "names", 1: "names", 4: "sports", 5: "balls"}
    assert [name for name, _ in found(labels=labels).groups] == ['say " basket"', "names"]


def test_groups_of_one_name_are_told_apart():
    labels = {0: "alike", 1: "alike", 4: "alike", 5: "alike"}
    names = [name for name, _ in found(labels=labels).groups]
    assert names == ["alike (L2)", "alike (L0)"]
    complete = found(labels=labels, levels_per_layer=4)
    assert [name for name, _ in complete.groups] == ["alike (L0)", "alike (L0) 2"]


def test_long_tokens_and_line_breaks_are_shortened_in_a_name():
    tokens = ["<bos>", "\n" * 60, *TOKENS[2:]]
    names = [name for name, _ in found(tokens=tokens).groups]
    assert names[1] == f'"{"⏎" * 39}…" → " basket"'


def test_the_strongest_paths_go_from_a_token_through_features_to_a_logit():
    flow = Flow.of(pruned_of())
    paths = flow.strongest_paths(3, first_position=1)
    assert paths[0] == [node("E1"), 0, 4, node("P0")]
    assert len({path[0] for path in paths}) == 3
    for path in paths:
        assert path[-1] >= flow.logits.start
        assert len(path) > 2


def test_the_token_that_begins_every_prompt_starts_a_path_only_where_no_other_does():
    links = {**LINKS, ("0", "E0"): 9.0, ("1", "E0"): 9.0}
    paths = Flow.of(pruned_of(links)).strongest_paths(5, 1)
    assert {path[0] for path in paths} == {node(name) for name in ("E1", "E2", "E3", "E4")}
    only = {("0", "E0"): 9.0, ("1", "E0"): 9.0, ("4", "0"): 1.0, ("P0", "4"): 1.0}
    assert Flow.of(pruned_of(only)).strongest_paths(1, 1)[0] == [node("E0"), 0, 4, node("P0")]
    assert found(only).groups[0][0].startswith('"<bos>" →')


def test_paths_come_first_among_what_is_pinned_and_members_are_pinned_too():
    subgraph = found()
    assert subgraph.pinned[:4] == [node("E1"), 0, 4, node("P0")]
    assert {0, 1, 4, 5} <= set(subgraph.pinned)
    assert len(set(subgraph.pinned)) == len(subgraph.pinned)


def test_influence_is_that_of_the_pruned_graph():
    pruned = prune(make_graph(), 1.0, 1.0)
    flow = Flow.of(pruned)
    matrix = torch.zeros_like(pruned.graph.adjacency_matrix)
    matrix[pruned.edge_targets, pruned.edge_sources] = pruned.edge_weights.abs()
    shares = matrix / matrix.sum(1, keepdim=True).clamp(min=1e-30)
    start = torch.zeros(len(matrix))
    start[flow.logits] = pruned.graph.logit_probabilities
    # All paths: start (1 + S + S² + …), and no link leads from a feature to one of its layer.
    layers = torch.from_numpy(flow.layers)
    shares[: len(layers), : len(layers)] *= layers[:, None] > layers
    kept = dataclasses.replace(
        flow,
        shares=torch.where(
            shares[pruned.edge_targets, pruned.edge_sources] > 0,
            torch.from_numpy(flow.shares),
            0.0,
        ).numpy(),
    )
    expected = torch.linalg.solve(torch.eye(len(matrix)) - shares.T, start)
    torch.testing.assert_close(torch.from_numpy(kept.influence), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("n_features", [0, 1])
def test_fewer_than_two_features_make_no_group(n_features):
    links = {("P0", "E4"): 1.0, **({("0", "E1"): 1.0, ("P0", "0"): 1.0} if n_features else {})}
    subgraph = found(links)
    assert subgraph.groups == []
    assert subgraph.pinned == ([node("E1"), 0, node("P0")] if n_features else [])


def test_two_features_are_a_group_however_different():
    links = {("0", "E1"): 1.0, ("P0", "0"): 1.0, ("6", "E4"): 1.0, ("P1", "6"): -1.0}
    assert [members for _, members in found(links).groups] == [[0, 6]]


def test_a_graph_without_links_opens_with_nothing():
    subgraph = found({})
    assert (subgraph.pinned, subgraph.groups) == ([], [])


def words_for(graph) -> Words:
    return Words(
        tokens=[f" t{n}" for n in range(graph.n_pos)],
        first_position=1,
        outputs=[Output("say", f'"{target.token_str}"') for target in graph.logit_targets],
        labels={},
    )


def with_features_moved(pruned: PrunedGraph, seed: int) -> tuple[PrunedGraph, list[int]]:
    """The same graph with the features of each layer in another order, and where each went."""
    graph, n = pruned.graph, len(pruned.graph.selected_features)
    layers = graph.active_features[graph.selected_features][:, 0]
    noise = torch.rand(n, generator=torch.Generator().manual_seed(seed))
    order = torch.tensor(sorted(range(n), key=lambda row: (int(layers[row]), float(noise[row]))))
    every = torch.cat([order, torch.arange(n, len(pruned.node_mask))])
    moved = torch.empty_like(every)
    moved[every] = torch.arange(len(every))
    targets, sources = moved[pruned.edge_targets], moved[pruned.edge_sources]
    by_row = torch.argsort(targets * len(every) + sources)
    other = Graph(
        **{
            field: getattr(graph, field)
            for field in ("input_string", "input_tokens", "active_features", "cfg")
        },
        adjacency_matrix=graph.adjacency_matrix[every][:, every],
        selected_features=graph.selected_features[order],
        activation_values=graph.activation_values,
        logit_targets=graph.logit_targets,
        logit_probabilities=graph.logit_probabilities,
    )
    return (
        dataclasses.replace(
            pruned,
            graph=other,
            node_mask=pruned.node_mask[every],
            cumulative_scores=pruned.cumulative_scores[every],
            edge_targets=targets[by_row],
            edge_sources=sources[by_row],
            edge_weights=pruned.edge_weights[by_row],
        ),
        moved.tolist(),
    )


@settings(max_examples=40, deadline=None)
@given(
    n_features=st.integers(0, 60),
    n_logits=st.integers(1, 5),
    node_threshold=st.sampled_from([0.3, 0.8, 1.0]),
    seed=st.integers(0, 1_000),
)
def test_whatever_the_graph_groups_are_disjoint_and_hold_half_of_its_features(
    n_features, n_logits, node_threshold, seed
):
    graph = make_graph(n_features=n_features, n_logits=n_logits, seed=seed)
    pruned = prune(graph, node_threshold, 0.98)
    flow = Flow.of(pruned)
    subgraph = find(flow, words_for(graph))
    rows = [row for _, members in subgraph.groups for row in members]
    in_graph = set(pruned.edge_targets.tolist()) | set(pruned.edge_sources.tolist())
    assert len(set(rows)) == len(rows)
    assert set(rows) <= {row for row in in_graph if row < n_features}
    assert all(len(members) >= 2 for _, members in subgraph.groups)
    if len(flow.features) >= 2:
        assert 2 * len(rows) >= len(flow.features)
    names = [name for name, _ in subgraph.groups]
    assert len(set(names)) == len(names)
    assert len(set(subgraph.pinned)) == len(subgraph.pinned)
    tokens_and_logits = set(range(flow.tokens.start, flow.n_nodes))
    assert set(subgraph.pinned) <= {row for row in in_graph if row < n_features} | tokens_and_logits


@settings(max_examples=25, deadline=None)
@given(n_features=st.integers(2, 60), seed=st.integers(0, 1_000))
def test_groups_do_not_depend_on_the_order_of_features(n_features, seed):
    graph = make_graph(n_features=n_features, seed=seed)
    features = graph.active_features[graph.selected_features]
    n = len(features)
    graph.adjacency_matrix[:n, :n] *= features[:, None, 0] > features[None, :, 0]
    pruned = prune(graph, 1.0, 1.0)
    other, moved = with_features_moved(pruned, seed)
    words = words_for(graph)
    before, after = find(Flow.of(pruned), words), find(Flow.of(other), words)
    assert {(name, frozenset(moved[row] for row in rows)) for name, rows in before.groups} == {
        (name, frozenset(rows)) for name, rows in after.groups
    }
    assert {moved[row] for row in before.pinned} == set(after.pinned)


def test_a_large_graph_has_as_many_groups_as_intervene_takes_and_pins_what_a_page_shows():
    graph = make_graph(n_features=700, n_layers=4, n_pos=40)
    pruned = prune(graph, 1.0, 1.0)
    subgraph = find(Flow.of(pruned), words_for(graph))
    assert 12 <= len(subgraph.groups) <= MAX_GROUPS
    assert 2 * sum(len(rows) for _, rows in subgraph.groups) >= 700
    assert len(subgraph.pinned) <= 200
    assert find(Flow.of(pruned), words_for(graph)) == subgraph

"""What flows along the links of a pruned graph, and what of large graphs is grouped by it."""

from itertools import pairwise

import numpy as np
import pytest

from attribution import prune
from graphs.clusters import group
from graphs.flow import Flow
from tests.support.synthetic_graph import make_graph


def flow_of(**sizes) -> Flow:
    graph = make_graph(**sizes)
    layers = graph.active_features[graph.selected_features][:, 0]
    n = len(layers)
    graph.adjacency_matrix[:n, :n] *= layers[:, None] > layers[None, :]
    return Flow.of(prune(graph, 1.0, 1.0))


def go_on() -> None:
    """A job that nobody stops."""


class Stopped(Exception):
    pass


def all_paths(flow: Flow, shares) -> np.ndarray:
    """What flows from each node (columns) to each node (rows): 1 + S + S² + …"""
    matrix = np.zeros((flow.n_nodes, flow.n_nodes))
    matrix[flow.targets, flow.sources] = shares
    return np.linalg.inv(np.eye(flow.n_nodes) - matrix)


@pytest.fixture(scope="module")
def flow() -> Flow:
    return flow_of(n_features=80, seed=3)


def test_what_flows_up_to_a_feature_is_the_sum_over_all_paths_with_their_signs(flow):
    start = np.random.default_rng(0).standard_normal((flow.n_nodes, 7), dtype=np.float32)
    rows = flow.features
    expected = all_paths(flow, flow.shares) @ start
    np.testing.assert_allclose(flow.up(start, rows, go_on)[rows], expected[rows], atol=1e-4)


@pytest.mark.parametrize("signed", [False, True])
def test_what_flows_down_from_a_node_is_the_sum_over_all_paths(flow, signed):
    start = np.random.default_rng(0).standard_normal((flow.n_nodes, 7), dtype=np.float32)
    shares = flow.shares if signed else np.abs(flow.shares)
    expected = all_paths(flow, shares).T @ start
    np.testing.assert_allclose(flow.down(start, go_on, signed=signed), expected, atol=1e-4)


def test_the_strongest_links_of_a_feature_are_those_with_most_of_its_inputs(flow):
    row = int(flow.features[-1])
    links = flow.links_into(slice(row, row + 1))
    start = np.eye(flow.n_nodes, dtype=np.float32)
    there = flow.up(start, np.array([row]), go_on, most_links=3)[row] - start[row]
    kept = np.flatnonzero(there)
    largest = np.argsort(-np.abs(flow.shares[links]))[:3]
    assert set(kept.tolist()) == set(flow.sources[links][largest].tolist())
    assert len(kept) == 3


def test_a_path_s_strength_is_the_product_of_its_shares(flow):
    strength = np.zeros(flow.n_nodes)
    strength[flow.logits] = flow.logit_weights
    for n in range(len(flow.targets) - 1, -1, -1):
        target, source = flow.targets[n], flow.sources[n]
        if source < flow.tokens.start or target < flow.logits.start:
            through = abs(float(flow.shares[n])) * strength[target]
            strength[source] = max(strength[source], through)
    shares = dict(zip(zip(flow.targets, flow.sources, strict=True), flow.shares, strict=True))
    [path] = flow.strongest_paths(1, 1)
    product = float(flow.logit_weights[path[-1] - flow.logits.start])
    for source, target in pairwise(path):
        product *= abs(float(shares[target, source]))
    assert product == pytest.approx(strength[flow.tokens][1:].max(), rel=1e-4)


def test_a_graph_of_thousands_of_features_has_its_strongest_half_in_groups():
    flow = flow_of(n_features=2_500, n_layers=6, n_pos=8)
    groups = group(flow, 30, go_on)
    rows = [row for members in groups for row in members]
    assert len(groups) <= 30
    assert len(set(rows)) == len(rows) == -(-len(flow.features) // 2)
    strongest = np.sort(flow.influence[flow.features])[-len(rows) :]
    np.testing.assert_array_equal(np.sort(flow.influence[rows]), strongest)


def test_grouping_asks_again_and_again_whether_the_job_should_go_on():
    flow = flow_of(n_features=1_500, n_layers=6, n_pos=8)
    times = 0

    def count():
        nonlocal times
        times += 1

    group(flow, 30, count)
    n_checks = times
    assert n_checks >= 6

    def stop():
        nonlocal times
        times -= 1
        if times == 0:
            raise Stopped

    with pytest.raises(Stopped):
        group(flow, 30, stop)

"""Automatic groups beside random ones, on the demo model."""

import numpy as np
import pytest

from benchmarks import circuits


@pytest.fixture(scope="module")
def graphs():
    return list(circuits.grouped_graphs())


@pytest.fixture(scope="module")
def own(graphs):
    return [graph.groups for graph in graphs]


@pytest.fixture(scope="module")
def random(graphs):
    draw = np.random.default_rng(0)
    return [[graph.random_groups(draw) for graph in graphs] for _ in range(20)]


@pytest.mark.parametrize("name", ["fires on and promotes", "fires on"])
def test_pairs_of_one_group_are_alike_twice_as_often_as_chance(graphs, own, random, name):
    chance = np.mean([circuits.purity(graphs, groups, name).pairs for groups in random])
    assert circuits.purity(graphs, own, name).pairs >= 2 * chance


def test_groups_lose_less_influence_than_random_ones(graphs, own, random):
    chance = np.mean([circuits.faithfulness(graphs, groups) for groups in random])
    assert chance < circuits.faithfulness(graphs, own) <= 1


def test_nothing_is_lost_where_every_feature_is_in_a_group_of_its_own(graphs):
    alone = [[[int(row)] for row in graph.flow.features] for graph in graphs]
    assert circuits.faithfulness(graphs, alone) == pytest.approx(1, abs=1e-4)


def test_random_groups_have_the_sizes_of_the_graph_s_own(graphs, own, random):
    for graph, groups, other in zip(graphs, own, random[0], strict=True):
        assert [len(members) for members in groups] == [len(members) for members in other]
        rows = [int(row) for members in other for row in members]
        assert len(set(rows)) == len(rows)
        assert set(rows) <= set(graph.flow.features.tolist())

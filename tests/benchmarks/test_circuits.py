"""Automatic groups beside random ones, on the demo model."""

import numpy as np
import pytest

from benchmarks import circuits

ATHLETES, OTHERS, HELD_OUT = circuits.prompt_sets()


@pytest.fixture(scope="module")
def graphs():
    return list(circuits.grouped_graphs(circuits.prompt_sets()[ATHLETES]))


@pytest.fixture(scope="module")
def own(graphs):
    return [graph.groups for graph in graphs]


@pytest.fixture(scope="module")
def random(graphs):
    draw = np.random.default_rng(0)
    return [[graph.random_groups(draw) for graph in graphs] for _ in range(20)]


@pytest.mark.parametrize("name", ["fires on and promotes", "fires on", "promotes"])
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


@pytest.fixture(scope="module")
def held_out():
    return list(circuits.grouped_graphs(circuits.prompt_sets()[HELD_OUT][::3]))


@pytest.mark.parametrize("name", ["fires on and promotes", "fires on"])
def test_groups_are_purer_than_random_ones_on_facts_that_were_not_used_for_choosing(held_out, name):
    own = [graph.groups for graph in held_out]
    draw = np.random.default_rng(0)
    random = [[graph.random_groups(draw) for graph in held_out] for _ in range(20)]
    chance = max(circuits.purity(held_out, groups, name).pairs for groups in random)
    assert circuits.purity(held_out, own, name).pairs > chance


def test_groups_lose_less_influence_than_random_ones_on_those_facts_too(held_out):
    draw = np.random.default_rng(0)
    random = [[graph.random_groups(draw) for graph in held_out] for _ in range(20)]
    chance = max(circuits.faithfulness(held_out, groups) for groups in random)
    assert chance < circuits.faithfulness(held_out, [graph.groups for graph in held_out])


def test_no_fact_is_both_used_for_choosing_and_held_out():
    sets = circuits.prompt_sets()
    prompts = {title: {fact.prompt for fact in facts} for title, facts in sets.items()}
    assert all(prompts.values())
    assert not prompts[HELD_OUT] & (prompts[ATHLETES] | prompts[OTHERS])

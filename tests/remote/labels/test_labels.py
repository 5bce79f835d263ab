"""Labels of features: asked for once, in bounds, with a sentence for what goes wrong."""

import threading

import pytest

from remote.labels.labels import MOST_FEATURES
from remote.labels.neuronpedia import AT_ONCE
from tests.support.neuronpedia import (
    DETAILS,
    LORSA_SET,
    MODEL,
    SOURCE_SET,
    labels_from,
    neuronpedia,
)
from viewer.demo_features import LORSA, TRANSCODER
from viewer.descriptions import FeatureId

GRAPH = {"scan": MODEL, "feature_details": DETAILS}


@pytest.fixture
def site():
    with neuronpedia() as running:
        yield running


@pytest.fixture
def labels(site, tmp_path):
    return labels_from(site.url, tmp_path)


def names(*indices, layer=5, kind=TRANSCODER):
    return [(kind, f"{layer}_{index}") for index in indices]


def test_a_graph_s_features_have_the_names_of_both_of_its_sets(site, labels):
    site.add(f"5-{SOURCE_SET}", 7, "capitals", "more")
    site.add(f"5-{LORSA_SET}", 7, "looks back")
    site.add(f"5-{SOURCE_SET}", 8)
    wanted = [*names(7, 8, 9), *names(7, kind=LORSA)]
    assert labels.names(GRAPH, wanted) == {
        (TRANSCODER, "5_7"): "capitals",
        (LORSA, "5_7"): "looks back",
    }
    assert labels.said == []


def test_what_was_asked_once_is_not_asked_again_also_by_the_next_command(site, labels, tmp_path):
    site.add(f"5-{SOURCE_SET}", 7, "capitals")
    labels.names(GRAPH, names(7, 8))
    assert labels.names(GRAPH, names(7, 8, 7)) == {(TRANSCODER, "5_7"): "capitals"}
    again = labels_from(site.url, tmp_path)
    assert again.names(GRAPH, names(8, 7)) == {(TRANSCODER, "5_7"): "capitals"}
    assert len(site.asked) == 1
    again.names(GRAPH, names(7, 11))
    assert [one["index"] for one in site.asked[1]] == [11]


def test_many_are_asked_for_in_requests_of_bounded_size_the_strongest_first(site, labels):
    site.add(f"5-{SOURCE_SET}", 0, "first")
    labels.names(GRAPH, names(*range(MOST_FEATURES + 10)))
    assert [len(asked) for asked in site.asked] == [AT_ONCE] * (MOST_FEATURES // AT_ONCE)
    assert [one["index"] for asked in site.asked for one in asked] == list(range(MOST_FEATURES))
    assert labels.said == [
        f"labels: only the {MOST_FEATURES} strongest of {MOST_FEATURES + 10} features are asked "
        "for labels"
    ]


def test_a_set_that_is_not_there_is_said_once(site, labels):
    for _ in range(2):
        assert labels.names(GRAPH, names(1, 2)) == {}
    [said] = labels.said
    assert said.endswith(f"has none of these features: is '{SOURCE_SET}' of 'gemma-2-2b' there?")


def test_features_that_nobody_has_explained_are_said(site, labels):
    site.add(f"5-{SOURCE_SET}", 7)
    assert labels.names(GRAPH, names(7)) == {}
    [said] = labels.said
    assert said.endswith("has no explanation of these features yet")


@pytest.mark.parametrize("details", [None, {}, "text", {"neuronpedia_source_set": 7}])
def test_a_graph_that_does_not_say_where_is_said_and_nobody_is_asked(site, labels, details):
    assert labels.names({"scan": MODEL, "feature_details": details}, names(7)) == {}
    [said] = labels.said
    assert "does not say where its features are described" in said
    assert site.asked == []


@pytest.mark.parametrize(
    ("metadata", "place"),
    [
        ({"scan": "x" * 201}, "5_7"),
        ({"scan": ""}, "5_7"),
        ({"scan": "\ud800"}, "5_7"),
        ({"scan": None}, "5_7"),
        ({"feature_details": {"neuronpedia_source_set": "a\nb"}}, "5_7"),
        ({}, "99999_7"),
        ({}, "5_" + "9" * 20),
        ({}, "5_" + "9" * 400),
        ({}, "E_7"),
        ({}, "5"),
        ({}, "-5_7"),
    ],
)
def test_what_can_be_no_feature_is_not_asked_for(site, labels, metadata, place):
    assert labels.names({**GRAPH, **metadata}, [(TRANSCODER, place)]) == {}
    assert site.asked == []


@pytest.mark.parametrize(("pause_s", "is_asked"), [(30.0, False), (0.0, True)])
def test_after_a_failure_nothing_is_asked_for_a_while(site, tmp_path, pause_s, is_asked):
    site.answers = 0
    labels = labels_from(site.url, tmp_path, pause_s=pause_s)
    labels.names(GRAPH, names(1))
    asked = len(site.asked)
    labels.names(GRAPH, names(2))
    assert (len(site.asked) > asked) == is_asked
    [said] = labels.said
    assert "gave no usable answer: 500: Unknown Error" in said


def test_what_came_before_a_failure_is_kept(site, labels, tmp_path):
    for index in range(2 * AT_ONCE):
        site.add(f"5-{SOURCE_SET}", index, f"feature {index}")
    site.answers = 1
    assert len(labels.names(GRAPH, names(*range(2 * AT_ONCE)))) == AT_ONCE
    [said] = labels.said
    assert "gave no usable answer" in said
    again = labels_from(site.url, tmp_path)
    assert len(again.names(GRAPH, names(*range(AT_ONCE)))) == AT_ONCE


def test_the_time_of_all_requests_is_bounded(site, tmp_path):
    labels = labels_from(site.url, tmp_path, longest_s=0)
    labels.names(GRAPH, names(*range(3 * AT_ONCE)))
    assert len(site.asked) == 1
    [said] = labels.said
    assert said.endswith(f"takes too long, {2 * AT_ONCE} features have no label")


def test_threads_ask_one_after_the_other_and_each_feature_once(site, labels):
    wanted = [FeatureId(MODEL, f"5-{SOURCE_SET}", index) for index in range(10)]
    threads = [threading.Thread(target=labels.describe, args=(wanted,)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(site.asked) == 1

"""Sets of features in a graph: as they are named, as groups and pins, of both kinds."""

import pytest

from remote.circuits.sets import CircuitGraph, NamedFeature, Selection
from remote.errors import WrongFile
from remote.graphs.features import FeatureKey
from tests.support.circuit_graphs import documents, written
from tests.support.complete_documents import fixture_path


def test_by_default_the_set_is_what_the_viewer_shows_in_groups_and_pins(tmp_path):
    features = [n["node_id"] for n in documents()[0]["nodes"] if n["feature_type"].startswith("cr")]
    logit = next(n["node_id"] for n in documents()[0]["nodes"] if n["feature_type"] == "logit")
    groups = [["say it", features[0], logit, features[1]], ["say it", features[2]], ["gone", "x"]]
    path = written(tmp_path, documents()[0], supernodes=groups, pinnedIds=[features[3], logit])
    graph = CircuitGraph.read(path)

    def ids(chosen):
        sites = (graph.sites[n] for n in chosen)
        return {f"{site.key.layer}_{site.key.index}_{site.position}" for site in sites}

    assert ids(Selection().of(graph)) == set(features[:4])
    assert ids(Selection(groups=["say it"]).of(graph)) == set(features[:3])
    with pytest.raises(WrongFile, match=r"no group 'sai it'; its groups are 'say it'$"):
        Selection(groups=["sai it"]).of(graph)


def test_features_are_named_at_a_token_or_wherever_they_are(tmp_path):
    graph = CircuitGraph.read(written(tmp_path, documents()[0]))
    everywhere, at_4 = NamedFeature.parse("2:157"), NamedFeature.parse(" 2:157:4")
    assert everywhere == NamedFeature(FeatureKey(2, 157, "transcoder"), None)
    assert {graph.sites[n].key for n in Selection([everywhere]).of(graph)} == {everywhere.key}
    [one] = Selection([at_4]).of(graph)
    assert graph.sites[one].position == 4
    assert NamedFeature.parse("lorsa:1:2:3").key.kind == "lorsa"
    assert Selection([at_4, NamedFeature.parse("3:1000:1")]).missing(graph) == 1


def test_features_of_attention_are_named_to_the_worker_as_such():
    graph = CircuitGraph.read(fixture_path("glu-9"))
    kinds = {site.key.kind for site in graph.sites}
    assert kinds == {"transcoder", "lorsa"}
    for site in graph.sites:
        assert site.fields()["kind"] == site.key.kind
    some = next(site for site in graph.sites if site.key.kind == "lorsa")
    name = f"lorsa:{some.key.layer}:{some.key.index}:{some.position}"
    [found] = Selection([NamedFeature.parse(name)]).of(graph)
    assert graph.sites[found] == some


@pytest.mark.parametrize(
    "parameters",
    [{"supernodes": "x"}, {"supernodes": [[1]]}, {"pinnedIds": "x"}],
    ids=["no list", "no name", "no ids"],
)
def test_groups_of_another_form_are_no_crash(tmp_path, parameters):
    path = written(tmp_path, documents()[2], **parameters)
    with pytest.raises(WrongFile, match="qParams is not as a graph's is"):
        CircuitGraph.read(path)

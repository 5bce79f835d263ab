"""generate-graph with `supernodes: "auto"`: the graph opens with groups and paths."""

import threading
from functools import cache
from itertools import pairwise

import pytest
from circuit_tracer.frontend.graph_models import Model

from actions.answer import answer
from errors import Cancelled, InvalidInput
from model_loader import get_model, load
from tests.support.demo_worker import (
    GRAPH,
    as_json,
    ask,
    demo_settings,
    forget_graphs,
    without_times,
)

AUTO = {**GRAPH, "supernodes": "auto"}
FEATURES = ("cross layer transcoder", "lorsa")
SETS = ("demo", "demo-crm")  # of transcoders, and with Lorsas
DIFFERENCE = {"plus": [" basket"], "minus": [" tennis"]}


@cache
def loaded_with(transcoder_set, dtype="float32"):
    """A model of this test's own: a process has one that all jobs get."""
    of_set = {} if transcoder_set == "demo" else {"transcoder_set": transcoder_set}
    settings = demo_settings(model_id="demo", model_dtype=dtype, **of_set)
    return load(settings), settings


@pytest.fixture(scope="module", autouse=True)
def _models_end_with_the_module():
    yield
    loaded_with.cache_clear()


def ask_set(body, transcoder_set, dtype="float32"):
    loaded, settings = loaded_with(transcoder_set, dtype)
    return as_json(answer(body, loaded, settings))


def assert_opens_readably(graph):
    """Every group's member is a feature of the graph and in no other, half are in one."""
    by_id = {node["node_id"]: node for node in graph["nodes"]}
    links = {(link["source"], link["target"]) for link in graph["links"]}
    pinned, groups = graph["qParams"]["pinnedIds"], graph["qParams"]["supernodes"]
    members = [node_id for _, *ids in groups for node_id in ids]
    features = [name for name, node in by_id.items() if node["feature_type"] in FEATURES]
    assert len(set(members)) == len(members)
    assert set(members) <= set(features)
    assert 2 * len(members) >= len(features)
    assert all(len(ids) >= 2 for _, *ids in groups)
    assert len({name for name, *_ in groups}) == len(groups)
    assert all(0 < len(name) <= 200 for name, *_ in groups)
    # What isn't pinned isn't shown.
    assert set(members) <= set(pinned) <= set(by_id)
    kinds = [by_id[node_id]["feature_type"] for node_id in pinned]
    first_path = pinned[: kinds.index("logit") + 1]
    assert kinds[0] == "embedding"
    assert len(first_path) > 2
    assert all(pair in links for pair in pairwise(first_path))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("transcoder_set", SETS)
def test_a_graph_opens_with_groups_and_paths_in_every_precision(dtype, transcoder_set):
    graph = ask_set(AUTO, transcoder_set, dtype)
    assert_opens_readably(graph)
    kinds = {node["feature_type"] for node in graph["nodes"]}
    assert ("lorsa" in kinds) == (transcoder_set == "demo-crm")
    names = [name for name, *_ in graph["qParams"]["supernodes"]]
    assert any('" basket"' in name for name in names)


def test_the_answer_s_last_features_say_it_and_those_of_the_name_lead_to_it():
    groups = {name: ids for name, *ids in ask(AUTO)["qParams"]["supernodes"]}
    assert {"3_338_4"} <= set(groups['say " basket"'])
    assert all(node_id.endswith("_1") for node_id in groups['"Michael" → " basket"'])


@pytest.mark.parametrize("targets", [[" basket"], [DIFFERENCE], [" tennis", DIFFERENCE]])
@pytest.mark.parametrize("transcoder_set", SETS)
def test_graphs_of_custom_targets_open_with_groups_too(targets, transcoder_set):
    assert_opens_readably(ask_set({**AUTO, "attribution_targets": targets}, transcoder_set))


def test_groups_that_lead_to_a_feature_are_named_by_it():
    feature = {"layer": 2, "index": 157, "position": 4}
    graph = ask({**AUTO, "attribution_targets": [feature]})
    assert_opens_readably(graph)
    names = [name for name, *_ in graph["qParams"]["supernodes"]]
    assert all("layer 2 feature 157 at 4" in name for name in names)
    assert not any(name.startswith("say") for name in names)


def test_the_document_is_one_that_the_library_s_model_takes():
    model = Model(**ask(AUTO))
    assert len(model.qParams.supernodes) >= 2
    assert all(len(group) >= 3 for group in model.qParams.supernodes)


def test_nothing_else_of_the_document_differs():
    plain, grouped = without_times(ask(GRAPH)), without_times(ask(AUTO))
    assert plain["qParams"]["supernodes"] == plain["qParams"]["pinnedIds"] == []
    assert without_times(ask({**GRAPH, "supernodes": "none"})) == plain
    assert {**grouped, "qParams": plain["qParams"]} == plain


def test_a_kept_attribution_is_grouped_without_the_model():
    forget_graphs()
    ask(GRAPH)

    def fail(*_):
        raise AssertionError("the model ran")

    handle = get_model(demo_settings()).model.blocks[0].register_forward_pre_hook(fail)
    try:
        assert_opens_readably(ask(AUTO))
    finally:
        handle.remove()


def test_a_graph_without_features_opens_with_nothing_grouped():
    graph = ask({**AUTO, "max_feature_nodes": 1, "node_threshold": 0.01})
    assert graph["qParams"]["supernodes"] == []


def test_grouping_has_its_share_of_the_progress():
    def stages_of(body):
        reported = []
        settings = demo_settings()
        on_progress = lambda *report: reported.append(report)  # noqa: E731
        answer(body, get_model(settings), settings, on_progress=on_progress).close()
        shares = [share for _, share, _ in reported]
        assert shares == sorted(shares)
        return list(dict.fromkeys(stage for stage, *_ in reported))

    forget_graphs()
    assert stages_of(AUTO) == ["tokenise", "attribute", "prune", "group", "encode"]
    forget_graphs()
    assert stages_of(GRAPH) == ["tokenise", "attribute", "prune", "encode"]


def test_a_job_that_is_cancelled_while_it_groups_stops_there():
    cancelled = threading.Event()

    def stop(stage, *_):
        if stage == "group":
            cancelled.set()

    settings = demo_settings()
    with pytest.raises(Cancelled) as raised:
        answer(AUTO, get_model(settings), settings, cancelled, on_progress=stop)
    assert any(entry.name == "group" for entry in raised.traceback)


def test_the_time_of_grouping_is_a_stage_of_its_own():
    assert "group" in ask(AUTO)["metadata"]["info"]["timings_ms"]
    assert "group" not in ask(GRAPH)["metadata"]["info"]["timings_ms"]


def test_another_way_to_group_is_refused_by_name():
    with pytest.raises(InvalidInput, match="supernodes"):
        ask({**GRAPH, "supernodes": "by hand"})

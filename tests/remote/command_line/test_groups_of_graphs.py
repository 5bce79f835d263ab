"""intervene on a graph's groups: a worker with another model or set is noticed."""

import json

import pytest

from client import main
from tests.support.circuit_graphs import documents, written
from tests.support.demo_worker import PROMPT


def changed(document, **metadata):
    return {**document, "metadata": {**document["metadata"], **metadata}}


def graph(folder, **metadata):
    """The demo's graph of the prompt, with its strongest features as two groups."""
    document = changed(documents()[2], **metadata)
    names = [
        node["node_id"] for node in document["nodes"] if node["feature_type"].startswith("cross")
    ]
    return written(folder, document, supernodes=[["first", names[0]], ["second", *names[1:3]]])


@pytest.fixture
def intervene(server):
    def run(path, *options):
        line = ["intervene", PROMPT, "--groups-of", str(path), "--each-off", *options]
        return main([*line, "--url", server.url])

    return run


def test_the_groups_of_a_graph_of_the_worker_are_tried_without_a_warning(
    tmp_path, intervene, capsys
):
    assert intervene(graph(tmp_path)) == 0
    said = capsys.readouterr()
    assert "first off" in said.out
    assert "warning" not in said.err


def test_a_graph_of_another_set_is_refused_before_a_job_is_sent(tmp_path, intervene, capsys):
    info = {**documents()[2]["metadata"]["info"], "transcoder_set": "demo-crm"}
    path = graph(tmp_path, info=info)
    assert intervene(path) == 2
    said = capsys.readouterr().err
    assert f"{path} is of the set 'demo-crm', and the worker has 'demo/transcoders'" in said
    assert "running" not in said


def test_a_graph_of_another_model_is_refused_by_the_worker_and_named(tmp_path, intervene, capsys):
    path = graph(tmp_path, scan="gemma-2-2b")
    assert intervene(path) == 1
    said = capsys.readouterr().err
    assert f"model_not_loaded: {path}: model_id 'gemma-2-2b' is not served here" in said
    assert intervene(path, "--model-id", "demo") == 0


def test_groups_that_are_not_active_on_the_worker_are_warned_of(tmp_path, intervene, capsys):
    path = graph(tmp_path, info={"transcoder_set": None})
    document = json.loads(path.read_bytes())
    document["qParams"]["supernodes"].append(["other", "0_500_3"])
    document["nodes"].append({**document["nodes"][0], "node_id": "0_500_3", "ctx_idx": 3})
    document["nodes"][-1]["feature_type"] = "cross layer transcoder"
    path.write_text(json.dumps(document))
    assert intervene(path, "--json") == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["baseline"]["groups"]["other"] is None
    assert f'no feature of "other" is active here, as they are in {path}' in said.err
    assert '"first"' not in said.err

"""`client.py export`: a graph in forms that other programs read."""

import csv
import json

import networkx
import pytest

from client import main
from remote.offline.export import NODE_FIELDS
from tests.support.complete_documents import fixture, fixture_path
from tests.support.demo_worker import ask
from viewer import demo_features
from viewer.demo_features import TRANSCODER

DEMO = {"scan": "demo", "info": {"transcoder_set": "demo/transcoders"}}
# What XML can't hold, what it escapes, what its parsers change, and what CSV quotes.
ODD = '\x00\x1b\x0b <a href="x">&amp;]]> \'\r\n\r\ud7ff\ufffe😀,"\n'


@pytest.fixture
def demo(tmp_path):
    document = ask({"prompt": "Michael Jordan joue au"})
    path = tmp_path / "jordan.json"
    path.write_text(json.dumps(document))
    return path, document


def label_of(node):
    """What the document calls a node, or else what the demo's feature does."""
    if node["feature_type"] != TRANSCODER:
        return node["clerp"] or ""
    layer, index, _ = node["node_id"].split("_")
    return demo_features.label(demo_features.features(DEMO, TRANSCODER)[f"{layer}_{index}"])


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_networkx_reads_the_graphml_with_every_node_link_and_number(demo, capsys):
    path, document = demo
    assert main(["export", str(path), "--to", "graphml"]) == 0
    written = path.with_suffix(".graphml")
    assert str(written) in capsys.readouterr().out.replace("\n", "")
    graph = networkx.read_graphml(written)
    assert graph.is_directed()
    assert graph.graph["scan"] == document["metadata"]["scan"]
    assert set(graph) == {node["node_id"] for node in document["nodes"]}
    links = {(link["source"], link["target"]): link["weight"] for link in document["links"]}
    assert {(s, t): w for s, t, w in graph.edges(data="weight")} == links
    for node in document["nodes"]:
        found = graph.nodes[node["node_id"]]
        assert found["label"] == label_of(node)
        assert found["token"] == document["metadata"]["prompt_tokens"][node["ctx_idx"]]
        for name in ("influence", "activation", "token_prob", "is_target_logit", "ctx_idx"):
            assert found.get(name) == node[name]
    [feature] = [n for n in document["nodes"] if n["node_id"].startswith("2_157_")]
    found = graph.nodes[feature["node_id"]]
    assert (found["layer"], found["index"], found["kind"]) == ("2", 157, "transcoder")


def test_csv_has_the_same_nodes_and_links(demo, tmp_path):
    path, document = demo
    assert main(["export", str(path), "--to", "csv", "-o", str(tmp_path / "tables")]) == 0
    nodes, links = (read_csv(tmp_path / "tables" / f"{name}.csv") for name in ("nodes", "links"))
    assert list(nodes[0]) == ["node_id", *NODE_FIELDS]
    assert [node["node_id"] for node in nodes] == [node["node_id"] for node in document["nodes"]]
    for row, node in zip(nodes, document["nodes"], strict=True):
        assert row["label"] == label_of(node)
        assert row["influence"] == ("" if node["influence"] is None else str(node["influence"]))
    assert [(row["source"], row["target"], float(row["weight"])) for row in links] == [
        (link["source"], link["target"], link["weight"]) for link in document["links"]
    ]


def test_without_an_output_csv_goes_into_a_folder_beside_the_graph(demo):
    path, _ = demo
    assert main(["export", str(path), "--to", "csv"]) == 0
    assert (path.parent / "jordan-csv" / "links.csv").exists()


def test_a_complete_replacement_model_s_graph_names_both_kinds_of_features(tmp_path):
    written = tmp_path / "complete.graphml"
    graph = fixture_path("topk-6")
    assert main(["export", str(graph), "--to", "graphml", "-o", str(written)]) == 0
    read = networkx.read_graphml(written)
    for node in fixture("topk-6")["nodes"]:
        found = read.nodes[node["node_id"]]
        kind = {"cross layer transcoder": "transcoder", "lorsa": "lorsa"}.get(node["feature_type"])
        assert found.get("kind") == kind
        if kind:
            assert found["index"] == int(node["node_id"].split("_")[2])


def odd_graph(tmp_path, **node):
    fields = {"node_id": f"1_2_0{ODD}", "feature_type": "logit", "clerp": ODD, "ctx_idx": 0}
    metadata = {"prompt": ODD, "prompt_tokens": [ODD]}
    document = {"metadata": metadata, "nodes": [{**fields, **node}], "links": []}
    path = tmp_path / "odd.json"
    path.write_text(json.dumps(document))
    return path


def test_texts_that_xml_can_not_hold_are_written_as_python_writes_them(tmp_path):
    assert main(["export", str(odd_graph(tmp_path)), "--to", "graphml"]) == 0
    read = networkx.read_graphml(tmp_path / "odd.graphml")
    shown = ODD.replace("\x00", "\\x00").replace("\x1b", "\\x1b").replace("\x0b", "\\x0b")
    shown = shown.replace("\ufffe", "\\ufffe")
    [(name, values)] = read.nodes(data=True)
    assert values["label"] == values["token"] == read.graph["prompt"] == shown
    assert name == f"1_2_0{shown}"


def test_texts_in_csv_are_as_they_are(tmp_path):
    assert main(["export", str(odd_graph(tmp_path)), "--to", "csv"]) == 0
    [row] = read_csv(tmp_path / "odd-csv" / "nodes.csv")
    assert row["label"] == row["token"] == ODD


@pytest.mark.parametrize(
    "field",
    [
        {"influence": 10**400},
        {"is_target_logit": "yes"},
        {"ctx_idx": 2**40},
        {"token_prob": True},
        {"activation": "1.5"},
    ],
)
def test_a_value_of_another_type_makes_no_file_that_others_refuse(tmp_path, field, capsys):
    path = odd_graph(tmp_path, **field)
    code = main(["export", str(path), "--to", "graphml"])
    if code == 0:
        networkx.read_graphml(tmp_path / "odd.graphml")
    else:
        assert code == 2
        assert capsys.readouterr().err.count("\n") == 1
        assert not (tmp_path / "odd.graphml").exists()


def test_what_can_not_be_read_or_written_is_one_sentence(demo, tmp_path, capsys):
    path, _ = demo
    assert main(["export", str(tmp_path / "none.json"), "--to", "csv"]) == 2
    assert "No such file" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["export", str(path), "--to", "csv", "-o", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(SystemExit) as ended:
        main(["export", str(path), "--to", "xlsx"])
    assert ended.value.code == 2

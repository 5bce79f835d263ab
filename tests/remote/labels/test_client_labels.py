"""`--labels` and FEATURE_LABELS: every command that shows features names them, and says why not."""

import csv
import gzip
import json

import pytest

from client import main
from remote.graphs.features import FeatureKey
from tests.support.complete_viewer_graphs import complete
from tests.support.demo_worker import ask
from tests.support.http_server import serving
from tests.support.neuronpedia import MODEL, SOURCE_SET, neuronpedia
from tests.support.programs import free_port
from tests.support.raw_server import RawServer, answer
from viewer.demo_features import TRANSCODER

PROMPT = "Michael Jordan joue au"
KEY = "np-key-of-the-test"
ESCAPES = "\x1b[2J\x9b\u202e[bold]x[/bold]"


@pytest.fixture
def site(monkeypatch, tmp_path):
    """Neuronpedia, which the commands of this test ask."""
    with neuronpedia() as running:
        monkeypatch.setenv("NEURONPEDIA_URL", running.url)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.delenv("FEATURE_LABELS", raising=False)
        yield running


@pytest.fixture(scope="module")
def document():
    """A graph of a model that Neuronpedia knows: the demo's, under that name."""
    graph = ask({"prompt": PROMPT, "slug_identifier": "named"})
    graph["metadata"]["scan"] = MODEL
    graph["metadata"]["feature_details"] = {"neuronpedia_source_set": SOURCE_SET}
    return graph


@pytest.fixture
def path(document, tmp_path):
    written = tmp_path / "graph.json"
    written.write_text(json.dumps(document))
    return written


def explain_all(site, document, words="explained"):
    for node in document["nodes"]:
        if node["feature_type"] == "cross layer transcoder":
            layer, index, _ = node["node_id"].split("_")
            site.add(f"{layer}-{SOURCE_SET}", int(index), f"{words} {layer}/{index}")


def feature_rows(said):
    """The rows of the table of features."""
    lines = said.split("Strongest features")[1].strip().splitlines()
    return [line.split() for line in lines[1:9]]


def test_a_graph_s_summary_names_its_strongest_features(site, document, tmp_path, capsys):
    explain_all(site, document)
    with RawServer([answer(200, json.dumps(document).encode())]) as worker:
        url = f"http://127.0.0.1:{worker.port}"
        command = ["graph", PROMPT, "--url", url, "--server", "http"]
        command += ["-o", str(tmp_path / "made.json")]
        assert main([*command, "--labels"]) == 0
        said = capsys.readouterr()
        rows = feature_rows(said.out)
        names = ["/".join(row[0].split(":")[:2]) for row in rows]
        assert [row[-2:] for row in rows] == [["explained", name] for name in names]
        assert "labels" not in said.err
        examples = said.out.split("Where they fire most, among Neuronpedia's texts")[1]
        lines = examples.strip().splitlines()[:8]
        texts = [line.strip().split(maxsplit=1) for line in lines]
        assert texts == [[name, "The capital of Texas"] for name in names]
        asked = len(site.asked)
        assert main(command) == 0
        assert "explained" not in capsys.readouterr().out
    assert len(site.asked) == asked


def test_the_examples_are_those_of_the_features_in_the_table_however_much_was_pruned_between(
    site, document, tmp_path, capsys
):
    graph = json.loads(json.dumps(document))
    features = [node for node in graph["nodes"] if node["feature_type"] == TRANSCODER]
    for node in sorted(features, key=lambda node: node["influence"])[4:]:
        node["influence"] += 0.3  # what was pruned counts to the next feature: it is the first
    explain_all(site, graph)
    with RawServer([answer(200, json.dumps(graph).encode())]) as worker:
        url = f"http://127.0.0.1:{worker.port}"
        command = ["graph", PROMPT, "--url", url, "--server", "http", "--labels"]
        assert main([*command, "-o", str(tmp_path / "made.json")]) == 0
    said = capsys.readouterr().out
    names = ["/".join(row[0].split(":")[:2]) for row in feature_rows(said)]
    examples = said.split("Where they fire most, among Neuronpedia's texts")[1]
    assert [line.split()[0] for line in examples.strip().splitlines()[:8]] == names


def test_a_complete_graph_s_summary_names_features_of_both_kinds_and_contributors(
    site, tmp_path, capsys
):
    graph = complete()
    graph["metadata"]["info"]["timings_ms"] = {}
    site.add(f"0-{graph['metadata']['feature_details']['neuronpedia_source_set']}", 3, "first")
    site.add("1-lorsa-8x", 7, "looks back")
    with RawServer([answer(200, json.dumps(graph).encode())]) as worker:
        url = f"http://127.0.0.1:{worker.port}"
        command = ["graph", PROMPT, "--url", url, "--server", "http"]
        assert main([*command, "-o", str(tmp_path / "made.json"), "--labels"]) == 0
    table, attention = capsys.readouterr().out.split("Why attention looks there")
    assert [line for line in table.splitlines() if "Lorsa" in line and "looks back" in line]
    assert [line for line in attention.splitlines() if "query" in line and "first" in line]


def test_nobody_is_asked_unless_the_option_or_the_setting_says_so(
    site, path, document, monkeypatch, capsys
):
    explain_all(site, document)
    command = ["compare", str(path), str(path)]
    assert main(command) == 0
    assert "explained" not in capsys.readouterr().out
    assert site.asked == []
    monkeypatch.setenv("FEATURE_LABELS", "true")
    assert main([*command, "--no-labels"]) == 0
    assert site.asked == []
    assert main(command) == 0
    assert "explained" in capsys.readouterr().out
    assert len(site.asked) == 1
    monkeypatch.setenv("FEATURE_LABELS", "false")
    assert main([*command, "--labels"]) == 0
    assert "explained" in capsys.readouterr().out
    assert len(site.asked) == 1  # they are on disk


def test_compare_asks_only_for_what_it_shows_and_with_json_for_all(site, path, document, capsys):
    explain_all(site, document)
    assert main(["compare", str(path), str(path), "--labels", "--top", "3"]) == 0
    assert capsys.readouterr().out.count("explained") == 3
    assert len(site.asked[0]) == 3
    assert main(["compare", str(path), str(path), "--labels", "--json"]) == 0
    output = json.loads(capsys.readouterr().out)
    for found in output["common"]:
        key = FeatureKey(found["layer"], found["index"], found["kind"])
        assert found["label"] == f"explained {key.layer}/{key.index}"


def test_export_has_them_in_its_column_of_labels(site, path, document, tmp_path):
    explain_all(site, document)
    folder = tmp_path / "tables"
    assert main(["export", str(path), "--to", "csv", "-o", str(folder), "--labels"]) == 0
    with (folder / "nodes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    features = [row for row in rows if row["kind"] == "transcoder"]
    assert features
    assert all(row["label"] == f"explained {row['layer']}/{row['index']}" for row in features)
    logits = [row["label"] for row in rows if row["feature_type"] == "logit"]
    assert logits
    assert all(label.startswith("Output ") for label in logits)


def test_both_kinds_of_a_complete_graph_s_features_are_named(site, tmp_path):
    graph = complete()
    details = graph["metadata"]["feature_details"]
    site.add(f"1-{details['neuronpedia_source_set']}", 7, "of the MLP")
    site.add("1-lorsa-8x", 7, "of attention")
    path = tmp_path / "complete.json"
    path.write_text(json.dumps(graph))
    assert main(["export", str(path), "--to", "csv", "--labels"]) == 0
    with (tmp_path / "complete-csv" / "nodes.csv").open(newline="") as file:
        labels = {row["node_id"]: row["label"] for row in csv.DictReader(file)}
    assert labels["1_cro_7_3"] == "of the MLP"
    assert labels["1_lor_7_3"] == "of attention"
    assert labels["0_cro_3_3"].startswith("F")  # the document's own, Neuronpedia has none


def test_a_label_of_the_graph_s_own_stays(site, document, tmp_path, capsys):
    graph = json.loads(json.dumps(document))
    for node in graph["nodes"]:
        if node["feature_type"] == "cross layer transcoder":
            node["clerp"] = "my own"
    path = tmp_path / "own.json.gz"
    path.write_bytes(gzip.compress(json.dumps(graph).encode()))
    explain_all(site, document)
    assert main(["compare", str(path), str(path), "--labels"]) == 0
    said = capsys.readouterr().out
    assert "my own" in said
    assert "explained" not in said
    assert site.asked == []


def test_an_example_is_what_surrounds_its_peak_and_can_not_act_on_the_terminal(
    site, document, tmp_path, capsys
):
    tokens = [f" t{i}" for i in range(40)]
    tokens[20] = f"▁{ESCAPES}"
    example = {"tokens": tokens, "values": [float(i == 20) for i in range(40)]}
    nodes = [n for n in document["nodes"] if n["feature_type"] == "cross layer transcoder"]
    for node in nodes:
        layer, index, _ = node["node_id"].split("_")
        site.add(f"{layer}-{SOURCE_SET}", int(index), activations=[example])
    with RawServer([answer(200, json.dumps(document).encode())]) as worker:
        url = f"http://127.0.0.1:{worker.port}"
        command = ["graph", PROMPT, "--url", url, "--server", "http", "--labels"]
        assert main([*command, "-o", str(tmp_path / "made.json")]) == 0
    said = capsys.readouterr()
    before, after = "".join(tokens[:20])[-50:], "".join(tokens[21:])[:30]
    wanted = f"…{before} \\x1b[2J\\x9b\\u202e[bold]x[/bold]{after}…"
    assert said.out.count(wanted) == 8
    assert not {"\x1b", "\x9b", "\u202e"} & set(said.out)
    assert "has no explanation of these features yet" in said.err


def test_a_label_can_not_act_on_the_terminal(site, path, document, capsys):
    explain_all(site, document, ESCAPES)
    assert main(["compare", str(path), str(path), "--labels", "--top", "2"]) == 0
    said = capsys.readouterr().out
    assert said.count("\\x1b[2J\\x9b\\u202e[bold]x[/bold]") == 2
    assert not {"\x1b", "\x9b", "\u202e"} & set(said)


def test_without_a_network_one_sentence_says_so_and_the_command_goes_on(
    site, path, monkeypatch, capsys
):
    monkeypatch.setenv("NEURONPEDIA_URL", f"http://127.0.0.1:{free_port()}")
    assert main(["compare", str(path), str(path), "--labels"]) == 0
    said = capsys.readouterr()
    assert "In all of them" in said.out
    assert said.err.count("\n") == 1
    assert said.err.startswith("labels: 127.0.0.1:")
    assert "nothing takes connections there" in said.err


def test_the_demo_s_own_names_need_nobody(site, tmp_path, capsys):
    path = tmp_path / "demo.json"
    path.write_text(json.dumps(ask({"prompt": PROMPT})))
    for options in ([], ["--labels"]):
        assert main(["compare", str(path), str(path), *options]) == 0
        assert "le → basket" in capsys.readouterr().out
    assert site.asked == []


def test_of_the_demo_s_graph_nothing_is_said_to_be_missing(site, capsys, tmp_path):
    with serving() as server:
        line = ["graph", PROMPT, "--labels", "-o", str(tmp_path / "demo.json"), "--url", server.url]
        assert main(line) == 0
    said = capsys.readouterr()
    assert "le → basket" in said.out
    assert "labels: " not in said.err
    assert site.asked == []


def test_the_key_is_sent_and_never_shown(site, path, document, monkeypatch, capsys):
    explain_all(site, document)
    monkeypatch.setenv("NEURONPEDIA_API_KEY", KEY)
    assert main(["compare", str(path), str(path), "--labels"]) == 0
    assert set(site.keys) == {KEY}
    site.answers = 0
    monkeypatch.setenv("XDG_CACHE_HOME", str(path.parent / "other"))
    assert main(["compare", str(path), str(path), "--labels"]) == 0
    said = capsys.readouterr()
    assert "labels: " in said.err
    assert KEY not in said.out + said.err


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("FEATURE_LABELS", "maybe", "FEATURE_LABELS is 'maybe'"),
        (
            "NEURONPEDIA_URL",
            "neuronpedia.org",
            "NEURONPEDIA_URL: 'neuronpedia.org' is no http(s) URL",
        ),
    ],
)
def test_a_setting_that_is_wrong_is_named(site, path, monkeypatch, capsys, name, value, words):
    monkeypatch.setenv(name, value)
    options = ["--labels"] if name != "FEATURE_LABELS" else []
    assert main(["compare", str(path), str(path), *options]) == 2
    assert words in capsys.readouterr().err

"""intervene and contrast from the command line: their options, a graph's groups, what is shown."""

import shlex

import orjson
import pytest
from rich.console import Console

from remote import summary
from remote.arguments import parse
from remote.graph_groups import groups_of
from schemas import parse_request


def node(node_id, kind="cross layer transcoder"):
    return {"node_id": node_id, "feature_type": kind, "ctx_idx": 1}


GRAPH = {
    "nodes": [node("1_20_3"), node("2_7_3"), node("E_9_1", "embedding"), node("5_4_3", "logit")],
    "qParams": {
        "supernodes": [
            ["say it", "1_20_3", "5_4_3"],
            ["tokens", "E_9_1"],
            ["say it", "2_7_3", "gone"],
        ]
    },
}
GROUPS = {
    "say it": [{"layer": 1, "index": 20, "position": 3}],
    "say it 2": [{"layer": 2, "index": 7, "position": 3}],
}


def test_the_groups_of_a_graph_are_its_supernodes_features(tmp_path):
    assert groups_of(GRAPH) == GROUPS
    path = tmp_path / "graph.json"
    path.write_bytes(orjson.dumps(GRAPH))
    line = f"intervene a --groups-of {path} --group own=0:1:2 --experiment 'say it*0,own*2'"
    job = parse(shlex.split(line)).job
    assert list(job["groups"]) == ["say it", "say it 2", "own"]
    parse_request(job)


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ([], "it is no graph document"),
        ({"nodes": [{"node_id": 3}]}, "it is no graph document"),
        ({"nodes": [node("1_2_3")]}, "it has no groups of features"),
        (
            {"nodes": [node("1_cro_2_3")], "qParams": {"supernodes": [["a", "1_cro_2_3"]]}},
            "'1_cro_2_3' is no feature of a transcoder set",
        ),
    ],
)
def test_a_file_without_such_groups_is_refused(document, said):
    with pytest.raises(ValueError, match=said):
        groups_of(document)


def outcome(*top, groups=None):
    return {
        "top": [{"token": token, "token_id": 1, "probability": p} for token, p in top],
        "targets": [],
        "groups": groups or {},
    }


def test_an_intervention_is_shown_by_experiment(capsys):
    output = {
        "baseline": outcome((" a", 0.5), ("\x1b[1m", 0.25), groups={"[red]x": 1.0, "y": None}),
        "experiments": [outcome((" b", 0.75), groups={"[red]x": -0.505}), outcome()],
    }
    summary.print_output(Console(width=120, highlight=False, emoji=False), output)
    said = capsys.readouterr().out
    assert '" a" 0.5000' in said
    assert '" b" 0.7500' in said
    assert "[red]x" in said
    assert "-50%" in said
    assert "\x1b" not in said

"""intervene and contrast from the command line: their options, a graph's groups, what is shown."""

import gzip
import shlex

import orjson
import pytest
from rich.console import Console

from remote.command_line.arguments import parse
from remote.graphs.groups import groups_of
from remote.terminal import summary
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


def test_the_groups_of_a_gzipped_graph_are_read_too(tmp_path):
    path = tmp_path / "graph.json.gz"
    path.write_bytes(gzip.compress(orjson.dumps(GRAPH)))
    job = parse(["intervene", "a", "--groups-of", str(path), "--experiment", "say it*0"]).job
    assert list(job["groups"]) == ["say it", "say it 2"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"PK\x03\x04\x00\xff", "it is circuit-tracer's own file of a graph, and this reads JSON"),
        (b"\x1f\x8b\x00\xff", "it is not a whole gzipped file"),
        (gzip.compress(b"[]" * 5000, mtime=0)[:20], "it is not a whole gzipped file"),
    ],
)
@pytest.mark.parametrize(
    "line", ["intervene a --groups-of F --experiment a*0", "graph --messages F"]
)
def test_a_file_of_another_kind_is_refused_with_what_it_is(tmp_path, capsys, content, said, line):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(SystemExit):
        parse([str(path) if word == "F" else word for word in line.split()])
    error = capsys.readouterr().err
    assert said in error
    assert "UTF-8" not in error


def test_an_experiment_takes_names_with_any_signs():
    names = ['"," → " la"', "a=b", "2*3", "x, y"]
    text = ",".join(f"{name}*-0.5" for name in names)
    line = ["intervene", "a", "--experiment", text, "--experiment", "a=1,b=2", "--group", "g=1:2:3"]
    first, second = parse(line).job["experiments"]
    assert first == [{"group": name, "scale": -0.5} for name in names]
    assert second == [{"group": "a", "value": 1}, {"group": "b", "value": 2}]


@pytest.mark.parametrize("text", ["", ",", "a*0,", "a*0,,", "a", "a,b", "a:0,b*2", "a*0,5"])
def test_what_is_no_experiment_is_refused(text, capsys):
    with pytest.raises(SystemExit):
        parse(["intervene", "a", f"--experiment={text}", "--group", "a=1:2:3"])
    assert "is not GROUP*SCALE or GROUP=VALUE" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ([], "it is no graph document"),
        ({"nodes": [{"node_id": 3}]}, "it is no graph document"),
        ({"nodes": [node("1_2_3")]}, "it has no groups of features"),
        *(
            (
                {"nodes": [node(odd)], "qParams": {"supernodes": [["a", odd]]}},
                f"'{odd}' is no feature",
            )
            for odd in ("1_sae_2_3", "1_2", "1_cro_lor_2_3", "cro_1_2_3", "1_2_3_4", "1_-1_3")
        ),
    ],
)
def test_a_file_without_such_groups_is_refused(document, said):
    with pytest.raises(ValueError, match=said):
        groups_of(document)


def test_the_groups_of_a_complete_graph_name_the_kinds_of_their_features():
    ids = ["1_cro_20_3", "1_lor_20_3", "2_error_attn_3"]
    types = ["cross layer transcoder", "lorsa", "lorsa error"]
    document = {
        "nodes": [node(*each) for each in zip(ids, types, strict=True)],
        "qParams": {"supernodes": [["a", *ids]]},
    }
    groups = groups_of(document)
    place = {"layer": 1, "index": 20, "position": 3}
    assert groups == {"a": [{**place, "kind": "transcoder"}, {**place, "kind": "lorsa"}]}
    parse_request({"action": "intervene", "prompt": "a", "groups": groups, "experiments": [[]]})


def test_a_group_s_features_may_have_kinds():
    line = "intervene a --group b=lorsa:1:105:4,transcoder:2:157:4,0:1:2 --experiment b*0"
    job = parse(shlex.split(line)).job
    assert job["groups"]["b"] == [
        {"layer": 1, "index": 105, "position": 4, "kind": "lorsa"},
        {"layer": 2, "index": 157, "position": 4, "kind": "transcoder"},
        {"layer": 0, "index": 1, "position": 2},
    ]
    parse_request(job)


def contrasted(**kind):
    likeliest = {"token": " a", "token_id": 1, "probability": 0.5}
    feature = {"layer": 1, "index": 105, "activation": 0.25, "other_activation": 2.0}
    steered = {"layer": 1, "index": 105, "token_active_position": 4, "steer_position": 4}
    return {
        "prediction": likeliest,
        "other_prediction": {**likeliest, "token": " b", "token_id": 2},
        "position": 4,
        "other_position": 4,
        "features": [{**feature, "kind": "lorsa" if kind else "transcoder", "effect": 1.5}],
        "steer": [{**steered, **kind, "delta": 7.75}, {**steered, **kind, "ablate": True}],
    }


@pytest.mark.parametrize("kind", ["lorsa", "transcoder", None])
def test_a_contrast_s_options_can_be_given_to_a_steer(kind, capsys):
    output = contrasted(**({"kind": kind} if kind else {}))
    summary.print_output(Console(width=160, highlight=False, emoji=False), output)
    said = capsys.readouterr().out
    [options] = [text for text in said.splitlines() if text.startswith("steer")]
    features = parse(["steer", "hello", *shlex.split(options.removeprefix("steer"))]).job[
        "features"
    ]
    assert [feature.get("kind") for feature in features] == [kind, kind]
    assert [feature.get("delta") for feature in features] == [7.75, None]
    assert ("kind" in said) is (kind is not None)


def outcome(*top, groups=None):
    return {
        "top": [{"token": token, "token_id": 1, "probability": p} for token, p in top],
        "targets": [],
        "groups": groups or {},
    }


def test_an_experiment_for_each_group_has_this_one_off(tmp_path):
    path = tmp_path / "graph.json"
    path.write_bytes(orjson.dumps(GRAPH))
    line = f"intervene a --groups-of {path} --experiment 'say it=2' --each-off"
    job = parse(shlex.split(line)).job
    assert job["experiments"] == [
        [{"group": "say it", "value": 2.0}],
        [{"group": "say it", "scale": 0.0}],
        [{"group": "say it 2", "scale": 0.0}],
    ]
    parse_request(job)


def test_an_intervention_without_an_experiment_is_told_how_to_ask_for_one(capsys):
    with pytest.raises(SystemExit):
        parse(shlex.split("intervene a --group b=1:2:3"))
    assert "--experiment or --each-off" in capsys.readouterr().err


def test_an_intervention_is_shown_by_experiment(capsys):
    output = {
        "baseline": outcome((" a", 0.5), ("\x1b[1m", 0.25), groups={"[red]x": 1.0, "y": None}),
        "experiments": [outcome((" b", 0.75), groups={"[red]x": -0.505}), outcome()],
    }
    asked = [[{"group": "[red]x", "scale": 0}, {"group": "y", "value": 1.5}], []]
    console = Console(width=120, highlight=False, emoji=False)
    summary.print_output(console, output, experiments=asked)
    experiments, activations = capsys.readouterr().out.split("Activations")
    assert [row.split() for row in experiments.splitlines()[3:6]] == [
        ["nothing", '"', 'a"', "0.5000"],
        ["1", "[red]x", "off,", "y", "=", "1.5", '"', 'b"', "0.7500"],
        ["2", "nothing"],
    ]
    assert [row.split() for row in activations.splitlines()[1:4]] == [
        ["group", "1", "2"],
        ["[red]x", "-50", "-"],
        ["y", "-", "-"],
    ]


def test_many_experiments_are_shown_in_80_columns(capsys):
    """The numbers of none are cut."""
    name = "a group with a name that is very much longer than its column"
    output = {
        "baseline": outcome((" a", 0.5), groups={name: 1.0}),
        "experiments": [outcome((" b", 0.25), groups={name: n / 100}) for n in range(64)],
    }
    summary.print_output(Console(width=80, highlight=False, emoji=False), output)
    said = capsys.readouterr().out
    assert said.count("0.2500") == 64
    rows = [row.split()[-8:] for row in said.splitlines() if row.startswith("a group")]
    assert [share for row in rows for share in row] == [str(n) for n in range(64)]


def test_control_characters_of_an_intervention_are_shown_and_not_obeyed(capsys):
    output = {
        "baseline": outcome(("\x1b[1m", 0.25), groups={"\x1b": 1.0}),
        "experiments": [outcome(("\x9b", 0.75), groups={})],
    }
    summary.print_output(Console(width=120, highlight=False, emoji=False), output)
    said = capsys.readouterr().out
    assert "\\x1b[1m" in said
    assert not {"\x1b", "\x9b"} & set(said)

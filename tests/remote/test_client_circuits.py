"""intervene and contrast from the command line: their options, a graph's groups, what is shown."""

import shlex

import orjson
import pytest
from rich.console import Console

from remote import summary
from remote.arguments import parse
from remote.graph_groups import groups_of
from schemas import parse_request


def test_an_intervention_s_options_become_the_job_s_fields():
    line = "intervene hello --group 'a b=1:2:3, 4:5:6' --group c=0:1:2 --experiment 'a b*-0.5,c=3'"
    line += " --experiment c*0 --target ' x' --constrained-layers 0-3 --no-freeze-attention"
    job = parse(shlex.split(line + " --top-k 2")).job
    assert job == {
        "action": "intervene",
        "prompt": "hello",
        "groups": {
            "a b": [
                {"layer": 1, "index": 2, "position": 3},
                {"layer": 4, "index": 5, "position": 6},
            ],
            "c": [{"layer": 0, "index": 1, "position": 2}],
        },
        "experiments": [
            [{"group": "a b", "scale": -0.5}, {"group": "c", "value": 3.0}],
            [{"group": "c", "scale": 0.0}],
        ],
        "targets": [" x"],
        "constrained_layers": [0, 3],
        "freeze_attention": False,
        "top_k": 2,
    }
    parse_request(job)
    held = parse(
        shlex.split("intervene a --group b=1:1:1 --experiment b*0 --constrained-layers all")
    )
    assert held.job["constrained_layers"] == "all"


def test_a_contrast_s_options_become_the_job_s_fields():
    line = "contrast 'joue au' 'juega al' --position 3 --other-position 2 --top-k 5 --n-steer 1"
    job = parse(shlex.split(line + " --strength 2.5")).job
    assert job == {
        "action": "contrast",
        "prompt": "joue au",
        "other_prompt": "juega al",
        "position": 3,
        "other_position": 2,
        "top_k": 5,
        "n_steer": 1,
        "strength": 2.5,
    }
    parse_request(job)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--experiment a*0", "name features with --group or --groups-of"),
        ("--group a=1:2 --experiment a*0", "is not NAME=LAYER:INDEX:POSITION"),
        ("--group =1:2:3 --experiment a*0", "is not NAME=LAYER:INDEX:POSITION"),
        ("--group a=1:2:3 --experiment a", "is not GROUP*SCALE or GROUP=VALUE"),
        ("--group a=1:2:3 --experiment a*x", "is not GROUP*SCALE or GROUP=VALUE"),
        ("--group a=1:2:3 --experiment a*0 --constrained-layers 3", "is not all or FIRST-LAST"),
        ("--groups-of none.json --experiment a*0", "none.json: No such file"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_form_it_should_have(options, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(shlex.split(f"intervene hello {options}"))
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


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

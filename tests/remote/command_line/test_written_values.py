"""Features, groups, experiments and targets as they are written on the command line."""

import json
import re
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client import main
from remote.command_line.arguments import parse
from schemas import RequestedDifference, RequestedFeature, SteerFeature, parse_request

positions = st.integers(0, 10**6)


@given(positions, positions, positions, st.sampled_from([None, "lorsa", "transcoder"]))
def test_a_target_feature_is_read_as_it_is_written(layer, index, position, kind):
    text = ":".join(str(part) for part in (layer, index, position, kind) if part is not None)
    job = parse(["graph", "a", "--attribution-feature", text]).job
    [target] = parse_request(job).attribution_targets
    assert target == RequestedFeature(
        layer=layer, index=index, position=position, kind=kind or "transcoder"
    )


tokens = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(
    lambda token: not token.startswith(("-", "["))
)


@given(st.lists(tokens, min_size=1, max_size=3), st.lists(tokens, min_size=1, max_size=3))
def test_a_difference_is_read_as_it_is_written(plus, minus):
    sides = [side[0] if len(side) == 1 else json.dumps(side) for side in (plus, minus)]
    job = parse(["graph", "a", "--attribution-difference", *sides]).job
    [target] = parse_request(job).attribution_targets
    assert target == RequestedDifference(plus=plus, minus=minus)


@pytest.mark.parametrize("feature", ["", "1", "1:2", "1:2:x", "-1:2:3", "1:2:3:mlp", "1:2:3=0"])
def test_a_target_feature_that_is_not_one_is_explained(feature, capsys):
    with pytest.raises(SystemExit) as exited:
        parse(["graph", "a", f"--attribution-feature={feature}"])
    assert exited.value.code == 2
    assert "LAYER:INDEX:POSITION" in capsys.readouterr().err


deltas = st.floats(allow_nan=False, allow_infinity=False)


kinds = st.sampled_from([None, "lorsa", "transcoder"])


@given(
    kinds,
    positions,
    positions,
    positions,
    st.none() | positions | st.just("new"),
    st.none() | deltas,
)
def test_a_feature_is_read_as_it_is_written(kind, layer, index, read, changed, delta):
    of_kind = f"{kind}:" if kind else ""
    at = "" if changed is None else f"@{changed}"
    change = "0" if delta is None else f"{delta:+}"
    job = parse(["steer", "a", "--feature", f"{of_kind}{layer}:{index}:{read}{at}={change}"]).job
    [feature] = parse_request(job).features
    assert feature == SteerFeature(
        layer=layer,
        index=index,
        kind=kind,
        token_active_position=read,
        steer_position=None if changed == "new" else read if changed is None else changed,
        steer_generated_tokens=changed == "new",
        ablate=delta is None,
        delta=delta,
    )


@pytest.mark.parametrize(
    "feature",
    [
        "2:157:4",
        "2:157=0",
        "2:157:4=10",
        "2:157:4@x=0",
        "a:1:2=0",
        "1:2:3=+",
        "1:2:3=+1e",
        "sae:1:2:3=0",
    ],
)
def test_a_feature_written_otherwise_is_refused_with_the_form_it_has_to_have(feature, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["steer", "a", "--feature", feature])
    assert caught.value.code == 2
    assert "LAYER:INDEX:POSITION=CHANGE" in capsys.readouterr().err


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


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("steer a --feature 2,157,4", "2:157:4=0, which ablates it?"),
        ("steer a --feature 2:157:4", "2:157:4=0, which ablates it?"),
        ("steer a --feature 2:157:4=10.5", "2:157:4=+10.5?"),
        ("steer a --feature 2/157/4=-3", "2:157:4=-3?"),
        ("steer a --feature 2_lor_157_4=0.0", "lorsa:2:157:4=0?"),
        ("graph a --attribution-feature 2_157_4", "2:157:4?"),
        ("graph a --attribution-feature lorsa:2:157:4", "2:157:4:lorsa?"),
        ("intervene a --experiment b*0 --group French=2,157,4,1,120,4", "French=2:157:4,1:120:4?"),
        ("intervene a --experiment b*0 --group 2:157:4", "NAME=2:157:4?"),
        ("intervene a --experiment French:0", "French*0?"),
        ("intervene a --experiment French", "French*0, which turns it off?"),
        ("intervene a --experiment French*off", "French*0, which turns it off?"),
        ("intervene a --experiment b*0 --constrained-layers [0,3]", "0-3?"),
        ("intervene a --experiment b*0 --constrained-layers 3", "3-3?"),
    ],
)
def test_a_value_of_another_form_is_answered_with_what_was_meant(line, meant, capsys):
    with pytest.raises(SystemExit):
        parse(shlex.split(line))
    assert f"; did you mean {meant}\n" in capsys.readouterr().err


def test_what_is_suggested_is_accepted(capsys):
    for text in ("2,157,4", "2/157/4=-3", "2_lor_157_4=0", "2:157:4=10"):
        with pytest.raises(SystemExit):
            parse(["steer", "a", "--feature", text])
        suggested = re.search(r"did you mean ([^ ,?]+)", capsys.readouterr().err)[1]
        assert parse(["steer", "a", "--feature", suggested]).job["features"]


def test_a_decimal_comma_is_told(capsys):
    with pytest.raises(SystemExit):
        parse(["intervene", "a", "--group", "b=1:1:1", "--experiment", "b*0,5"])
    assert "a decimal number takes a point, as in 0.5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('[{"role": "user",}]', "chat.json is no JSON: line 1, column 18: a comma stands before"),
        ('{"prompt": "a"}', "chat.json has no list of messages; write [{"),
        ('"hello"', "chat.json has no list of messages; write [{"),
    ],
)
def test_a_file_of_messages_that_has_none_is_explained(content, said, tmp_path, capsys):
    path = tmp_path / "chat.json"
    path.write_text(content)
    with pytest.raises(SystemExit):
        parse(["forward-pass", "--messages", str(path)])
    assert said in capsys.readouterr().err


def test_messages_on_the_command_line_belong_into_a_file(capsys):
    with pytest.raises(SystemExit):
        parse(["forward-pass", "--messages", '[{"role": "user", "content": "a"}]'])
    assert "it takes the name of a file, and this is JSON" in capsys.readouterr().err


@pytest.mark.parametrize("port", ["x", "-1", "65536", "99999", "1.5", "٣"])
def test_a_port_that_is_none_is_refused_with_the_range(port, capsys):
    with pytest.raises(SystemExit):
        parse(["view", "a.json", f"--port={port}"])
    assert "is no port; it is a number from 0 to 65535" in capsys.readouterr().err

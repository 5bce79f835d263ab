"""Features, groups, experiments and targets as they are written on the command line."""

import json
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client import main
from remote.arguments import parse
from schemas import SteerFeature, TargetDifference, TargetFeature, parse_request

positions = st.integers(0, 10**6)


@given(positions, positions, positions, st.sampled_from([None, "lorsa", "transcoder"]))
def test_a_target_feature_is_read_as_it_is_written(layer, index, position, kind):
    text = ":".join(str(part) for part in (layer, index, position, kind) if part is not None)
    job = parse(["graph", "a", "--attribution-feature", text]).job
    [target] = parse_request(job).attribution_targets
    assert target == TargetFeature(
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
    assert target == TargetDifference(plus=plus, minus=minus)


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

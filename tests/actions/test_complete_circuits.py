"""intervene and contrast on complete replacement models: the demo's own, and a random one."""

import itertools

import pytest
import torch

import model_loader
import steering
from attribution.complete import freeze
from demo.language_steer import twins
from errors import InvalidInput, PromptTooLong
from serving.http_docs import EXAMPLES
from tests.support.complete_worker import serving_complete
from tests.support.demo_worker import GRAPH, PROMPT, TOO_LONG, ask
from tests.support.traced_demo import serving_complete_demo

LAST = 4  # position of " au"
KINDS = {"lor": "lorsa", "cro": "transcoder"}
CONTRAST = {"action": "contrast", "prompt": PROMPT, "other_prompt": "Michael Jordan juega al"}


@pytest.fixture(scope="module")
def settings():
    with serving_complete_demo() as served:
        yield served


@pytest.fixture(scope="module")
def nodes(settings):
    """The features of the prompt's whole graph: (layer, kind, index, position)."""
    whole = {"node_threshold": 1, "edge_threshold": 1}
    found = {}
    for node in ask({**GRAPH, **whole}, settings)["nodes"]:
        if node["activation"] is not None:
            layer, kind, index, position = node["node_id"].split("_")
            found[int(layer), KINDS[kind], int(index), int(position)] = node["activation"]
    return found


def feature(layer, kind, index, position):
    return {"layer": layer, "index": index, "position": position, "kind": kind}


@pytest.fixture(scope="module")
def groups(nodes):
    """The strongest features at the last token, by kind."""
    return {
        kind: [
            feature(*place)
            for place in sorted(nodes, key=nodes.get, reverse=True)
            if place[1] == kind and place[3] == LAST
        ][:5]
        for kind in ("lorsa", "transcoder")
    }


EXPERIMENTS = [
    [{"group": "lorsa", "scale": 0}],
    [{"group": "transcoder", "scale": 0}],
    [{"group": "lorsa", "scale": 0}, {"group": "transcoder", "scale": -1}],
    [{"group": "lorsa", "scale": 1}, {"group": "transcoder", "scale": 1}],
    [{"group": "lorsa", "value": 2.5}],
]


def intervene(settings, groups, experiments=EXPERIMENTS, **fields):
    body = {"action": "intervene", "prompt": PROMPT, "groups": groups, "experiments": experiments}
    return ask({**body, "targets": [" basket", " baloncesto"], "top_k": 4, **fields}, settings)


def steered(settings, changes, **fields):
    """The likeliest tokens after the prompt that a steer by these changes has."""
    features = [
        {
            "layer": each["layer"], "index": each["index"], "kind": each["kind"],
            "token_active_position": each["position"], "steer_position": each["position"],
            **change,
        }
        for each, change in changes
    ]  # fmt: skip
    body = {"action": "steer", "prompt": PROMPT, "features": features, "n_tokens": 1, "top_k": 4}
    return ask({**body, **fields}, settings)["STEERED_LOGITS_BY_TOKEN"][LAST - 1][1]


@pytest.mark.parametrize("frozen", [False, True], ids=["free", "attention frozen"])
def test_groups_that_are_off_or_set_predict_what_a_steer_predicts(frozen, settings, groups, nodes):
    rows = intervene(settings, groups, freeze_attention=frozen)["experiments"]
    off = [(each, {"ablate": True}) for each in groups["lorsa"]]
    reversed_too = [
        (each, {"delta": -2 * nodes[each["layer"], "transcoder", each["index"], LAST]})
        for each in groups["transcoder"]
    ]
    to_value = [
        (each, {"delta": 2.5 - nodes[each["layer"], "lorsa", each["index"], LAST]})
        for each in groups["lorsa"]
    ]
    for row, changes in ((0, off), (2, [*off, *reversed_too]), (4, to_value)):
        expected = steered(settings, changes, freeze_attention=frozen)
        found = [[top["token"], top["probability"]] for top in rows[row]["top"]]
        assert [token for token, _ in found] == [token for token, _ in expected]
        assert [p for _, p in found] == pytest.approx([p for _, p in expected], abs=1e-5)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"freeze_attention": False},
        {"constrained_layers": [1, 2]},
        {"constrained_layers": "all"},
    ],
    ids=str,
)
def test_a_batch_is_what_each_experiment_is_alone_and_scale_1_changes_nothing(
    fields, settings, groups
):
    output = intervene(settings, groups, **fields)
    baseline, rows = output["baseline"], output["experiments"]
    assert baseline["groups"] == {"lorsa": 1.0, "transcoder": 1.0}
    for row, experiment in zip(rows, EXPERIMENTS, strict=True):
        [alone] = intervene(settings, groups, [experiment], **fields)["experiments"]
        assert_same(row, alone)
    assert_same(rows[3], baseline)
    if fields.get("constrained_layers") != [1, 2]:  # else not all features write
        assert rows[0]["groups"]["lorsa"] == 0
        assert rows[2]["groups"] == pytest.approx({"lorsa": 0, "transcoder": -1})


def assert_same(row, other):
    for part in ("top", "targets"):
        assert [t["token"] for t in row[part]] == [t["token"] for t in other[part]]
        probabilities = [t["probability"] for t in other[part]]
        assert [t["probability"] for t in row[part]] == pytest.approx(probabilities, abs=1e-5)
    assert row["groups"] == pytest.approx(other["groups"], abs=1e-4)


def test_what_is_held_makes_a_difference(settings, groups):
    held = [{}, {"freeze_attention": False}, {"constrained_layers": [2, 3]},
            {"constrained_layers": "all"}]  # fmt: skip
    logits = [
        intervene(settings, groups, [[{"group": "lorsa", "value": 6}]], **fields)["experiments"][0][
            "targets"
        ][0]["logit"]
        for fields in held
    ]
    assert all(abs(one - other) > 1e-3 for one, other in itertools.combinations(logits, 2))


@pytest.mark.parametrize("kind", ["lorsa", "transcoder"])
def test_without_kind_the_feature_meant_is_the_one_that_is_active(kind, settings, nodes):
    other = "transcoder" if kind == "lorsa" else "lorsa"
    layer, _, index, position = next(
        place
        for place in nodes
        if place[1] == kind and (place[0], other, *place[2:]) not in nodes and place[3] == LAST
        and place[2] < 480
    )  # fmt: skip
    named = feature(layer, kind, index, position)
    experiments = [[{"group": "a", "value": 9}]]
    with_kind = intervene(settings, {"a": [named]}, experiments)
    assert intervene(settings, {"a": [{**named, "kind": None}]}, experiments) == with_kind
    twice = intervene(settings, {"a": [named, {**named, "kind": None}]}, experiments)
    assert_same(twice["experiments"][0], with_kind["experiments"][0])
    assert twice["baseline"]["groups"] == {"a": 1.0}


@pytest.mark.parametrize("active", [True, False], ids=["both", "neither"])
def test_with_both_or_neither_active_kind_has_to_be_given(active, tmp_path_factory):
    with serving_complete(tmp_path_factory.mktemp("random")) as (settings, loaded):
        ids = loaded.tokenizer.encode(PROMPT)
        places = list(itertools.product(range(8), range(5), range(192)))
        values = dict(
            zip(places, steering.feature_activations(loaded.model, ids, places), strict=True)
        )
        sublayer, position, index = next(
            (sublayer, position, index)
            for sublayer, position, index in places
            if sublayer % 2 == 0
            and (values[sublayer, position, index] != 0) is active
            and (values[sublayer + 1, position, index] != 0) is active
        )
        site = {"layer": sublayer // 2, "index": index, "position": position}
        words = "both are" if active else "neither is"
        with pytest.raises(InvalidInput) as raised:
            intervene(settings, {"a b": [site]}, [[]])
        assert "groups.a b[0].kind is needed" in str(raised.value)
        assert f"{words} active at its position" in str(raised.value)
        for kind in ("lorsa", "transcoder"):
            intervene(settings, {"a": [{**site, "kind": kind}]}, [[]])


@pytest.mark.parametrize(
    ("site", "fields", "words"),
    [
        ({"layer": 4}, {}, "groups.a[0].layer is 4, the model has 4 layers (0 to 3)"),
        ({"index": 1024}, {}, "groups.a[0].index is 1024, the model has 1024 features in layer 2"),
        ({"index": 480, "kind": "lorsa"}, {}, "groups.a[0].index is 480, the model has 480"),
        ({"position": 5}, {}, "groups.a[0].position is 5, the prompt has 5 tokens"),
        ({}, {"constrained_layers": [0, 4]}, "constrained_layers ends at 4, the model has 4"),
    ],
)
def test_what_the_model_or_the_prompt_has_not_is_refused_by_name(site, fields, words, settings):
    named = {"layer": 2, "index": 3, "position": 3, **site}
    with pytest.raises(InvalidInput) as raised:
        intervene(settings, {"a": [named]}, [[]], **fields)
    assert words in str(raised.value)


def test_the_documented_contrast_is_answered(settings):
    output = ask({"action": "contrast", **EXAMPLES["contrast"]}, settings)
    assert output["prediction"]["token"] == " basket"
    assert output["other_prediction"]["token"] == " baloncesto"


def test_every_right_french_answer_is_turned_into_the_spanish_one(settings):
    n_right = 0
    for french, spanish in twins():
        contrast = {**CONTRAST, "prompt": french.prompt, "other_prompt": spanish.prompt}
        output = ask(contrast, settings)
        if output["prediction"]["token"] != french.answer:
            continue
        n_right += 1
        steer = {"action": "steer", "prompt": french.prompt, "features": output["steer"]}
        text = ask({**steer, "n_tokens": 1, "steered_output_only": True}, settings)
        assert text["STEERED_GENERATION"] == french.prompt + spanish.answer
        assert text["ignored_features"] == []
    assert n_right == 31


def test_features_of_both_kinds_are_ranked_and_the_steer_names_their_kinds(settings):
    output = ask({**CONTRAST, "top_k": 10_000, "n_steer": 20, "strength": 2}, settings)
    effects = [feature["effect"] for feature in output["features"]]
    assert [abs(effect) for effect in effects] == sorted(map(abs, effects), reverse=True)
    helping = [feature for feature in output["features"] if feature["effect"] > 0]
    raised = [f for f in helping if f["other_activation"] > f["activation"]][:20]
    lowered = [f for f in helping if f["other_activation"] < f["activation"]][:20]
    chosen = [(f["layer"], f["kind"], f["index"]) for f in output["steer"]]
    assert chosen == [(f["layer"], f["kind"], f["index"]) for f in [*raised, *lowered]]
    assert {kind for _, kind, _ in chosen} == {"lorsa", "transcoder"}
    body = {"action": "steer", "prompt": PROMPT, "features": output["steer"], "n_tokens": 1}
    text = ask({**body, "steered_output_only": True}, settings)["STEERED_GENERATION"]
    assert text == PROMPT + output["other_prediction"]["token"]
    for steer, feature_ in zip(output["steer"], [*raised, *lowered], strict=True):
        if not steer["ablate"]:
            value = 2 * feature_["other_activation"] - feature_["activation"]
            assert steer["delta"] == pytest.approx(value)


def test_the_activations_are_those_that_a_graph_starts_from(settings):
    loaded = model_loader.get_model(settings)
    local = freeze(loaded.model, torch.tensor(loaded.tokenizer.encode(PROMPT)))
    kinds = ("lorsa", "transcoder")
    active = {
        (sublayer // 2, kinds[sublayer % 2], index, position): value
        for (sublayer, position, index), value in zip(
            local.active_features.tolist(), local.activation_values.tolist(), strict=True
        )
    }
    for position in (LAST, 0):
        output = ask({**CONTRAST, "position": position, "top_k": 10_000}, settings)
        found = {
            (f["layer"], f["kind"], f["index"], position): f["activation"]
            for f in output["features"]
            if f["activation"]
        }
        assert found == pytest.approx(
            {place: value for place, value in active.items() if place[3] == position}, abs=1e-4
        )


def test_the_effect_is_what_a_small_change_makes_of_the_difference_with_layers_held(settings):
    """Of the last layer's features, whose change reaches the logits directly."""
    output = ask({**CONTRAST, "top_k": 10_000}, settings)
    loaded = model_loader.get_model(settings)
    tokens = [output[name]["token_id"] for name in ("other_prediction", "prediction")]
    of_last = [f for f in output["features"] if f["layer"] == 3 and f["kind"] == "transcoder"][:8]
    experiments = [{(7, LAST, f["index"]): f["other_activation"]} for f in of_last]
    found = steering.intervene(
        loaded.model, loaded.tokenizer.encode(PROMPT), [next(iter(e)) for e in experiments],
        experiments, steering.Frozen(range(4)),
    )  # fmt: skip
    difference = found.logits[:, tokens[0]] - found.logits[:, tokens[1]]
    for n, f in enumerate(of_last):
        assert float(difference[n + 1] - difference[0]) == pytest.approx(f["effect"], abs=1e-4)


def test_the_first_position_can_be_compared_and_a_prompt_has_to_fit(settings):
    output = ask({**CONTRAST, "position": 0, "other_position": 1}, settings)
    assert output["position"] == 0
    assert output["features"]
    assert {f["steer_position"] for f in output["steer"]} <= {0}
    with pytest.raises(PromptTooLong, match="other_prompt: the prompt has"):
        ask({**CONTRAST, "other_prompt": TOO_LONG}, settings)

"""steer on a complete replacement model: features of both kinds, named or told by activity."""

import itertools
import threading

import pytest

import model_loader
import steering
from actions.answer import answer
from errors import Cancelled, InvalidInput
from prompting.token_text import joined
from steering import Intervention, Options
from tests.support.complete_cases import CASES, write_case
from tests.support.complete_worker import N_CTX, N_LAYERS, serving_complete
from tests.support.demo_worker import FORWARD, GRAPH, PROMPT, ask, demo_settings

TOKENS = ["Michael", " Jordan", " joue", " au"]
LAST = 4  # position of " au"; the tokenizer itself puts a BOS in front
N_FEATURES = 192
KINDS = {"lor": "lorsa", "cro": "transcoder"}


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    with serving_complete(tmp_path_factory.mktemp("complete")) as served:
        yield served


@pytest.fixture(scope="module")
def loaded(complete):
    return complete[1]


@pytest.fixture(scope="module")
def active(complete):
    """By layer, index and position, the kinds that are active there."""
    whole = {"node_threshold": 1, "edge_threshold": 1}
    found: dict[tuple[int, int, int], set[str]] = {}
    for node in ask({**GRAPH, **whole}, complete[0])["nodes"]:
        if node["activation"] is not None:
            layer, kind, index, position = node["node_id"].split("_")
            found.setdefault((int(layer), int(index), int(position)), set()).add(KINDS[kind])
    return found


@pytest.fixture
def only(active):
    """A function: a feature of which only this kind is active at the last token."""

    def named(kind):
        layer, index, position = next(
            at for at, kinds in sorted(active.items()) if kinds == {kind} and at[2] == LAST
        )
        return {"layer": layer, "index": index, "token_active_position": position}

    return named


@pytest.fixture
def steer(complete):
    def steered(features, **fields):
        body = {"action": "steer", "prompt": PROMPT, "features": features, "n_tokens": 4, **fields}
        return ask(body, complete[0])

    return steered


def changed(feature, **fields):
    return {"steer_position": LAST, "delta": 20.0, **feature, **fields}


def expected(loaded, layer, kind, index, delta, position=LAST):
    """What steering itself predicts, the feature named by its sublayer."""
    ids = loaded.tokenizer.encode(PROMPT)
    sublayer = 2 * layer + (kind == "transcoder")
    [activation] = steering.feature_activations(loaded.model, ids, [(sublayer, LAST, index)])
    intervention = Intervention(sublayer, index, position, activation + delta)
    options = Options(n_tokens=4, top_k=5, stop_ids=loaded.stop_ids)
    _, generation = steering.generate_both(loaded.model, ids, [intervention], options)
    return [
        [loaded.token_text.single(token), pytest.approx(probability, abs=1e-6)]
        for token, probability in zip(
            generation.top_ids[0].tolist(), generation.top_probs[0].tolist(), strict=True
        )
    ]


@pytest.mark.parametrize("kind", ["lorsa", "transcoder"])
def test_without_kind_the_feature_meant_is_the_one_that_is_active(kind, only, steer, loaded):
    feature = changed(only(kind))
    output = steer([feature])
    assert output == steer([{**feature, "kind": kind}])
    assert output == steer([{**feature, "kind": None}])
    first = output["STEERED_LOGITS_BY_TOKEN"][LAST - 1][1]
    assert first == expected(loaded, feature["layer"], kind, feature["index"], 20.0)
    assert first != output["DEFAULT_LOGITS_BY_TOKEN"][LAST - 1][1]


def test_kind_is_what_counts_where_it_is_given(only, steer, loaded):
    feature = changed(only("lorsa"))
    other = steer([{**feature, "kind": "transcoder"}])["STEERED_LOGITS_BY_TOKEN"][LAST - 1][1]
    assert other == expected(loaded, feature["layer"], "transcoder", feature["index"], 20.0)
    assert other != steer([feature])["STEERED_LOGITS_BY_TOKEN"][LAST - 1][1]


@pytest.mark.parametrize(
    ("kinds", "words"), [({"lorsa", "transcoder"}, "both"), (set(), "neither")]
)
@pytest.mark.parametrize("change", [{"delta": 3.0}, {"delta": None, "ablate": True}])
def test_with_both_or_neither_active_kind_has_to_be_given(
    kinds, words, change, active, only, steer
):
    everything = itertools.product(range(N_LAYERS), range(N_FEATURES), range(LAST + 1))
    layer, index, position = next(at for at in everything if active.get(at, set()) == kinds)
    feature = {"layer": layer, "index": index, "token_active_position": position}
    one_kind = changed(only("lorsa"))
    with pytest.raises(InvalidInput) as raised:
        steer([one_kind, changed(feature, **change)])
    assert "features[1].kind is needed" in str(raised.value)
    assert words in str(raised.value)
    for kind in ("lorsa", "transcoder"):
        steer([one_kind, changed(feature, kind=kind, **change)], n_tokens=1)


def test_features_of_both_kinds_are_steered_together(only, steer):
    lorsa, transcoder = changed(only("lorsa")), changed(only("transcoder"))
    first = [
        steer(features)["STEERED_LOGITS_BY_TOKEN"][LAST - 1][1]
        for features in ([lorsa, transcoder], [lorsa], [transcoder])
    ]
    assert first[0] != first[1]
    assert first[0] != first[2]


def test_every_position_can_be_steered_the_first_too(steer):
    feature = {"layer": 0, "index": 5, "kind": "lorsa", "token_active_position": 0}
    output = steer([{**feature, "steer_position": 0, "delta": 30.0}])
    assert output["ignored_features"] == []
    default, steered = output["DEFAULT_LOGITS_BY_TOKEN"], output["STEERED_LOGITS_BY_TOKEN"]
    assert default[LAST - 1] != steered[LAST - 1]


def test_the_first_prediction_is_the_forward_pass_s(only, steer, complete):
    output = steer([changed(only("lorsa"))])
    salient = ask({**FORWARD, "desired_logit_prob": 1, "max_n_logits": 5}, complete[0])
    assert salient["input_tokens"][1:] == TOKENS
    assert output["DEFAULT_LOGITS_BY_TOKEN"][LAST - 1][1] == [
        [top["token"], top["probability"]] for top in salient["salient_logits"]
    ]


def test_without_a_leading_token_lists_have_an_entry_for_each_token(tmp_path, monkeypatch):
    folders = write_case(tmp_path, CASES["relu-6"])
    settings = demo_settings(model_id=str(folders.model), transcoder_set=str(folders.modules))
    monkeypatch.setattr(model_loader, "_loaded", model_loader.load(settings))
    prompt = CASES["relu-6"].prompt
    feature = {"layer": 1, "index": 7, "kind": "lorsa", "token_active_position": 0}
    features = [{**feature, "steer_position": 0, "delta": 9.0}]
    output = ask({"action": "steer", "prompt": prompt, "features": features}, settings)
    assert output["ignored_features"] == []
    for side in ("DEFAULT", "STEERED"):
        entries = output[f"{side}_LOGITS_BY_TOKEN"]
        assert joined(token for token, _ in entries[:6]) == prompt
        assert joined(token for token, _ in entries) == output[f"{side}_GENERATION"]
        assert [len(top) for _, top in entries] == [0] * 5 + [5] * (len(entries) - 5)
    first = [output[f"{side}_LOGITS_BY_TOKEN"][5] for side in ("DEFAULT", "STEERED")]
    assert first[0] != first[1]


@pytest.mark.parametrize("kind", ["lorsa", "transcoder"])
def test_generated_tokens_are_steered_and_the_prompt_s_prediction_is_not(kind, only, steer):
    feature = changed(only(kind), steer_position=None, steer_generated_tokens=True, delta=40.0)
    output = steer([feature])
    default, steered = output["DEFAULT_LOGITS_BY_TOKEN"], output["STEERED_LOGITS_BY_TOKEN"]
    assert default[LAST - 1] == steered[LAST - 1]
    assert default[LAST] != steered[LAST]


@pytest.mark.parametrize("kind", ["lorsa", "transcoder"])
def test_a_delta_of_zero_changes_nothing(kind, only, steer):
    output = steer([changed(only(kind), delta=0)])
    assert output["STEERED_GENERATION"] == output["DEFAULT_GENERATION"]


def test_frozen_attention_is_the_model_s_own_and_a_lorsa_s_feature_acts_all_the_same(only, steer):
    feature = changed(only("lorsa"), steer_position=1, delta=40.0)
    free, frozen = (
        steer([feature], freeze_attention=freeze)["STEERED_LOGITS_BY_TOKEN"][LAST - 1]
        for freeze in (False, True)
    )
    default = steer([feature])["DEFAULT_LOGITS_BY_TOKEN"][LAST - 1]
    assert len({str(entry) for entry in (free, frozen, default)}) == 3


def test_a_seed_repeats_a_sampled_generation(only, steer):
    features = [changed(only("lorsa")), changed(only("transcoder"), steer_position=1)]
    sampled = [steer(features, temperature=2.0, seed=seed) for seed in (7, 7, 8)]
    assert sampled[0] == sampled[1]
    assert sampled[0]["STEERED_GENERATION"] != sampled[2]["STEERED_GENERATION"]


def test_the_default_side_can_be_skipped(only, steer):
    feature = changed(only("lorsa"))
    both, one = steer([feature]), steer([feature], steered_output_only=True)
    assert one["STEERED_GENERATION"] == both["STEERED_GENERATION"]
    assert one["DEFAULT_GENERATION"] == PROMPT
    assert one["DEFAULT_LOGITS_BY_TOKEN"] == []


def test_without_features_both_sides_are_the_default(steer):
    output = steer([])
    assert output["STEERED_LOGITS_BY_TOKEN"] == output["DEFAULT_LOGITS_BY_TOKEN"]


def test_parts_come_token_by_token_and_stop_when_cancelled(only, steer, complete):
    features = [changed(only("lorsa")), changed(only("transcoder"))]
    body = {"action": "steer", "prompt": PROMPT, "features": features, "n_tokens": 4}
    parts, cancelled = [], threading.Event()
    settings, loaded = complete
    output = answer({**body, "stream": True}, loaded, settings, None, on_part=parts.append)
    assert output.model_dump(mode="json") == steer(features)
    for side in ("default", "steered"):
        mine = [part for part in parts if part.side == side]
        assert [part.position for part in mine] == [*range(5, 5 + len(mine))]
        text = PROMPT + joined(part.token for part in mine)
        assert text == getattr(output, f"{side.upper()}_GENERATION")

    def stop(_part):
        cancelled.set()

    with pytest.raises(Cancelled):
        answer({**body, "stream": True}, loaded, settings, cancelled, on_part=stop)
    assert steer(features) == output.model_dump(mode="json")


@pytest.fixture
def no_model(loaded):
    """A run of the model fails the test."""

    def fail(*_):
        raise AssertionError("the model ran")

    handle = loaded.model.language_model.blocks[0].register_forward_pre_hook(fail)
    yield
    handle.remove()


@pytest.mark.parametrize("kind", [{}, {"kind": "lorsa"}, {"kind": "transcoder"}], ids=str)
@pytest.mark.parametrize(
    ("feature", "fields", "words"),
    [
        ({"layer": 4}, {}, "features[0].layer is 4, the model has 4 layers (0 to 3)"),
        ({"index": 192}, {}, "features[0].index is 192, the model has 192 features in layer 2"),
        ({"token_active_position": 5}, {}, "token_active_position is 5, the prompt has 5 tokens"),
        ({"steer_position": 5}, {}, "features[0].steer_position is 5, the prompt has 5 tokens"),
        ({}, {"n_tokens": N_CTX}, f"model has room for {N_CTX - 5}"),
        ({}, {"top_k": 10**6}, "top_k is 1000000"),
    ],
)
def test_what_the_model_or_the_prompt_has_not_is_refused_before_anything_runs(
    feature, fields, words, kind, steer, no_model
):
    base = {"layer": 2, "index": 0, "token_active_position": 3, "steer_position": 3, "delta": 1.0}
    with pytest.raises(InvalidInput) as raised:
        steer([{**base, **kind, **feature}], **fields)
    assert words in str(raised.value)


def test_another_kind_is_refused_by_name(steer, no_model):
    with pytest.raises(InvalidInput, match=r"features\[0\]\.kind"):
        steer([{**changed({"layer": 0, "index": 0, "token_active_position": 0}), "kind": "sae"}])

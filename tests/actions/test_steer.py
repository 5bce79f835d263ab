"""steer on the demo model: positions, lists, seeds, early ends, formats and refusals."""

import itertools

import pytest

from errors import InvalidInput, NotFinite
from tests.support.demo_worker import FORWARD, GRAPH, PROMPT, ask

TOKENS = ["Michael", " Jordan", " joue", " au"]
LAST = 4  # position of " au"


@pytest.fixture(scope="module")
def strongest():
    """The most influential feature at the last token, as a graph names it."""
    nodes = ask(GRAPH)["nodes"]
    at_last = [
        n for n in nodes if n["feature_type"] == "cross layer transcoder" and n["ctx_idx"] == LAST
    ]
    node = min(at_last, key=lambda n: n["influence"])
    layer, index, position = map(int, node["node_id"].split("_"))
    return {"layer": layer, "index": index, "token_active_position": position}


def steer(features, **fields):
    return ask({"action": "steer", "prompt": PROMPT, "features": features, **fields})


def test_the_default_generation_is_the_model_s(strongest):
    output = steer([{**strongest, "steer_position": LAST, "ablate": True}], n_tokens=1)
    assert output["DEFAULT_GENERATION"] == f"{PROMPT} basket"


def test_a_delta_of_zero_changes_nothing(strongest):
    output = steer([{**strongest, "steer_position": LAST, "delta": 0}], n_tokens=5)
    assert output["STEERED_GENERATION"] == output["DEFAULT_GENERATION"]


def test_ablation_changes_the_predictions_after_the_steered_token_only(strongest):
    output = steer([{**strongest, "steer_position": LAST, "ablate": True}], n_tokens=3)
    default, steered = output["DEFAULT_LOGITS_BY_TOKEN"], output["STEERED_LOGITS_BY_TOKEN"]
    assert default[LAST - 1] != steered[LAST - 1]
    assert default[: LAST - 1] == steered[: LAST - 1]


def test_lists_have_an_entry_for_each_token_and_predictions_from_the_last_of_the_prompt(strongest):
    output = steer([{**strongest, "steer_position": LAST, "ablate": True}], n_tokens=3, top_k=4)
    entries = output["DEFAULT_LOGITS_BY_TOKEN"]
    assert [token for token, _ in entries[:LAST]] == TOKENS
    assert [len(top) for _, top in entries[:LAST]] == [0, 0, 0, 4]
    assert all(len(top) == 4 for _, top in entries[LAST:])
    assert "".join(token for token, _ in entries) == output["DEFAULT_GENERATION"]


def test_the_predictions_after_the_prompt_are_the_forward_pass_s(strongest):
    output = steer([{**strongest, "steer_position": LAST, "ablate": True}], top_k=3)
    salient = ask({**FORWARD, "desired_logit_prob": 1, "max_n_logits": 3})["salient_logits"]
    assert output["DEFAULT_LOGITS_BY_TOKEN"][LAST - 1][1] == [
        [s["token"], pytest.approx(s["probability"], abs=1e-5)] for s in salient
    ]


def test_each_prediction_is_the_next_token_when_greedy(strongest):
    output = steer([{**strongest, "steer_position": LAST, "delta": 1}], n_tokens=6)
    for side in ("DEFAULT", "STEERED"):
        entries = output[f"{side}_LOGITS_BY_TOKEN"][LAST - 1 :]
        for (_, top), (token, _) in itertools.pairwise(entries):
            assert top[0][0] == token


def test_a_generation_that_ends_early_has_whole_lists(strongest):
    """Sentences of the corpus end in EOS, so a long enough generation stops before its bound."""
    output = steer([{**strongest, "steer_position": LAST, "ablate": True}], n_tokens=59)
    for side in ("DEFAULT", "STEERED"):
        entries = output[f"{side}_LOGITS_BY_TOKEN"]
        assert len(entries) < LAST + 59
        assert "".join(token for token, _ in entries) == output[f"{side}_GENERATION"]
        assert all(top for _, top in entries[LAST - 1 :])


def test_sides_that_end_at_different_lengths_have_lists_of_their_own(strongest):
    lengths = set()
    for delta in (20.0, 80.0):
        output = steer([{**strongest, "steer_generated_tokens": True, "delta": delta}], n_tokens=30)
        sides = [len(output[f"{side}_LOGITS_BY_TOKEN"]) for side in ("DEFAULT", "STEERED")]
        lengths.add(tuple(sides))
        for side in ("DEFAULT", "STEERED"):
            text = "".join(token for token, _ in output[f"{side}_LOGITS_BY_TOKEN"])
            assert text == output[f"{side}_GENERATION"]
    assert any(default != steered for default, steered in lengths)


def test_a_seed_repeats_a_sampled_generation_and_other_seeds_differ(strongest):
    feature = {**strongest, "steer_position": LAST, "ablate": True}

    def sampled(seed):
        return steer([feature], temperature=2.0, n_tokens=20, seed=seed)

    assert sampled(7) == sampled(7)
    assert len({sampled(seed)["DEFAULT_GENERATION"] for seed in range(5)}) > 1


def test_features_at_the_leading_token_are_ignored_and_reported(strongest):
    at_bos = {**strongest, "steer_position": 0, "delta": 30.0}
    output = steer([at_bos], n_tokens=8, temperature=1.0, seed=3)
    assert [(f["layer"], f["steer_position"]) for f in output["ignored_features"]] == [
        (strongest["layer"], 0)
    ]
    assert output["STEERED_GENERATION"] == output["DEFAULT_GENERATION"]
    assert output["STEERED_LOGITS_BY_TOKEN"] == output["DEFAULT_LOGITS_BY_TOKEN"]


def test_generated_tokens_can_be_steered_without_touching_the_prompt_s_prediction(strongest):
    output = steer([{**strongest, "steer_generated_tokens": True, "delta": 40.0}], n_tokens=5)
    default, steered = output["DEFAULT_LOGITS_BY_TOKEN"], output["STEERED_LOGITS_BY_TOKEN"]
    assert dict(default[LAST - 1][1]) == pytest.approx(dict(steered[LAST - 1][1]), abs=1e-5)
    assert default[LAST:] != steered[LAST:]


def test_the_default_side_can_be_skipped(strongest):
    feature = {**strongest, "steer_position": LAST, "ablate": True}
    both, one = steer([feature]), steer([feature], steered_output_only=True)
    assert one["STEERED_GENERATION"] == both["STEERED_GENERATION"]
    for (token, top), (same_token, same_top) in zip(
        one["STEERED_LOGITS_BY_TOKEN"], both["STEERED_LOGITS_BY_TOKEN"], strict=True
    ):
        assert token == same_token
        assert dict(top) == pytest.approx(dict(same_top), abs=1e-5)
    assert one["DEFAULT_LOGITS_BY_TOKEN"] == []
    assert one["DEFAULT_GENERATION"] == PROMPT


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"n_tokens": 5, "top_k": 3},
        {"temperature": 1.5, "freq_penalty": 0.5},
        {"temperature": 1.5, "seed": 11, "freeze_attention": True},
        {"messages": [{"role": "user", "content": PROMPT}], "prompt": None},
    ],
)
def test_without_features_both_sides_are_the_default(fields, model_runs):
    output = steer([], **fields)
    n_baseline = len(model_runs)
    assert output["STEERED_GENERATION"] == output["DEFAULT_GENERATION"]
    assert output["STEERED_LOGITS_BY_TOKEN"] == output["DEFAULT_LOGITS_BY_TOKEN"]
    assert output["ignored_features"] == []
    if fields.get("temperature", 0) == 0 or "seed" in fields:
        one = steer([], **fields, steered_output_only=True)
        assert one["DEFAULT_LOGITS_BY_TOKEN"] == []
        assert one["STEERED_GENERATION"] == output["STEERED_GENERATION"]
        assert one["STEERED_LOGITS_BY_TOKEN"] == output["STEERED_LOGITS_BY_TOKEN"]
        assert len(model_runs) == 2 * n_baseline  # one generation serves for both sides


def test_a_baseline_is_the_default_beside_a_steered_text(strongest):
    steered = steer([{**strongest, "steer_position": LAST, "delta": 5.0}], n_tokens=4)
    baseline = steer([], n_tokens=4)
    assert baseline["DEFAULT_GENERATION"] == steered["DEFAULT_GENERATION"]
    for (token, top), (same_token, same_top) in zip(
        baseline["STEERED_LOGITS_BY_TOKEN"], steered["DEFAULT_LOGITS_BY_TOKEN"], strict=True
    ):
        assert token == same_token
        assert dict(top) == pytest.approx(dict(same_top), abs=1e-5)


def test_objects_hold_the_same_as_pairs(strongest):
    features = [{**strongest, "steer_position": LAST, "ablate": True}]
    pairs = steer(features)
    body = {"request_type": "steer", "prompt": PROMPT, "features": features}
    objects = ask(body)["STEERED_LOGITS_BY_TOKEN"]
    assert [
        [entry["token"], [[top["token"], top["prob"]] for top in entry["top_logits"]]]
        for entry in objects
    ] == pairs["STEERED_LOGITS_BY_TOKEN"]


def test_no_predictions_are_listed_when_none_are_wanted(strongest):
    output = steer([{**strongest, "steer_position": LAST, "ablate": True}], top_k=0)
    assert all(top == [] for _, top in output["STEERED_LOGITS_BY_TOKEN"])


@pytest.mark.parametrize(
    ("feature", "fields", "words"),
    [
        ({"layer": 4}, {}, ["features[0].layer is 4", "4 layers (0 to 3)"]),
        ({"index": 1024}, {}, ["features[0].index is 1024", "1024 features"]),
        ({"token_active_position": 5}, {}, ["token_active_position is 5", "5 tokens (0 to 4)"]),
        ({"steer_position": 9}, {}, ["steer_position is 9", "5 tokens (0 to 4)"]),
        ({}, {"top_k": 10**6}, ["top_k is 1000000", "vocabulary has"]),
        ({}, {"n_tokens": 10**6}, ["n_tokens is 1000000", "room for"]),
    ],
)
def test_what_the_model_or_the_prompt_does_not_have_is_refused_with_the_bound(
    feature, fields, words, model_runs
):
    base = {"layer": 0, "index": 0, "token_active_position": 4, "steer_position": 4, "delta": 1.0}
    with pytest.raises(InvalidInput) as raised:
        steer([{**base, **feature}], **fields)
    assert [word for word in words if word not in str(raised.value)] == []
    assert model_runs == []


def test_the_last_feature_of_many_is_checked_before_anything_runs(model_runs):
    base = {"layer": 0, "index": 0, "token_active_position": 4, "steer_position": 4, "delta": 1.0}
    with pytest.raises(InvalidInput, match=r"features\[2\]\.layer is 4"):
        steer([base, {**base, "steer_position": 0}, {**base, "layer": 4, "steer_position": 0}])
    assert model_runs == []


def test_a_delta_beyond_the_number_range_is_refused(strongest):
    with pytest.raises(NotFinite, match="range of float32; use smaller deltas"):
        steer([{**strongest, "steer_position": LAST, "delta": 1e300}])


def test_of_two_changes_of_one_feature_the_last_counts(strongest):
    ablated = {**strongest, "steer_position": LAST, "ablate": True}
    raised = {**strongest, "steer_position": LAST, "delta": 30.0}
    for first, last in ((ablated, raised), (raised, ablated)):
        assert steer([first, last]) == steer([last])


def test_a_value_may_start_from_the_leading_token_where_every_feature_is_silent(strongest):
    """The activation there is 0, so the value set is the delta."""
    from_bos = {**strongest, "token_active_position": 0, "steer_position": LAST, "delta": 0}
    ablated = {**strongest, "steer_position": LAST, "ablate": True}
    assert steer([from_bos]) == steer([ablated])


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 1e-320},
        {"temperature": 1e300},
        {"temperature": 1.0, "freq_penalty": 1e308},
        {"temperature": 1.0, "freq_penalty": -1e308},
    ],
)
def test_extreme_sampling_settings_still_give_a_text(strongest, fields):
    feature = {**strongest, "steer_position": LAST, "ablate": True}
    output = steer([feature], n_tokens=5, seed=1, **fields)
    assert output["STEERED_GENERATION"].startswith(PROMPT)


def test_a_set_without_attention_features_refuses_them_by_name_and_takes_transcoders_by_name(
    strongest, model_runs
):
    feature = {**strongest, "steer_position": LAST, "ablate": True}
    with pytest.raises(InvalidInput, match=r"features\[1\]\.kind is 'lorsa'.*leave kind out"):
        steer([feature, {**feature, "kind": "lorsa"}])
    assert model_runs == []
    assert steer([{**feature, "kind": "transcoder"}]) == steer([feature])


def test_a_kind_of_feature_that_does_not_exist_is_refused(strongest):
    with pytest.raises(InvalidInput, match=r"features\[0\]\.kind"):
        steer([{**strongest, "steer_position": LAST, "ablate": True, "kind": "sae"}])

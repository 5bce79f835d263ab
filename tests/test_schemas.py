"""Requests: what is accepted, and that whatever is refused is refused in words to act on."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import schemas
from errors import InvalidInput, UnknownAction, WorkerError
from schemas import (
    ForwardPassRequest,
    GenerateGraphRequest,
    ParseChatPromptRequest,
    SteerRequest,
    parse_request,
)
from settings import Settings

FEATURE = {"layer": 1, "index": 2, "token_active_position": 3, "steer_position": 3, "delta": 1.5}
TARGET = {"layer": 1, "index": 2, "position": 3}


def graph(**fields):
    return {"prompt": "a", **fields}


def steer(**fields):
    return {"action": "steer", "prompt": "a", "features": [FEATURE], **fields}


def refusal(body):
    with pytest.raises(WorkerError) as raised:
        parse_request(body)
    return raised.value


class TestAction:
    @pytest.mark.parametrize(
        ("fields", "expected"),
        [
            ({}, GenerateGraphRequest),
            ({"action": "graph"}, GenerateGraphRequest),
            ({"action": "generate-graph"}, GenerateGraphRequest),
            ({"action": "generate_graph"}, GenerateGraphRequest),
            ({"request_type": "forward-pass"}, ForwardPassRequest),
            ({"request_type": "forward_pass", "action": "forward-pass"}, ForwardPassRequest),
            ({"request_type": "parse-chat-prompt"}, ParseChatPromptRequest),
            ({"action": None, "request_type": None}, GenerateGraphRequest),
        ],
    )
    def test_is_named_by_action_or_request_type_or_defaults_to_a_graph(self, fields, expected):
        assert type(parse_request({"prompt": "a", **fields})) is expected

    def test_two_names_for_different_actions_are_refused(self):
        error = refusal({"action": "steer", "request_type": "forward-pass", "prompt": "a"})
        assert str(error) == (
            "invalid_input: action 'steer' and request_type 'forward-pass' name different "
            "actions: give one"
        )

    def test_an_unknown_one_is_refused_with_those_there_are(self):
        error = refusal({"action": "explain", "prompt": "a"})
        assert isinstance(error, UnknownAction)
        assert "'explain'" in str(error)
        assert all(action in str(error) for action in schemas.REQUESTS)

    @pytest.mark.parametrize(
        ("given", "meant"),
        [("grpah", "generate-graph"), ("generate", "generate-graph"), ("Steer", "steer"),
         ("forwardpass", "forward-pass"), ("intervention", "intervene")],
    )  # fmt: skip
    def test_a_misspelt_one_is_answered_with_the_closest(self, given, meant):
        assert str(refusal({"action": given})).endswith(f"; did you mean {meant}?")

    def test_of_a_path_may_be_repeated_and_not_contradicted(self):
        for name in ("action", "request_type"):
            body = {"prompt": "a", name: "forward_pass"}
            assert isinstance(parse_request(body, "forward-pass"), ForwardPassRequest)
            with pytest.raises(InvalidInput, match=f"{name} is 'forward_pass', the path says"):
                parse_request(body, "generate-graph")

    def test_must_be_a_string(self):
        assert "action must be a string, got 7" in str(refusal({"action": 7}))


class TestDialect:
    def test_a_steer_by_action_gets_pairs(self):
        assert parse_request(steer()).logits_format == "pairs"

    def test_a_steer_by_request_type_gets_objects(self):
        body = {"request_type": "steer", "prompt": "a", "features": [FEATURE]}
        assert parse_request(body).logits_format == "objects"

    def test_the_caller_can_choose(self):
        assert parse_request(steer(logits_format="objects")).logits_format == "objects"
        body = steer(logits_format="pairs", request_type="steer")
        del body["action"]
        assert parse_request(body).logits_format == "pairs"

    def test_a_webapp_steer_with_its_nulls_is_accepted(self):
        request = parse_request(
            {
                "request_type": "steer",
                "model_id": "google/gemma-2-2b",
                "prompt": "a",
                "features": [
                    {**FEATURE, "steer_generated_tokens": False, "ablate": False},
                    {
                        "layer": 0,
                        "index": 0,
                        "token_active_position": 1,
                        "steer_position": None,
                        "steer_generated_tokens": True,
                        "delta": None,
                        "ablate": True,
                    },
                ],
                "n_tokens": 10,
                "top_k": 5,
                "freeze_attention": False,
                "temperature": 0,
                "freq_penalty": 0,
                "seed": None,
                "steered_output_only": False,
            }
        )
        assert isinstance(request, SteerRequest)
        assert request.features[1].ablate

    def test_a_steer_may_change_no_feature(self):
        assert parse_request(steer(features=[])).features == []

    def test_a_steer_may_name_every_feature_that_a_graph_has_by_default(self):
        """To keep one circuit only, a caller ablates all of a graph's other features."""
        features = [
            {**FEATURE, "index": i} for i in range(Settings(_env_file=None).max_feature_nodes)
        ]
        assert len(parse_request(steer(features=features)).features) == len(features)

    @pytest.mark.parametrize("seed", [0, -1, -(2**63), 2**53 + 1, 2**63, 2**64 - 1])
    def test_any_seed_that_torch_takes_is_accepted(self, seed):
        assert parse_request(steer(seed=seed)).seed == seed

    def test_headers_that_hold_nothing_need_no_url(self):
        assert parse_request(graph(signed_headers={})).signed_headers == {}

    @pytest.mark.parametrize("enabled", [True, False])
    def test_qk_tracing_is_accepted_whatever_the_model(self, enabled):
        """Whether the loaded set has attention features is not known here."""
        fields = {"enable_qk_tracing": enabled, "qk_top_fraction": 1, "qk_topk": 1}
        request = parse_request(graph(**fields))
        assert isinstance(request, GenerateGraphRequest)
        assert (request.enable_qk_tracing, request.qk_top_fraction) == (enabled, 1)

    def test_the_webapp_s_graph_of_a_complete_model_is_accepted(self):
        """The body that it sends for qwen3-1.7b, at the defaults of its dialog."""
        request = parse_request(
            {
                "prompt": "The capital of Japan is",
                "model_id": "Qwen/Qwen3-1.7B",
                "batch_size": 16,
                "max_n_logits": 10,
                "desired_logit_prob": 0.95,
                "node_threshold": 0.7,
                "edge_threshold": 0.8,
                "slug_identifier": "thecapitalofjapanis-1",
                "max_feature_nodes": 3000,
                "signed_url": "https://store.example/key?signature=a",
                "user_id": None,
                "enable_qk_tracing": True,
                "qk_top_fraction": 0.5,
                "qk_topk": 5,
            }
        )
        assert isinstance(request, GenerateGraphRequest)
        assert (request.qk_top_fraction, request.qk_topk) == (0.5, 5)


class TestDefaults:
    def test_of_a_graph(self):
        request = parse_request(graph())
        assert (request.batch_size, request.max_n_logits, request.desired_logit_prob) == (
            48,
            10,
            0.95,
        )
        assert (request.node_threshold, request.edge_threshold) == (0.8, 0.98)
        assert request.compress is False
        assert request.enable_qk_tracing is False
        assert (request.qk_top_fraction, request.qk_topk) == (0.6, 10)

    def test_of_a_steer(self):
        request = parse_request(steer())
        assert (request.n_tokens, request.top_k, request.temperature) == (10, 5, 0.0)
        assert request.seed is None


# (fields, what the sentence must hold: the field, the value where it may be shown, the bound)
REFUSED_GRAPHS = [
    ({"prompt": None}, ["prompt", "messages", "neither"]),
    ({"prompt": ""}, ["prompt", "at least 1 character"]),
    ({"prompt": 5}, ["prompt", "string"]),
    ({"messages": [{"role": "user", "content": "a"}]}, ["prompt", "messages", "both"]),
    ({"prompt": None, "messages": []}, ["messages", "at least 1 item"]),
    ({"prompt": None, "messages": "hi"}, ["messages", "list"]),
    ({"prompt": None, "messages": [{"content": "a"}]}, ["messages[0].role is required"]),
    ({"prompt": None, "messages": [{"role": "user"}]}, ["messages[0].content is required"]),
    ({"prompt": None, "messages": ["hi"]}, ["messages[0]"]),
    ({"model_id": ""}, ["model_id", "''"]),
    ({"model_id": 3}, ["model_id", "string", "got 3"]),
    ({"slug_identifier": "a/b"}, ["slug_identifier", "'a/b'", "[a-zA-Z0-9_-]+"]),
    ({"slug_identifier": ""}, ["slug_identifier", "''"]),
    ({"batch_size": 0}, ["batch_size", "greater than or equal to 1", "got 0"]),
    ({"batch_size": "48"}, ["batch_size", "integer", "got '48'"]),
    ({"batch_size": 1.5}, ["batch_size", "integer", "got 1.5"]),
    ({"batch_size": True}, ["batch_size", "integer", "got True"]),
    ({"enable_qk_tracing": "yes"}, ["enable_qk_tracing", "boolean", "got 'yes'"]),
    ({"qk_top_fraction": 0}, ["qk_top_fraction", "greater than 0", "got 0"]),
    ({"qk_top_fraction": 1.1}, ["qk_top_fraction", "less than or equal to 1", "got 1.1"]),
    ({"qk_topk": 0}, ["qk_topk", "greater than or equal to 1", "got 0"]),
    ({"qk_topk": 257}, ["qk_topk", "less than or equal to 256", "got 257"]),
    ({"qk_topk": 2.5}, ["qk_topk", "integer", "got 2.5"]),
    ({"max_n_logits": 0}, ["max_n_logits", "greater than or equal to 1", "got 0"]),
    ({"desired_logit_prob": 0}, ["desired_logit_prob", "greater than 0", "got 0"]),
    ({"desired_logit_prob": 1.01}, ["desired_logit_prob", "less than or equal to 1", "1.01"]),
    ({"attribution_targets": []}, ["attribution_targets", "at least 1"]),
    ({"attribution_targets": [" a"] * 1001}, ["attribution_targets", "at most 1000", "of 1001"]),
    ({"attribution_targets": " a"}, ["attribution_targets", "list", "' a'"]),
    ({"attribution_targets": [1]}, ["attribution_targets[0]", "string", "got 1"]),
    ({"attribution_targets": [[" a"]]}, ["attribution_targets[0]", "string", "got a list of 1"]),
    ({"attribution_targets": [" a", {}]}, ["attribution_targets[1]", "plus", "layer", "0 fields"]),
    (
        {"attribution_targets": [{"token": " a"}]},
        ["attribution_targets[0] should be", "token string", "got an object with 1 fields"],
    ),
    ({"attribution_targets": [{"plus": [" a"]}]}, ["attribution_targets[0].minus is required"]),
    (
        {"attribution_targets": [{"plus": [" a"], "minus": []}]},
        ["attribution_targets[0].minus", "at least 1"],
    ),
    (
        {"attribution_targets": [{"plus": " a", "minus": [" b"]}]},
        ["attribution_targets[0].plus", "list", "' a'"],
    ),
    (
        {"attribution_targets": [{"plus": [" a", 3], "minus": [" b"]}]},
        ["attribution_targets[0].plus[1]", "string", "got 3"],
    ),
    (
        {"attribution_targets": [{"plus": [" a"] * 1001, "minus": [" b"]}]},
        ["attribution_targets[0].plus", "at most 1000", "a list of 1001"],
    ),
    (
        {"attribution_targets": [{"plus": [" a"], "minus": [" b"], "weight": 1}]},
        ["attribution_targets[0].weight is no field", "known: plus, minus"],
    ),
    ({"attribution_targets": [{"layer": 1, "index": 2}]}, ["targets[0].position is required"]),
    (
        {"attribution_targets": [{**TARGET, "layer": -1}]},
        ["attribution_targets[0].layer", "equal to 0", "got -1"],
    ),
    (
        {"attribution_targets": [" a", {**TARGET, "index": "2"}]},
        ["attribution_targets[1].index", "integer", "'2'"],
    ),
    (
        {"attribution_targets": [{**TARGET, "positon": 1}]},
        ["attribution_targets[0].positon is no field", "did you mean position?"],
    ),
    (
        {"attribution_targets": [{**TARGET, "kind": "mlp"}]},
        ["attribution_targets[0].kind", "'transcoder' or 'lorsa'", "'mlp'"],
    ),
    (
        {"attribution_targets": [{**TARGET, "plus": [" a"], "minus": [" b"]}]},
        ["attribution_targets[0].layer is no field"],
    ),
    ({"node_threshold": -0.1}, ["node_threshold", "greater than or equal to 0", "-0.1"]),
    ({"node_threshold": 1.1}, ["node_threshold", "less than or equal to 1", "1.1"]),
    ({"edge_threshold": float("nan")}, ["edge_threshold", "finite", "nan"]),
    ({"edge_threshold": "high"}, ["edge_threshold", "number", "'high'"]),
    ({"max_feature_nodes": 0}, ["max_feature_nodes", "greater than or equal to 1", "got 0"]),
    ({"signed_url": ""}, ["signed_url", "at least 1 character"]),
    ({"signed_url": 5}, ["signed_url", "string"]),
    ({"signed_headers": {"a": "b"}}, ["signed_headers", "signed_url"]),
    ({"signed_url": "https://s3/", "signed_headers": {"a": 1}}, ["signed_headers.a", "string"]),
    ({"compress": 1}, ["compress", "boolean", "got 1"]),
    ({"prompt": "a\ud800b"}, ["prompt", "surrogate"]),
    ({"user_id": "\udfff"}, ["user_id", "surrogate"]),
    ({"attribution_targets": ["\ud800"]}, ["attribution_targets[0]", "surrogate"]),
    (
        {"prompt": None, "messages": [{"role": "user", "content": "\ud800"}]},
        ["messages[0].content", "surrogate"],
    ),
    ({"user_id": 9}, ["user_id", "string", "got 9"]),
    ({"deadline": "soon"}, ["deadline", "number", "'soon'"]),
    ({"deadline": float("inf")}, ["deadline", "finite", "inf"]),
    ({"max_feature_node": 5}, ["max_feature_node is no field", "did you mean max_feature_nodes?"]),
    ({"[key]": 5}, ["[key] is no field of this action"]),
    ({"": 5}, ["'' is no field of this action"]),
    ({"signed_url": "https://s3/", "signed_headers": {"": "a"}}, ["signed_headers", "at least 1"]),
    ({"zzz": 5}, ["zzz is no field", "known: ", "batch_size"]),
    ({"temperature": 1}, ["temperature is no field of this action"]),
]

REFUSED_STEERS = [
    ({"features": None}, ["features is required"]),
    ({"features": {}}, ["features", "list"]),
    ({"features": [3]}, ["features[0]"]),
    ({"features": [{**FEATURE, "layer": -1}]}, ["features[0].layer", "equal to 0", "got -1"]),
    ({"features": [{**FEATURE, "index": -2}]}, ["features[0].index", "equal to 0", "got -2"]),
    ({"features": [FEATURE, {**FEATURE, "layer": "1"}]}, ["features[1].layer", "integer", "'1'"]),
    (
        {"features": [{**FEATURE, "token_active_position": None}]},
        ["features[0].token_active_position is required"],
    ),
    (
        {"features": [{**FEATURE, "steer_generated_tokens": True}]},
        ["features[0]", "steer_position", "steer_generated_tokens", "both"],
    ),
    ({"features": [{**FEATURE, "steer_position": None}]}, ["features[0]", "neither"]),
    ({"features": [{**FEATURE, "ablate": True}]}, ["features[0]", "ablate", "delta", "both"]),
    ({"features": [{**FEATURE, "delta": None}]}, ["features[0]", "ablate", "delta", "neither"]),
    ({"features": [{**FEATURE, "delta": float("inf")}]}, ["features[0].delta", "finite", "inf"]),
    ({"features": [{**FEATURE, "detla": 1}]}, ["features[0].detla", "did you mean delta?"]),
    ({"n_tokens": 0}, ["n_tokens", "greater than or equal to 1", "got 0"]),
    ({"top_k": -1}, ["top_k", "greater than or equal to 0", "got -1"]),
    ({"temperature": -0.5}, ["temperature", "greater than or equal to 0", "-0.5"]),
    ({"freq_penalty": "x"}, ["freq_penalty", "number", "'x'"]),
    ({"seed": 1.5}, ["seed", "integer", "1.5"]),
    ({"seed": 2**64}, ["seed", "less than", str(2**64)]),
    ({"freeze_attention": "no"}, ["freeze_attention", "boolean", "'no'"]),
    ({"steered_output_only": 0}, ["steered_output_only", "boolean", "got 0"]),
    ({"logits_format": "rows"}, ["logits_format", "'pairs' or 'objects'", "'rows'"]),
    ({"batch_size": 2}, ["batch_size is no field of this action"]),
]

REFUSED_OTHERS = [
    ("forward-pass", {"max_n_logits": 0}, ["max_n_logits", "equal to 1", "got 0"]),
    ("forward-pass", {"max_n_logits": "3"}, ["max_n_logits", "integer", "'3'"]),
    ("forward-pass", {"desired_logit_prob": 0}, ["desired_logit_prob", "greater than 0", "got 0"]),
    ("forward-pass", {"desired_logit_prob": 2}, ["desired_logit_prob", "equal to 1", "got 2"]),
    ("forward-pass", {"prompt": ""}, ["prompt", "at least 1 character"]),
    ("forward-pass", {"prompt": None}, ["prompt", "messages", "neither"]),
    ("forward-pass", {"model_id": 3}, ["model_id", "string", "got 3"]),
    ("forward-pass", {"deadline": -1}, ["deadline", "greater than 0", "got -1"]),
    ("forward-pass", {"features": []}, ["features is no field of this action"]),
    ("parse-chat-prompt", {"prompt": None}, ["prompt is required"]),
    ("parse-chat-prompt", {"prompt": 7}, ["prompt", "string"]),
    ("parse-chat-prompt", {"model_id": ""}, ["model_id", "''"]),
    ("parse-chat-prompt", {"deadline": "soon"}, ["deadline", "number", "'soon'"]),
    ("parse-chat-prompt", {"promt": "a"}, ["promt", "did you mean prompt?"]),
    ("parse-chat-prompt", {"messages": []}, ["messages is no field of this action"]),
]


class TestRefusals:
    @pytest.mark.parametrize(("fields", "words"), REFUSED_GRAPHS)
    def test_of_a_graph_name_field_value_and_bound(self, fields, words):
        error = refusal(graph(**fields))
        assert isinstance(error, InvalidInput)
        assert [word for word in words if word not in str(error)] == []

    @pytest.mark.parametrize(("fields", "words"), REFUSED_STEERS)
    def test_of_a_steer_name_field_value_and_bound(self, fields, words):
        error = refusal(steer(**fields))
        assert isinstance(error, InvalidInput)
        assert [word for word in words if word not in str(error)] == []

    @pytest.mark.parametrize(("action", "fields", "words"), REFUSED_OTHERS)
    def test_of_the_other_actions_name_field_value_and_bound(self, action, fields, words):
        error = refusal({"action": action, "prompt": "a", **fields})
        assert isinstance(error, InvalidInput)
        assert [word for word in words if word not in str(error)] == []

    @pytest.mark.parametrize("body", [None, [], "x", 3, True])
    def test_input_must_be_an_object(self, body):
        assert "input must be an object" in str(refusal(body))

    def test_a_rule_across_fields_is_told_without_a_field_of_its_own(self):
        message = "give exactly one of prompt and messages, got neither"
        assert str(refusal({})) == f"invalid_input: {message}"

    def test_many_faults_at_once_are_told_together_and_cut(self):
        body = graph(batch_size=0, max_n_logits=0, node_threshold=2, edge_threshold=2, user_id=1)
        message = str(refusal(body))
        assert "batch_size" in message
        assert "and 2 more" in message

    @pytest.mark.parametrize(
        "fields",
        [
            {"signed_url": ["https://store/key?X-Amz-Signature=feedbeef"]},
            {"signed_url": "https://s/?feedbeef", "signed_headers": {"x-amz-key": ["feedbeef"]}},
            {"prompt": ["feedbeef"]},
            {"prompt": None, "messages": [{"role": "user", "content": ["feedbeef"]}]},
        ],
    )
    def test_never_repeat_a_secret_or_a_prompt(self, fields):
        assert "feedbeef" not in str(refusal(graph(**fields)))


STEERS = st.fixed_dictionaries(
    {"prompt": st.just("a"), "features": st.sampled_from([[], [FEATURE]])},
    optional={
        "action": st.sampled_from([None, "steer"]),
        "request_type": st.sampled_from([None, "steer"]),
        "logits_format": st.sampled_from([None, "pairs", "objects"]),
        "n_tokens": st.integers(1, 256),
        "steered_output_only": st.booleans(),
        "seed": st.none() | st.integers(0, 2**53),
    },
)


@settings(max_examples=300, deadline=None)
@given(body=STEERS, is_path_named=st.booleans())
def test_logits_are_objects_where_the_body_says_request_type_whatever_the_door(body, is_path_named):
    assume(is_path_named or body.get("action") or body.get("request_type"))
    request = parse_request(body, "steer" if is_path_named else None)
    by_dialect = "pairs" if body.get("request_type") is None else "objects"
    assert request.logits_format == (body.get("logits_format") or by_dialect)


SITES = st.fixed_dictionaries(
    {name: st.integers(0, 2**53) for name in ("layer", "index", "position")},
    optional={"kind": st.sampled_from(["transcoder", "lorsa"])},
)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
GROUP_NAMES = ["French", "Spanish", "0"]
CHANGES = st.one_of(
    st.fixed_dictionaries({"group": st.sampled_from(GROUP_NAMES), "scale": FINITE}),
    st.fixed_dictionaries({"group": st.sampled_from(GROUP_NAMES), "value": FINITE}),
)
INTERVENTIONS = st.fixed_dictionaries(
    {
        "action": st.just("intervene"),
        "prompt": st.just("a"),
        "groups": st.fixed_dictionaries(
            {name: st.lists(SITES, min_size=1, max_size=3) for name in GROUP_NAMES}
        ),
        "experiments": st.lists(st.lists(CHANGES, max_size=3), min_size=1, max_size=64),
    },
    optional={
        "targets": st.lists(st.sampled_from([" a", "b"]), max_size=2),
        "top_k": st.integers(0, 100),
        "constrained_layers": st.none()
        | st.just("all")
        | st.tuples(st.integers(0, 9), st.integers(0, 9)).map(sorted),
        "freeze_attention": st.booleans(),
    },
)
CONTRASTS = st.fixed_dictionaries(
    {"action": st.just("contrast"), "prompt": st.just("a"), "other_prompt": st.just("b")},
    optional={
        "position": st.integers(0, 2**53),
        "other_position": st.none() | st.integers(0, 2**53),
        "top_k": st.integers(0, schemas.MAX_FEATURES),
        "n_steer": st.integers(1, schemas.MAX_FEATURES // 2),
        "strength": st.floats(0, exclude_min=True, allow_infinity=False),
    },
)


@settings(max_examples=200, deadline=None)
@given(body=INTERVENTIONS | CONTRASTS)
def test_what_a_valid_intervention_or_contrast_says_is_what_is_read(body):
    request = parse_request(body)
    given = {name: value for name, value in body.items() if value is not None}
    read = request.model_dump(mode="json", exclude_unset=True)
    assert {"action": request.action, **read} == given
    assert parse_request({"action": request.action, **read}) == request


@settings(max_examples=100, deadline=None)
@given(body=INTERVENTIONS, name=st.text(min_size=1, max_size=20), data=st.data())
def test_an_experiment_on_a_group_that_is_not_there_is_refused(body, name, data):
    assume(name not in GROUP_NAMES)
    which = data.draw(st.integers(0, len(body["experiments"]) - 1))
    changes = [*body["experiments"][which], {"group": name, "scale": 0}]
    experiments = [*body["experiments"]]
    experiments[which] = changes
    words = f"experiments[{which}][{len(changes) - 1}].group"
    assert words in str(refusal({**body, "experiments": experiments}))


TOKEN = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
SIDE = st.lists(TOKEN, min_size=1, max_size=3)
NUMBER = st.integers(0, 2**53)
TARGETS = st.lists(
    st.one_of(
        TOKEN,
        st.fixed_dictionaries({"plus": SIDE, "minus": SIDE}),
        st.fixed_dictionaries(
            {"layer": NUMBER, "index": NUMBER, "position": NUMBER},
            optional={"kind": st.sampled_from(["transcoder", "lorsa"])},
        ),
    ),
    min_size=1,
    max_size=4,
)


@given(TARGETS)
def test_targets_of_all_kinds_mix_and_are_kept_as_they_were_asked_for(targets):
    request = parse_request(graph(attribution_targets=targets))
    kept = request.model_dump(mode="json", include={"attribution_targets"}, exclude_unset=True)
    assert kept == {"attribution_targets": targets}


@given(TARGETS, st.sampled_from(["plus", "minus", "layer", "index", "position", "kind"]))
def test_a_target_s_field_that_is_null_counts_as_absent(targets, field):
    nulled = [{**each, field: None} if isinstance(each, dict) else each for each in targets]
    without = [
        {name: value for name, value in each.items() if name != field}
        if isinstance(each, dict)
        else each
        for each in targets
    ]

    def outcome(given):
        try:
            return parse_request(graph(attribution_targets=given))
        except InvalidInput as error:
            return str(error)

    ours, expected = outcome(nulled), outcome(without)
    if isinstance(expected, str):
        # A message that counts an object's fields counts those that are null too.
        assert isinstance(ours, str)
        assert ours.split(", got")[0] == expected.split(", got")[0]
    else:
        assert ours == expected


BROKEN = st.one_of(
    st.none(),
    st.integers(),
    st.just(""),
    st.lists(TOKEN, max_size=2),
    st.dictionaries(st.sampled_from(["plus", "minus", "layer", "kind", "weight"]), st.none()),
    st.fixed_dictionaries({"plus": st.just([]), "minus": SIDE}),
    st.fixed_dictionaries({"layer": st.integers(max_value=-1), "index": NUMBER}),
)


@given(st.lists(TOKEN, max_size=3), BROKEN)
def test_a_broken_target_is_refused_by_its_place(before, broken):
    error = refusal(graph(attribution_targets=[*before, broken]))
    assert isinstance(error, InvalidInput)
    assert f"attribution_targets[{len(before)}]" in str(error)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
FIELD_NAMES = sorted(
    {"action", "request_type", "extra"}.union(
        *(request.model_fields for request in schemas.REQUESTS.values())
    )
)


@settings(max_examples=500)
@given(st.one_of(JSON, st.dictionaries(st.sampled_from(FIELD_NAMES), JSON, max_size=6)))
def test_whatever_comes_is_a_request_or_a_worker_error(body):
    try:
        request = parse_request(body)
    except WorkerError as error:
        assert error.code in {"invalid_input", "unknown_action"}
        assert len(str(error)) < 1500
    else:
        assert type(request) in schemas.REQUESTS.values()

"""The Neuronpedia webapp's calls through both doors, held to the rules that it checks answers by.

It names the action `request_type`, or not at all for a generation. On Runpod it reads `error` and
`output`. Its local mode posts to the paths of start.py: the body itself, or, for a source set that
has a Runpod host, `{"input": body}`, of which it reads `output` too. The rules are those of
apps/webapp/lib/utils/graph.ts and app/api/graph in github.com/hijohnnylin/neuronpedia.
"""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from settings import get_settings
from tests.support.demo_worker import PROMPT
from tests.support.http_server import serving
from tests.support.webapp_calls import TRANSPORTS
from tests.support.webapp_rules import Graph, Parsed, Preview, Steered

# What its dialog of an attribution graph and its API let a caller choose. A slider of the dialog
# gives a feature -5 to 5 times its highest activation.
N_TOKENS_DIALOG, N_TOKENS_API = 20, 256
TOP_K_API = 10
TEMPERATURE = 2
FREQ_PENALTY = 2
MOST_CHARACTERS = 10_000

AT = {"layer": 2, "index": 157, "token_active_position": 4}
ABLATED = {
    **AT,
    "steer_position": 4,
    "steer_generated_tokens": False,
    "delta": None,
    "ablate": True,
}
RAISED = {**ABLATED, "index": 146, "delta": 10.8, "ablate": False}
LOWERED = {**RAISED, "delta": -5 * 10.8}
AT_NEW_TOKENS = {**AT, "steer_generated_tokens": True, "delta": 5.0, "ablate": False}
AT_BOS = {**RAISED, "steer_position": 0}

STEER = {
    "model_id": "demo",
    "features": [ABLATED],
    "n_tokens": 3,
    "top_k": 5,
    "freeze_attention": False,
    "temperature": 0,
    "freq_penalty": 0,
    "seed": None,
    "request_type": "steer",
}
DIALOG = {**STEER, "n_tokens": 10, "freeze_attention": True, "seed": 16}
API = {**DIALOG, "n_tokens": 40, "temperature": 0.5, "freq_penalty": 1.0}
GENERATE = {
    "model_id": "demo",
    "batch_size": 48,
    "max_n_logits": 10,
    "desired_logit_prob": 0.95,
    "node_threshold": 0.8,
    "edge_threshold": 0.85,
    "slug_identifier": "michaeljordan-1",
    "max_feature_nodes": 5000,
    "user_id": "Ada",
}
PREVIEW = {"max_n_logits": 10, "desired_logit_prob": 0.95, "request_type": "forward-pass"}
MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": ""}]
CONTENT = [
    pytest.param({"prompt": PROMPT}, id="prompt"),
    pytest.param({"messages": MESSAGES}, id="messages"),
]


@pytest.fixture(autouse=True)
def _demo(monkeypatch):
    for name in ("MODEL_ID", "TRANSCODER_SET", "MAX_OUTPUT_BYTES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DEVICE", "cpu")
    monkeypatch.setenv("UPLOAD_ALLOWED_HOSTS", "127.0.0.1")
    get_settings.cache_clear()
    yield
    get_settings.cache_clear()


@pytest.fixture(scope="module")
def server():
    with serving(upload_allowed_hosts=("127.0.0.1",)) as running:
        yield running


@pytest.fixture(params=TRANSPORTS)
def answer(request, server):
    """What the webapp reads of the answer to an action and a body: an `error` or an `output`."""
    return lambda action, body: request.param(server, action, body)


@pytest.fixture
def call(answer):
    """The output, as the webapp reads it."""

    def output(action, body):
        answered = answer(action, body)
        assert list(answered) == ["output"], answered
        return answered["output"]

    return output


@pytest.mark.parametrize("content", CONTENT)
@pytest.mark.parametrize(
    "chosen",
    [
        {},
        {
            "max_n_logits": 5,
            "desired_logit_prob": 0.6,
            "node_threshold": 0.5,
            "edge_threshold": 0.65,
            "max_feature_nodes": 1500,
        },
        {
            "max_n_logits": 15,
            "desired_logit_prob": 0.99,
            "node_threshold": 0.95,
            "edge_threshold": 0.98,
            "max_feature_nodes": 10000,
        },
    ],
    ids=["defaults", "least", "most"],
)
def test_a_graph_is_generated_uploaded_and_valid(call, store, content, chosen):
    url = store.presign("user-graphs/1/michaeljordan-1.json", ContentType="application/json")
    receipt = call("generate-graph", {**GENERATE, **content, **chosen, "signed_url": url})
    assert receipt["success"] == "Graph uploaded", receipt
    graph = Graph.model_validate_json(store.get("user-graphs/1/michaeljordan-1.json")[0])
    assert graph.metadata.slug == "michaeljordan-1"
    assert graph.metadata.info.creator_name == "Ada"
    ids = {node.node_id for node in graph.nodes}
    assert len(ids) == len(graph.nodes)
    assert all({link.source, link.target} <= ids for link in graph.links)


@pytest.mark.parametrize("content", CONTENT)
def test_a_graph_without_an_upload_is_valid_too(call, content):
    Graph.model_validate_json(json.dumps(call("generate-graph", {**GENERATE, **content})))


def check_steered(output, body):
    steered = Steered.model_validate(output)
    for side in (steered.DEFAULT_LOGITS_BY_TOKEN, steered.STEERED_LOGITS_BY_TOKEN):
        predicted = [entry for entry in side if len(entry.top_logits) == body["top_k"]]
        assert body["top_k"] == 0 or 2 <= len(predicted) <= body["n_tokens"] + 1


@pytest.mark.parametrize(
    "chosen",
    [
        pytest.param(STEER, id="one feature"),
        pytest.param(DIALOG, id="the dialog's defaults"),
        pytest.param(
            {
                **DIALOG,
                "features": [ABLATED, LOWERED, AT_NEW_TOKENS, AT_BOS],
                "n_tokens": 1,
                "freq_penalty": -FREQ_PENALTY,
            },
            id="the dialog's least",
        ),
        pytest.param(
            {
                **DIALOG,
                "features": [RAISED, AT_NEW_TOKENS],
                "n_tokens": N_TOKENS_DIALOG,
                "temperature": TEMPERATURE,
                "freq_penalty": FREQ_PENALTY,
                "seed": 4,
            },
            id="the dialog's most",
        ),
        pytest.param({**API, "features": [LOWERED]}, id="the API's defaults"),
        pytest.param({**API, "features": [], "n_tokens": 1, "top_k": 0}, id="the API's least"),
        pytest.param(
            {
                **API,
                "features": [RAISED],
                "n_tokens": N_TOKENS_API,
                "top_k": TOP_K_API,
                "temperature": TEMPERATURE,
                "freq_penalty": FREQ_PENALTY,
                "seed": None,
            },
            id="the API's most",
        ),
    ],
)
def test_a_steered_text_is_one_that_the_webapp_reads(call, chosen):
    body = {**chosen, "prompt": PROMPT}
    check_steered(call("steer", body), body)


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(
    chosen=st.fixed_dictionaries(
        {
            "features": st.lists(
                st.sampled_from([ABLATED, RAISED, LOWERED, AT_NEW_TOKENS, AT_BOS]), max_size=4
            ),
            "n_tokens": st.integers(1, N_TOKENS_DIALOG),
            "top_k": st.integers(0, TOP_K_API),
            "freeze_attention": st.booleans(),
            "temperature": st.integers(0, 20).map(lambda tenths: tenths / 10),
            "freq_penalty": st.integers(-20, 20).map(lambda tenths: tenths / 10),
            "seed": st.none() | st.integers(0, 2**31),
        }
    )
)
def test_every_steer_within_the_webapp_s_ranges_is_one_that_it_reads(call, chosen):
    body = {**STEER, "prompt": PROMPT, **chosen}
    check_steered(call("steer", body), body)


@pytest.mark.parametrize("content", CONTENT)
@pytest.mark.parametrize("only_steered", [False, True])
def test_the_steered_side_alone_is_read_too(call, content, only_steered):
    output = call("steer", {**STEER, **content, "steered_output_only": only_steered})
    Steered.model_validate(output)
    assert (output["DEFAULT_LOGITS_BY_TOKEN"] == []) is only_steered


@pytest.mark.parametrize("content", CONTENT)
def test_the_preview_counts_the_graph_s_tokens(call, content):
    preview = Preview.model_validate(call("forward-pass", {**content, **PREVIEW}))
    graph = call("generate-graph", {**GENERATE, **content})
    assert preview.input_tokens == graph["metadata"]["prompt_tokens"]


@pytest.mark.parametrize(("max_n_logits", "desired_logit_prob"), [(5, 0.6), (15, 0.99)])
def test_the_preview_s_ranges_are_answered(call, max_n_logits, desired_logit_prob):
    wanted = {"max_n_logits": max_n_logits, "desired_logit_prob": desired_logit_prob}
    preview = Preview.model_validate(call("forward-pass", {"prompt": "The", **PREVIEW, **wanted}))
    assert len(preview.salient_logits) == preview.total_salient_tokens <= max_n_logits


def test_the_preview_counts_a_prompt_that_is_too_long_for_a_graph(call, answer):
    """So that the webapp can say "Max tokens supported is 64, your prompt was 161 tokens"."""
    prompt = " ".join([PROMPT] * 40)
    preview = Preview.model_validate(call("forward-pass", {"prompt": prompt, **PREVIEW}))
    assert len(preview.input_tokens) == 161
    refused = answer("generate-graph", {**GENERATE, "prompt": prompt})
    assert refused == {"error": "prompt_too_long: the prompt has 161 tokens, the limit is 64"}


def test_a_stored_prompt_without_its_bos_steers_at_the_graph_s_positions(call):
    graph = call("generate-graph", {**GENERATE, "messages": MESSAGES})["metadata"]
    stored = graph["prompt"].removeprefix(graph["prompt_tokens"][0])
    asked = {"prompt": graph["prompt"], "request_type": "parse-chat-prompt"}
    parsed = Parsed.model_validate(call("parse-chat-prompt", asked))
    assert [message.model_dump() for message in parsed.messages] == MESSAGES
    assert (parsed.prompt, parsed.unsteerable_positions) == (stored, [0])
    steered = call("steer", {**STEER, "prompt": stored})
    tokens = [entry["token"] for entry in steered["DEFAULT_LOGITS_BY_TOKEN"]]
    assert tokens[: len(graph["prompt_tokens"]) - 1] == graph["prompt_tokens"][1:]


def test_a_prompt_that_is_no_chat_is_parsed_as_none(call):
    parsed = call("parse-chat-prompt", {"prompt": PROMPT, "request_type": "parse-chat-prompt"})
    assert Parsed.model_validate(parsed).messages is None


@pytest.mark.parametrize(
    ("action", "body", "code"),
    [
        ("generate-graph", {**GENERATE, "prompt": "a " * 80}, "prompt_too_long"),
        ("generate-graph", {**GENERATE, "prompt": PROMPT, "slug": "a"}, "invalid_input"),
        ("steer", {**STEER, "prompt": PROMPT, "model_id": "gpt2"}, "model_not_loaded"),
        ("steer", {**STEER, "prompt": PROMPT, "n_tokens": 512}, "invalid_input"),
        ("forward-pass", {**PREVIEW, "prompt": "ab " * (MOST_CHARACTERS // 3)}, "prompt_too_long"),
    ],
)
def test_a_failure_is_an_error_string(answer, action, body, code):
    answered = answer(action, body)
    assert list(answered) == ["error"]
    assert answered["error"].startswith(f"{code}: ")

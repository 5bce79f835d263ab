"""What the paths answer, over real connections to a running server."""

import asyncio
import gzip
import itertools
import json
import re
import shutil
import subprocess

import pytest
import requests
from starlette.responses import StreamingResponse

import logs
import schemas
from serving import http_api, http_docs
from tests.support.demo_worker import TOO_LONG, ask, comparable
from tests.support.http_server import (
    ACTIONS,
    FORWARD,
    GRAPH,
    PARSE,
    SECRET,
    STEER,
    assert_error,
    get,
    post,
    raw_request,
    serving,
)
from tests.support.polling import until
from tests.support.programs import ROOT
from tests.support.raw_server import RawServer, answer, error_xml
from tools.documents import read, rows

# Actions


@pytest.mark.parametrize("action", ACTIONS)
def test_a_path_answers_as_its_action_does(server, action):
    body = http_docs.EXAMPLES[action]
    response = post(server, action, body)
    assert response.status_code == 200
    assert comparable(response.json()) == comparable(ask({"action": action, **body}))


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("action", ACTIONS)
def test_the_page_s_curl_command_of_an_action_works_as_it_stands(server, action):
    page = read("docs/http.md")
    commands = re.findall(r"^curl [^\n]*localhost:5004/.*?(?=\n```)", page, re.M | re.S)
    of_action = [c for c in commands if f"localhost:5004/{action} " in c]
    # Streams and files have tests of their own.
    [command] = [c for c in of_action if "event-stream" not in c and '"format": "pt"' not in c]
    command = command.replace("http://localhost:5004", server.url) + " --silent"
    done = subprocess.run(command, shell=True, capture_output=True, check=True)
    expected = ask({"action": action, **http_docs.EXAMPLES[action]})
    assert comparable(json.loads(done.stdout)) == comparable(expected)


@pytest.mark.parametrize(
    ("named", "form"),
    [
        ({}, list),
        ({"action": "steer"}, list),
        ({"request_type": None}, list),
        ({"request_type": "steer"}, dict),
        ({"request_type": "steer", "action": "steer"}, dict),
        ({"logits_format": "objects"}, dict),
        ({"request_type": "steer", "logits_format": "pairs"}, list),
    ],
)
def test_steering_gives_objects_to_a_body_that_says_request_type_and_else_pairs(
    server, named, form
):
    for body, output_of in (
        ({**STEER, **named}, lambda answer: answer),
        ({"input": {**STEER, **named}}, lambda answer: answer["output"]),
    ):
        output = output_of(post(server, "steer", body).json())
        assert {type(entry) for entry in output["STEERED_LOGITS_BY_TOKEN"]} == {form}


# A body that is a Runpod job


@pytest.mark.parametrize("action", ACTIONS)
def test_a_body_that_is_only_input_is_answered_as_a_job_s_output(server, action):
    body = http_docs.EXAMPLES[action]
    response = post(server, action, {"input": body})
    assert response.status_code == 200, response.text
    assert list(response.json()) == ["output"]
    assert comparable(response.json()["output"]) == comparable(ask({"action": action, **body}))
    if "Content-Encoding" not in response.headers:
        assert int(response.headers["Content-Length"]) == len(response.content)


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_a_streamed_graph_within_an_output_is_whole(server, encoding):
    url = f"{server.url}/generate-graph"
    headers = {"Accept-Encoding": encoding}
    response = requests.post(url, json={"input": GRAPH}, headers=headers, timeout=60)
    assert response.headers.get("Content-Encoding", "identity") == encoding
    if encoding == "identity":
        assert int(response.headers["Content-Length"]) == len(response.content)
    plain = post(server, "generate-graph", GRAPH).json()
    assert comparable(response.json()["output"]) == comparable(plain)


def test_a_document_within_an_output_goes_out_piece_by_piece():
    drawn = []

    def pieces():
        for piece in (b'{"nodes": [', b"]}"):
            drawn.append(piece)
            yield piece

    async def sent():
        response = StreamingResponse(pieces(), 200, {"Content-Length": "13"}, "application/json")
        wrapped = http_api._as_output(response)
        assert wrapped.headers["Content-Length"] == "24"
        return [(piece, len(drawn)) async for piece in wrapped.body_iterator]

    assert asyncio.run(sent()) == [
        (b'{"output":', 0),
        (b'{"nodes": [', 1),
        (b"]}", 2),
        (b"}", 2),
    ]


@pytest.mark.parametrize(
    ("body", "status", "code", "words"),
    [
        ({"input": {**FORWARD, "prompt": TOO_LONG}}, 413, "prompt_too_long", "602 tokens"),
        ({"input": {**FORWARD, "n_logits": 3}}, 422, "invalid_input", "n_logits is no field"),
        ({"input": {**FORWARD, "request_type": "steer"}}, 422, "invalid_input", "the path says"),
        ({"input": {"input": FORWARD}}, 422, "invalid_input", "input is no field"),
        ({"input": FORWARD, "id": "job"}, 422, "invalid_input", "input is no field"),
        ({"input": "text"}, 422, "invalid_input", "input must be an object"),
    ],
)
def test_what_fails_within_an_input_is_an_error_as_elsewhere(server, body, status, code, words):
    response = post(server, "forward-pass", body)
    assert_error(response, status, code)
    assert words in response.json()["error"]


def test_a_body_may_name_the_path_s_action_in_any_spelling(server):
    assert post(server, "generate-graph", {**GRAPH, "action": "graph"}).status_code == 200
    assert post(server, "forward-pass", {**FORWARD, "action": "forward_pass"}).status_code == 200


@pytest.mark.parametrize("name", ["action", "request_type"])
@pytest.mark.parametrize("value", ["steer", "fly", 7])
def test_a_body_that_names_another_action_than_the_path_is_refused(server, name, value):
    response = post(server, "forward-pass", {**FORWARD, name: value})
    assert_error(response, 422, "invalid_input")
    assert name in response.json()["error"]


@pytest.mark.parametrize(
    ("changed", "status", "code"),
    [
        ({"prompt": None}, 422, "invalid_input"),
        ({"n_logits": 3}, 422, "invalid_input"),
        ({"model_id": "gpt2"}, 400, "model_not_loaded"),
        ({"prompt": TOO_LONG}, 413, "prompt_too_long"),
        ({"deadline": 1}, 503, "deadline_exceeded"),
    ],
)
def test_an_action_s_error_has_its_class_s_status(server, changed, status, code):
    response = post(server, "forward-pass", {**FORWARD, **changed})
    assert_error(response, status, code)
    assert "Retry-After" not in response.headers


@pytest.mark.parametrize(
    ("url", "status", "code"),
    [
        ("http://169.254.169.254/key?X-Amz-Signature=feedbeef", 400, "upload_url_refused"),
        ("http://127.0.0.1:{port}/key?X-Amz-Signature=feedbeef", 502, "upload_failed"),
    ],
)
def test_a_graph_that_can_not_be_uploaded_has_the_status_of_why(url, status, code):
    with (
        serving(upload_allowed_hosts=("127.0.0.1",)) as server,
        RawServer([answer(403, error_xml("AccessDenied"))]) as refusing,
    ):
        url = url.format(port=refusing.port)
        response = post(server, "generate-graph", {**GRAPH, "signed_url": url})
    assert_error(response, status, code)
    assert "feedbeef" not in response.text


# What callers of the API that this door is compatible with send, but for model and features.
COMPATIBLE = {
    "generate-graph": """{"prompt": "1 2 ", "model_id": "demo", "slug_identifier": "count-1-2",
        "batch_size": 48, "max_n_logits": 10, "desired_logit_prob": 0.95,
        "node_threshold": 0.8, "edge_threshold": 0.85, "max_feature_nodes": 5000}""",
    "steer": """{"prompt": "Fait: Michael Jordan joue au", "model_id": "demo", "n_tokens": 10,
        "top_k": 3, "temperature": 0, "freq_penalty": 0, "freeze_attention": false, "features": [
            {"layer": 2, "index": 14, "token_active_position": 6, "steer_position": 6,
             "ablate": true},
            {"layer": 2, "index": 34, "token_active_position": 7, "steer_position": 7,
             "delta": 350},
            {"layer": 2, "index": 34, "token_active_position": 7, "steer_generated_tokens": true,
             "delta": 350}]}""",
    "forward-pass": """{"prompt": "The capital of France is", "max_n_logits": 5,
        "desired_logit_prob": 0.9}""",
}


@pytest.mark.parametrize("action", COMPATIBLE)
def test_the_bodies_of_existing_callers_are_answered(guarded, action):
    body = json.loads(COMPATIBLE[action])
    response = post(guarded, action, body, **{"x-secret-key": SECRET})
    assert response.status_code == 200, response.text
    expected = ask({"action": action, **body})
    assert comparable(response.json()) == comparable(expected)


def test_the_page_lists_every_code_that_only_the_server_has():
    source = (ROOT / "serving" / "http_api.py").read_text()
    codes = set(re.findall(r"\b(?:40\d|41\d|503)[,:]\s*f?\"(\w+)", source)) | {"loading"}
    bounds = (ROOT / "serving" / "http_bounds.py").read_text()
    codes |= set(re.findall(r"\"([a-z_]+): ", bounds))
    assert codes > {"busy", "not_found", "forbidden", "head_too_large"}
    listed = rows("docs/http.md", "HTTP status").values()
    assert {code for row in listed for code in re.findall(r"`([a-z_]+)`", row[0])} == codes


# Graphs


def test_a_graph_above_a_job_s_limit_is_streamed_all_the_same():
    with serving(max_output_bytes=5000) as small:
        response = post(small, "generate-graph", GRAPH, **{"Accept-Encoding": "identity"})
    assert len(response.content) > 5000
    assert int(response.headers["Content-Length"]) == len(response.content)
    expected = ask({"action": "generate-graph", **GRAPH})
    assert comparable(response.json()) == comparable(expected)


@pytest.mark.parametrize(("action", "body"), [("generate-graph", GRAPH), ("steer", None)])
def test_a_response_is_gzipped_for_a_client_that_accepts_it(server, action, body):
    body = body or {**STEER, "top_k": 20}
    plain = post(server, action, body, **{"Accept-Encoding": "identity"})
    assert "Content-Encoding" not in plain.headers
    response = requests.post(f"{server.url}/{action}", json=body, stream=True, timeout=60)
    packed = response.raw.read(decode_content=False)
    assert response.headers["Content-Encoding"] == "gzip"
    assert len(packed) < len(plain.content) / 2
    assert comparable(json.loads(gzip.decompress(packed))) == comparable(plain.json())


# What never becomes a job


@pytest.mark.parametrize("body", [b"", b"{", b'{"prompt": NaN}', b"\xff", b"[" * 5000])
def test_a_body_that_is_no_json_is_refused(server, body):
    headers = {"Content-Type": "application/json"}
    response = requests.post(f"{server.url}/steer", data=body, headers=headers, timeout=60)
    assert_error(response, 400, "invalid_input")


@pytest.mark.parametrize("body", [None, [], "text", 3, [FORWARD]])
def test_json_that_is_no_object_is_refused(server, body):
    headers = {"Content-Type": "application/json"}
    url = f"{server.url}/forward-pass"
    response = requests.post(url, data=json.dumps(body), headers=headers, timeout=60)
    assert_error(response, 422, "invalid_input")


@pytest.mark.parametrize("media_type", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_a_body_of_another_type_is_refused_so_that_no_web_page_can_send_jobs(server, media_type):
    headers = {} if media_type is None else {"Content-Type": media_type}
    url = f"{server.url}/forward-pass"
    response = requests.post(url, data=json.dumps(FORWARD).encode(), headers=headers, timeout=60)
    assert_error(response, 415, "unsupported_media_type")


def test_half_a_surrogate_pair_in_a_name_is_answered_in_json(server):
    headers = {"Content-Type": "application/json"}
    response = requests.post(
        f"{server.url}/steer", data=b'{"\\ud800": 1}', headers=headers, timeout=60
    )
    assert response.status_code in {400, 422}
    assert list(response.json()) == ["error"]


def sized_body(size):
    return json.dumps({"prompt": ""}).replace('""', f'"{"a" * size}"').encode()


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_body_above_the_limit_is_refused_and_the_connection_lives_on(server, is_chunked):
    body = sized_body(3 * http_api.MAX_BODY_BYTES)
    pieces = (body[i : i + 50_000] for i in range(0, len(body), 50_000))
    headers = {"Content-Type": "application/json"}
    with requests.Session() as session:
        url = f"{server.url}/parse-chat-prompt"
        data = pieces if is_chunked else body
        assert_error(session.post(url, data=data, headers=headers), 413, "body_too_large")
        assert session.post(url, json=PARSE).json() == ask({"action": "parse-chat-prompt", **PARSE})


@pytest.mark.parametrize(("over", "status"), [(0, 200), (1, 413)])
@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_body_may_have_the_bytes_of_the_limit_and_no_more(server, is_chunked, over, status):
    body = json.dumps(PARSE).encode().ljust(http_api.MAX_BODY_BYTES + over)
    headers = {"Content-Type": "application/json"}
    data = iter([body[:10], body[10:]]) if is_chunked else body
    url = f"{server.url}/parse-chat-prompt"
    assert requests.post(url, data=data, headers=headers, timeout=60).status_code == status


def test_a_steer_of_as_many_features_as_there_may_be_is_answered(server):
    """As the webapp writes them, and at their longest."""
    feature = {"steer_generated_tokens": False, "delta": -0.12345678901234567, "ablate": False}
    places = itertools.product(range(4), range(1024), range(1, 5))
    features = [
        {"layer": k, "index": i, "token_active_position": p, "steer_position": p, **feature}
        for k, i, p in itertools.islice(places, schemas.MAX_FEATURES)
    ]
    assert len(features) == schemas.MAX_FEATURES
    assert len(json.dumps(features)) > 1_000_000
    response = post(server, "steer", {**STEER, "features": features})
    assert response.status_code == 200, response.text


def test_an_endless_body_is_answered_before_it_ends(server):
    """Announced as larger than any memory; the head alone is enough to refuse it."""
    with raw_request(server, "steer", b"", length=10**15) as connection:
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_an_unknown_path_and_a_wrong_method_are_errors_of_the_same_shape(server):
    assert_error(get(server, "/nothing"), 404, "not_found")
    assert_error(post(server, "steer/", FORWARD), 404, "not_found")
    assert "did you mean" not in get(server, "/zzzz").text
    response = get(server, "/steer")
    assert_error(response, 405, "method_not_allowed")
    assert response.headers["Allow"] == "POST"
    assert_error(post(server, "health", {}), 405, "method_not_allowed")


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("steer/", "POST /steer"),
        ("graph", "POST /generate-graph"),
        ("forward_pass", "POST /forward-pass"),
        ("intervention", "POST /intervene"),
        ("Contrast", "POST /contrast"),
        ("helth", "GET /health"),
        ("doc", "GET /docs"),
    ],
)
def test_an_unknown_path_is_answered_with_the_closest_one(server, path, meant):
    response = post(server, path, FORWARD)
    assert_error(response, 404, "not_found")
    assert response.json()["error"].endswith(f"; did you mean {meant}?")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ('{"prompt": "planted",}', "line 1, column 22: a comma stands before the }: remove it"),
        ("{'prompt': 'planted'}", "line 1, column 2: JSON takes double quotes"),
        ('{"prompt": "planted"', "the text ends here, and } is missing"),
        (b'{"prompt": "planted\xff"}', "byte 19 is not UTF-8"),
        ("", "it is empty"),
        ("[" * 100_000, "it is nested too deeply"),
    ],
)
def test_a_body_that_is_no_json_is_told_where_and_what_was_meant(server, body, said):
    headers = {"Content-Type": "application/json"}
    response = requests.post(f"{server.url}/steer", data=body, headers=headers, timeout=60)
    assert_error(response, 400, "invalid_input")
    assert said in response.json()["error"]
    assert "planted" not in response.text


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"input": "planted"}, 'input must be an object, got a string; such as {"prompt": '),
        ({"input": {"input": FORWARD}}, "input is no field of this action; put what it holds in"),
        ({"input": FORWARD, "id": "a"}, "input is no field of this action; put what it holds in"),
        ("planted", "input must be an object, got a string"),
    ],
)
def test_an_input_in_the_wrong_place_is_told_where_it_belongs(server, body, said):
    response = post(server, "forward-pass", body)
    assert_error(response, 422, "invalid_input")
    assert said in response.json()["error"]
    assert "planted" not in response.text


# The secret


@pytest.mark.parametrize("action", ACTIONS)
def test_with_a_secret_every_action_wants_it(guarded, action):
    body = http_docs.EXAMPLES[action]
    assert_error(post(guarded, action, body), 401, "unauthorized")
    for wrong in ("wrong", SECRET + "s", SECRET[:-1], "ä"):
        sent = wrong.encode()
        response = post(guarded, action, body, **{"x-secret-key": sent})
        assert_error(response, 403, "forbidden")
        assert SECRET not in response.text
    assert post(guarded, action, body, **{"x-secret-key": SECRET}).status_code == 200


def test_a_secret_beyond_ascii_works():
    with serving(secret="clé") as accented:
        response = post(accented, "parse-chat-prompt", PARSE, **{"x-secret-key": "clé".encode()})
        assert response.status_code == 200


def test_the_secret_is_looked_at_before_the_body(guarded):
    response = requests.post(f"{guarded.url}/steer", data=b"{", timeout=60)
    assert_error(response, 401, "unauthorized")


def test_whether_the_server_is_well_and_busy_is_told_without_the_secret(guarded):
    assert get(guarded, "/check-busy").json() == {"busy": False}
    assert get(guarded, "/health").status_code == 200


# What must not get out


def test_a_fault_of_the_worker_s_own_is_answered_and_logged_without_its_message(
    server, monkeypatch, caplog
):
    words = "/home/someone https://store/?X-Amz-Signature=abc"

    def fail(*_):
        raise RuntimeError(words)

    monkeypatch.setattr(http_api, "_response", fail)
    response = post(server, "forward-pass", FORWARD)
    assert_error(response, 500, "internal")
    # It is logged once it has been answered.
    until(lambda: any(record.exc_info for record in caplog.records))
    [record] = [record for record in caplog.records if record.exc_info]
    record.exc_text = None  # what pytest's own formatter made of it
    line = logs.ReadableLines().format(record)
    assert "RuntimeError" in line
    assert "http_api.py" in line
    for private in ("someone", "Signature"):
        assert private not in line + response.text

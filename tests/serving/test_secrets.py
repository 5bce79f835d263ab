"""Secrets planted in requests and settings of the HTTP door, searched for in all that comes out."""

import io
import logging

import pytest
import requests

import logs
from tests.support.http_server import ACTIONS, GRAPH, STEER, serving
from tests.support.raw_server import RawServer, answer, close_without_an_answer, error_xml

SECRET = "planted-secret"
QUERY = "?X-Amz-Signature=planted-signature&X-Amz-Security-Token=planted-token"
HEADERS = {"x-amz-meta-key": "planted-header"}


@pytest.fixture
def written():
    """Everything that is logged with LOG_LEVEL=DEBUG, as it is written."""
    logs.set_up("DEBUG", as_json=False)
    [handler] = logging.root.handlers
    handler.setStream(io.StringIO())
    return handler.stream.getvalue


def refused_bodies(store):
    graph = {**GRAPH, "signed_url": store.url(QUERY), "signed_headers": HEADERS}
    yield "generate-graph", {**graph, "signed_url": "http://10.0.0.1/key" + QUERY}
    yield "generate-graph", {**graph, "signed_url": "https://planted-user:planted@host/" + QUERY}
    yield "generate-graph", {**graph, "signed_url": ["https://host/" + QUERY]}
    yield "generate-graph", {**graph, "signed_headers": {"x": ["planted-header"]}}
    yield "generate-graph", {**graph, "signed_headers": {"Host": "planted-host", **HEADERS}}
    yield "generate-graph", {**graph, "batch_size": 0}
    for action in ACTIONS:
        yield action, {"prompt": {"planted": "planted-prompt"}}


def test_no_secret_of_a_request_or_a_setting_is_logged_or_answered(written):
    settings = {
        "secret": SECRET,
        "hf_token": "planted-hub-token",
        "upload_allowed_hosts": ("127.0.0.1",),
    }
    # The second answer is final, the third and fourth are tried again.
    script = [
        answer(200),
        answer(403, error_xml("SignatureDoesNotMatch", QUERY)),
        answer(503, error_xml("SlowDown", QUERY)),
        close_without_an_answer,
        answer(200),
    ]
    seen, statuses = "", []

    def ask(action, body, secret=SECRET):
        nonlocal seen
        url = f"{server.url}/{action}?key=planted-key"
        response = requests.post(url, json=body, headers={"x-secret-key": secret}, timeout=60)
        seen += response.text + str(response.headers)
        statuses.append(response.status_code)

    with RawServer(script) as store, serving(**settings) as server:
        for _ in range(3):
            ask("generate-graph", {**GRAPH, "signed_url": store.url(QUERY)})
        assert statuses == [200, 502, 200]
        assert all(QUERY in request.request_line for request in store.requests)
        for action, body in refused_bodies(store):
            ask(action, body)
        assert set(statuses[3:]) == {400, 422}
        ask("steer", STEER, secret="planted-guess")
        assert statuses[-1] == 403
    seen += written()
    assert "upload attempt 1 failed" in seen
    assert "job failed: upload_url_refused job_id=None action=generate-graph" in seen
    assert "request refused: forbidden action=steer" in seen
    assert "planted" not in seen

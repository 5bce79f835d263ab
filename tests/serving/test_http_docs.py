"""The OpenAPI document says what the paths do."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import TypeAdapter

import schemas
from serving import http_docs
from tests.support.http_server import ACTIONS, SECRET, get, post


@pytest.fixture(scope="module")
def openapi(server):
    return get(server, "/openapi.json").json()


def test_every_reference_of_the_openapi_document_leads_somewhere(openapi):
    for name in re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(openapi)):
        assert name in openapi["components"]["schemas"]


@pytest.mark.parametrize("action", ACTIONS)
def test_every_action_is_documented_with_an_example_that_is_a_request(openapi, action):
    operation = openapi["paths"][f"/{action}"]["post"]
    content = operation["requestBody"]["content"]["application/json"]
    assert content["schema"]["$ref"].endswith(schemas.REQUESTS[action].__name__)
    for example in content["examples"].values():
        schemas.parse_request({"action": action, **example["value"]})
    for status in ("200", "400", "401", "403", "413", "415", "422", "500", "502", "503"):
        assert operation["responses"][status]["content"]["application/json"]["schema"]


@pytest.mark.parametrize("action", ACTIONS)
def test_an_action_s_output_is_of_the_documented_type(server, action):
    documented = TypeAdapter(http_docs.RESPONSES[action][0])
    documented.validate_python(post(server, action, http_docs.EXAMPLES[action]).json())


def test_a_streamed_steer_is_documented_with_its_parts(openapi, server):
    documented = openapi["paths"]["/steer"]["post"]["responses"]["200"]
    for event in ("part", "output", "error"):
        assert f"`{event}`" in documented["description"]
    assert set(documented["content"]) == {"application/json", "text/event-stream"}
    name = documented["content"]["text/event-stream"]["schema"]["$ref"].rsplit("/", 1)[1]
    fields = openapi["components"]["schemas"][name]["properties"]
    body = {**http_docs.EXAMPLES["steer"], "stream": True}
    first = post(server, "steer", body, Accept="text/event-stream").text.split("\r\n\r\n")[0]
    assert set(json.loads(first.partition("data: ")[2])) == set(fields)


def test_only_a_server_with_a_secret_documents_its_header(openapi, guarded):
    assert "security" not in openapi["paths"]["/steer"]["post"]
    document = get(guarded, "/openapi.json").json()
    [scheme] = document["components"]["securitySchemes"].values()
    assert scheme == {"type": "apiKey", "in": "header", "name": "x-secret-key"}
    assert all(document["paths"][f"/{action}"]["post"]["security"] for action in ACTIONS)


def test_the_page_and_all_that_it_loads_come_from_this_server(server):
    response = get(server, "/docs")
    assert response.headers["Content-Type"].startswith("text/html")
    assert "openapi.json" in response.text
    loaded = re.findall(r'(?:src|href)="([^"]+)"', response.text)
    assert len(loaded) == 3
    for address in loaded:
        assert not re.match(r"\w+:|/", address), "absolute addresses break behind a proxy"
        assert get(server, f"/{address}").status_code == 200


SCHEMATHESIS = shutil.which(
    "schemathesis", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
)
# That a valid body is accepted isn't asked: OpenAPI can't say "prompt or messages, not both".
# That no status is 5xx isn't either, for a deadline that has passed is a documented 503.
CHECKS = (
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
    "ignored_auth",
)


@pytest.mark.skipif(SCHEMATHESIS is None, reason="schemathesis is not installed")
def test_whatever_schemathesis_sends_is_answered_as_documented(guarded, caplog, tmp_path):
    done = subprocess.run(
        [
            *(SCHEMATHESIS, "run", f"{guarded.url}/openapi.json", "-H", f"x-secret-key: {SECRET}"),
            *("--checks", ",".join(CHECKS), "--phases", "examples,coverage,fuzzing"),
            *("--max-examples", "20", "--seed", "1", "--continue-on-failure"),
            # Its own bounds of time are missed on a busy machine.
            *("--request-timeout", "300", "--suppress-health-check", "all"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
    assert get(guarded, "/check-busy").json() == {"busy": False}

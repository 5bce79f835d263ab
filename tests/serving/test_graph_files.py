"""circuit-tracer's own file at the doors: streamed over HTTP, refused where outputs are JSON."""

import asyncio
import gzip
import re
import shutil
import subprocess

import pytest
import requests
import torch
from circuit_tracer.graph import Graph

import handler as door
from settings import get_settings
from tests.support.demo_worker import GRAPH as JOB
from tests.support.demo_worker import ask, without_times
from tests.support.http_server import GRAPH, assert_error, get, post
from tests.support.polling import until
from tests.support.programs import ROOT, run, without
from tools.documents import read

FILE = {**GRAPH, "format": "pt"}


@pytest.fixture
def at_home(monkeypatch):
    """The settings of a worker with the demo model, read anew."""
    for name in ("MODEL_ID", "TRANSCODER_SET", "MAX_OUTPUT_BYTES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DEVICE", "cpu")
    get_settings.cache_clear()
    yield monkeypatch
    get_settings.cache_clear()


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_over_http_the_file_is_streamed_with_its_type_and_name(server, tmp_path, encoding):
    url, path = f"{server.url}/generate-graph", tmp_path / "graph.pt"
    headers = {"Accept-Encoding": encoding}
    with requests.post(url, json=FILE, headers=headers, stream=True, timeout=60) as response:
        assert response.status_code == 200
        assert response.headers["Content-Type"] == "application/octet-stream"
        name = "michael-jordan-joue-au.pt"
        assert response.headers["Content-Disposition"] == f'attachment; filename="{name}"'
        raw = response.raw.read(decode_content=False)
    if encoding == "identity":
        assert int(response.headers["Content-Length"]) == len(raw)
    path.write_bytes(gzip.decompress(raw) if encoding == "gzip" else raw)
    graph = Graph.from_pt(str(path))
    assert graph.n_pos == 5
    assert graph.logit_targets[0].token_str == " basket"
    assert torch.isfinite(graph.adjacency_matrix).all()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_page_s_curl_command_of_a_file_works_as_it_stands(server, tmp_path):
    page = read("docs/http.md")
    found = re.findall(r"^curl [^\n]*localhost:5004/generate-graph .*?(?=\n```)", page, re.M | re.S)
    [command] = [command for command in found if '"format": "pt"' in command]
    command = command.replace("http://localhost:5004", server.url) + " --silent"
    (tmp_path / "out").mkdir()
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    assert Graph.from_pt(str(tmp_path / "out/jordan.pt")).n_pos == 5


def test_within_an_envelope_the_output_is_json_and_a_file_is_refused(server):
    response = post(server, "generate-graph", {"input": FILE})
    assert_error(response, 422, "invalid_input")
    assert "signed_url" in response.json()["error"]


def test_a_client_that_goes_while_it_is_sent_the_file_leaves_the_worker_free(server):
    url = f"{server.url}/generate-graph"
    headers = {"Accept-Encoding": "identity"}
    response = requests.post(url, json=FILE, headers=headers, stream=True, timeout=60)
    assert len(response.raw.read(1000)) == 1000
    response.close()
    until(lambda: not get(server, "/health").json()["busy"])
    assert post(server, "generate-graph", FILE).status_code == 200


def test_the_document_of_the_api_tells_of_the_file(server):
    done = get(server, "/openapi.json").json()["paths"]["/generate-graph"]["post"]["responses"]
    assert set(done["200"]["content"]) == {"application/json", "application/octet-stream"}


@pytest.mark.usefixtures("at_home")
def test_on_runpod_a_file_without_a_url_is_one_clear_error(model_runs):
    result = asyncio.run(door.answer_job({"id": "job", "input": {**JOB, "format": "pt"}}))
    assert result.output is None
    assert result.error.startswith('invalid_input: format is "pt", a file, ')
    assert "pass signed_url" in result.error
    assert model_runs == []
    assert without_times(asyncio.run(door.handler({"id": "next", "input": JOB}))) == without_times(
        ask(JOB)
    )


def test_a_local_run_says_the_same_and_writes_nothing(tmp_path):
    job = '{"input": {"action": "generate-graph", "prompt": "Hi", "format": "pt"}}'
    environment = {**without("MODEL_ID", "TRANSCODER_SET"), "DEVICE": "cpu"}
    environment["PYTHONPATH"] = str(ROOT)
    done = run(ROOT / "handler.py", "--test_input", job, cwd=tmp_path, env=environment)
    assert done.returncode == 1
    said = done.stdout + done.stderr
    assert "pass signed_url" in said
    assert "start.py" in said
    assert list(tmp_path.glob("out/*")) == []

"""The first job of a worker finds everything imported and compiled that a job takes."""

import subprocess
import sys

import pytest

from tests.support.programs import ROOT

# Each prints the modules that the first job of an action imports, after a start as the door's own.
HTTP = """
import sys, requests, start
from serving import startup
settings = startup.prepare()
startup.load(settings, *start.LIBRARIES, check=True)
from serving.http_docs import EXAMPLES
from tests.support.http_server import get, post, serving
from tests.support.raw_server import RawServer, answer
with RawServer([answer(200)]) as store, serving(upload_allowed_hosts=("127.0.0.1",)) as server:
    get(server, "/ping")
    graph = EXAMPLES["generate-graph"]
    uploaded = {**graph, "signed_url": store.url(), "compress": True}
    for action, body in [("generate-graph", uploaded), *EXAMPLES.items()]:
        before = set(sys.modules)
        assert post(server, action, body).ok
        print(action, set(sys.modules) - before)
"""
RUNPOD = """
import asyncio, sys, handler
from serving import fitness, startup
startup.load(startup.prepare(), "serving.runpod_loop", check=True)
from serving.http_docs import EXAMPLES
for action, body in EXAMPLES.items():
    before = set(sys.modules)
    output = asyncio.run(handler.handler({"id": "1", "input": {"action": action, **body}}))
    assert "error" not in output
    print(action, set(sys.modules) - before)
"""


@pytest.mark.parametrize("door", [HTTP, RUNPOD], ids=["HTTP", "Runpod"])
def test_no_first_job_of_an_action_imports_a_module(door, monkeypatch):
    for name in ("MODEL_ID", "TRANSCODER_SET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DEVICE", "cpu")
    done = subprocess.run(
        [sys.executable, "-c", door], cwd=ROOT, capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert len(lines) >= 4
    assert [line for line in lines if not line.endswith(" set()")] == []

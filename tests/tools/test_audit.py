"""The audit compares every locked package with the database, and says when it could not.

Index and database are served over loopback.
"""

import json
import subprocess
import sys
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler

import pytest
import yaml

from tests.support.handler_thread import answering
from tests.support.package_index import serving_packages
from tests.support.programs import ROOT, without
from tools.audit import LOCKS, pins

ADVISORY = {
    "id": "PYSEC-2026-1",
    "modified": "2026-01-01T00:00:00Z",
    "published": "2026-01-01T00:00:00Z",
    "summary": "a template leaves its sandbox",
    "affected": [
        {
            "package": {"name": "helper", "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "1.1"}]}],
            "versions": ["1.0"],
        }
    ],
}


@contextmanager
def database(*vulnerable: str):
    """OSV's interface, which knows these packages as vulnerable; gives URL and questions."""
    asked = set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            queries = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["queries"]
            asked.update((query["package"]["name"], query["version"]) for query in queries)
            known = {"vulns": [{"id": ADVISORY["id"], "modified": ADVISORY["modified"]}]}
            found = [known if q["package"]["name"] in vulnerable else {} for q in queries]
            self.reply({"results": found})

        def do_GET(self):
            self.reply(ADVISORY)

        def reply(self, content):
            body = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, form, *args):
            pass

    with answering(Handler) as url:
        yield f"{url}/", asked


@pytest.fixture
def locked(tmp_path):
    """A folder of lock files, and the URL of the index that has their packages."""
    with serving_packages(tmp_path / "packages") as indexes:
        (tmp_path / LOCKS[0]).write_text(indexes.add("simple", "helper", "1.0"))
        cuda = indexes.add("simple", "driver", "2.0")
        marked = cuda.replace("==2.0", "==2.0 ; platform_machine == 'x86_64'", 1)
        (tmp_path / LOCKS[1]).write_text(marked)
        (tmp_path / LOCKS[2]).write_text(indexes.add("simple", "checker", "3.0"))
        yield tmp_path, f"{indexes.url}/simple/"


def audit(locked, service: str) -> subprocess.CompletedProcess[str]:
    folder, index = locked
    program = (
        "import sys; from pathlib import Path; from tools import audit;"
        "sys.exit(audit.main(sys.argv[2:], Path(sys.argv[1])))"
    )
    options = ["--default-index", index, "--service-url", service, "--cache-dir", folder / "cache"]
    return subprocess.run(
        [sys.executable, "-c", program, str(folder), *map(str, options)],
        cwd=ROOT,
        env={**without(prefix="UV_"), "UV_HTTP_RETRIES": "0", "UV_NO_CONFIG": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_package_of_every_lock_is_asked_for_in_its_version(locked):
    with database() as (url, asked):
        done = audit(locked, url)
    assert done.returncode == 0, done.stderr
    assert asked == {("helper", "1.0"), ("driver", "2.0"), ("checker", "3.0")}


def test_a_known_vulnerability_is_told_and_fails(locked):
    with database("helper") as (url, _):
        done = audit(locked, url)
    assert done.returncode == 1
    assert "helper 1.0 has 1 known vulnerability" in done.stdout
    assert "PYSEC-2026-1" in done.stdout
    assert "Fixed in: 1.1" in done.stdout


def test_a_database_that_can_not_be_reached_is_told_in_a_sentence(locked):
    with database() as (url, _):
        pass  # its port is closed now
    done = audit(locked, url)
    assert done.returncode == 2
    assert "Nothing was audited: the 3 locked packages could not be compared" in done.stderr


def test_an_index_without_the_packages_is_not_taken_for_a_vulnerability(locked):
    (locked[0] / LOCKS[0]).write_text("absent==1.0 \\\n    --hash=sha256:0\n")
    with database() as (url, asked):
        done = audit(locked, url)
    assert done.returncode == 2
    assert "Nothing was audited" in done.stderr
    assert not asked


def test_the_pins_are_all_packages_of_our_own_lock_files():
    pinned = [pin for lock in LOCKS for pin in pins((ROOT / lock).read_text())]
    assert len(pinned) == len(set(pinned)) > 100
    assert all("==" in pin and "--hash" not in pin and "\\" not in pin for pin in pinned)
    names = {pin.partition("==")[0] for pin in pinned}
    assert {"torch", "jinja2", "uv", "triton"} <= names


def test_the_workflow_installs_the_locked_uv_and_runs_the_audit():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "audit.yml").read_text())
    assert workflow["permissions"] == {"contents": "read"}
    install, run = [step["run"] for step in workflow["jobs"]["audit"]["steps"] if "run" in step]
    selected = install.partition("\n")[2].partition("|")[0].replace("\\", "").strip()
    done = subprocess.run(["bash", "-c", selected], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.startswith("uv==")
    assert {line[0] for line in done.stdout.splitlines()[1:]} == {" "}
    assert run.strip().endswith("-m tools.audit")

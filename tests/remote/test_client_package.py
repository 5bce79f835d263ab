"""What `pip install .` installs, in an environment that has what the package requires, no more."""

import json
import re
import signal
import subprocess
import sys
import tomllib
import venv
from importlib.metadata import Distribution, distribution, distributions
from pathlib import Path

import pytest
import requests
from packaging.requirements import Requirement

from tests.support.demo_worker import PROMPT
from tests.support.http_server import serving
from tests.support.polling import LONGEST_S
from tests.support.programs import ROOT

VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
NAMES = {"attribution_client", f"attribution_client-{VERSION}.dist-info"}
DEMO = {
    "slug": "demo",
    "scan": "demo",
    "prompt": PROMPT,
    "prompt_tokens": [PROMPT],
    "info": {"transcoder_set": "demo/transcoders"},
}
IMPORT_ALL = """
import importlib.util, pkgutil, sys
import attribution_client
for module in pkgutil.walk_packages(attribution_client.__path__, "attribution_client."):
    importlib.import_module(module.name)
    print(module.name)
top = ["client", "schemas", "contract", "errors", "remote", "viewer", "web_assets", "demo", "torch"]
print([name for name in top if name in sys.modules or importlib.util.find_spec(name)])
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """A virtual environment with the package, and links to the packages that it requires."""
    directory = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wheel = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", directory, ROOT]
    subprocess.run(wheel, check=True)
    venv.create(directory / "venv", symlinks=True)
    into = [*pip, "--python", directory / "venv/bin/python", "install", "--no-deps", "--no-index"]
    subprocess.run([*into, *directory.glob("*.whl")], check=True)
    [site] = directory.glob("venv/lib/python*/site-packages")
    assert {path.name for path in site.iterdir()} == NAMES
    [client] = distributions(name="attribution-client", path=[str(site)])
    link_requirements(client, site)
    return directory / "venv"


def link_requirements(package: Distribution, site: Path) -> None:
    """Put links to this interpreter's copies of what a package requires into a folder."""
    for requirement in map(Requirement, package.requires or []):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        required = distribution(requirement.name)
        assert requirement.specifier.contains(required.version)
        for name in {file.parts[0] for file in required.files or []} - {"..", "__pycache__"}:
            if not (site / name).exists():
                (site / name).symlink_to(str(required.locate_file(name)))
        link_requirements(required, site)


@pytest.fixture
def run(environment, tmp_path):
    """Run a command of the environment in an empty folder; what it prints."""

    def run_command(*command):
        full = [environment / "bin" / command[0], *command[1:]]
        return subprocess.run(full, cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    return run_command


def test_its_command_tells_its_version(run):
    assert run("attribution_client", "--version") == f"attribution_client {VERSION}\n"


def test_ctrl_c_while_its_command_imports_modules_ends_it_quietly(environment, interrupted_at):
    command = environment / "bin" / "attribution_client"
    said = interrupted_at("orjson", environment / "bin" / "python", command, "health")
    assert said == (130, "stopped\n")


def test_all_of_it_can_be_imported_and_no_other_name_of_ours(run):
    *modules, other_names = run("python", "-c", IMPORT_ALL).splitlines()
    assert other_names == "[]"
    assert {"attribution_client.remote.servers", "attribution_client.viewer.server"} <= {*modules}


def test_its_command_and_its_client_get_the_worker_s_answers(run):
    with serving() as server:
        said = run("attribution_client", "forward-pass", PROMPT, "--url", server.url)
        assert '4         " au"' in said
        program = "from attribution_client import Client\n"
        program += f"print(Client.to_url({server.url!r}).forward_pass({PROMPT!r}).input_tokens[-1])"
        assert run("python", "-c", program) == " au\n"


def test_its_batch_writes_a_csv_index_without_pyarrow(run, tmp_path):
    (tmp_path / "prompts.txt").write_text(f"{PROMPT}\n")
    with serving() as server:
        command = ["attribution_client", "batch", "prompts.txt", "--out", "runs"]
        said = run(*command, "--url", server.url)
    assert "done    1, 0 failed, 0 missing" in said
    assert "no index.parquet: it needs `pip install pyarrow`" in said
    assert '" basket"' not in said
    assert " basket," in (tmp_path / "runs" / "index.csv").read_text()
    [graph] = (tmp_path / "runs" / "graphs").iterdir()
    assert run("attribution_client", "compare", graph, graph)
    assert run("attribution_client", "export", graph, "--to", "csv")


def test_its_view_serves_the_page_whole_with_the_demo_s_examples(environment, tmp_path):
    (tmp_path / "graph.json").write_text(json.dumps({"metadata": DEMO, "nodes": [], "links": []}))
    command = [environment / "bin" / "attribution_client", "view", "graph.json", "--no-browser"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        address = re.search(r"http://\S+/", process.stdout.readline())[0]
        page = requests.get(address, timeout=60).text
        files = re.findall(r"(?:src|href)='\./([^']+)'", page)
        assert len(files) > 20
        for name in files:
            assert requests.get(address + name, timeout=60).status_code == 200, name
        panel = requests.get(f"{address}features_of/demo/12877.json", timeout=60).json()
        assert panel["examples_quantiles"][0]["examples"]
        process.send_signal(signal.SIGINT)
        assert process.wait(LONGEST_S) == 0

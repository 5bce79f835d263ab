"""What the documents show can be parsed, and is run by `make docs-check` unless it says why not."""

import json
import re
from dataclasses import replace

import pytest
import yaml

from schemas import parse_request
from tests.support.control_plane import ControlPlane
from tools import runpod_rest
from tools.docs_check import NOT_RUN, PYTHON_PRELUDES, check, reason_not_to_run
from tools.docs_services import Services, runpod_api
from tools.documents import (
    DOCUMENTS,
    ROOT,
    Block,
    anchors,
    blocks,
    commands,
    is_shell,
    links,
    read,
)

BLOCKS = [block for document in DOCUMENTS for block in blocks(document)]
COMMANDS = [
    command for block in BLOCKS if block.language == "sh" for command in commands(block.text)
]
PROGRAMS = {"sh", "python", "typescript"}


def of(language):
    found = [block for block in BLOCKS if block.language == language]
    return pytest.mark.parametrize("block", found, ids=lambda block: block.place)


def test_every_document_is_there_and_every_block_s_language_is_known():
    assert all((ROOT / document).exists() for document in DOCUMENTS)
    assert {block.language for block in BLOCKS} <= PROGRAMS | {"json", "yaml", ""}


@of("python")
def test_a_python_program_compiles(block):
    compile(block.text, block.place, "exec")


@of("json")
def test_a_json_example_is_json_and_a_job_is_accepted(block):
    example = json.loads(block.text)
    if "input" in example:
        parse_request(example["input"])


@of("yaml")
def test_a_yaml_example_is_yaml(block):
    assert yaml.safe_load(block.text)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_one_that_a_shell_can_parse(command):
    assert is_shell(command)


def test_each_reason_not_to_run_a_command_is_still_needed():
    for pattern in NOT_RUN:
        assert any(re.match(pattern, command) for command in COMMANDS), pattern
    for word in PYTHON_PRELUDES:
        assert any(word in block.text for block in BLOCKS if block.language == "python"), word


def test_most_commands_are_run():
    run = [command for command in COMMANDS if reason_not_to_run(command) is None]
    assert sum(command.startswith("curl") for command in run) >= 6
    assert any("make run" in command for command in run)


def test_every_make_target_that_a_document_names_is_there():
    text = "".join(read(document) for document in DOCUMENTS)
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.M))
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert named <= targets
    assert targets - named <= {"clean"}


LINKS = [(document, *link) for document in DOCUMENTS for link in links(document)]


@pytest.mark.parametrize(("document", "path", "anchor"), LINKS)
def test_links_to_files_lead_to_files_and_headings_that_are_there(document, path, anchor):
    assert (ROOT / path).exists()
    if anchor:
        assert anchor in anchors(path)


def test_links_lead_to_files_of_the_repository_and_into_pages():
    assert ("README.md", "docs/http.md", "") in LINKS
    assert ("docs/http.md", "docs/actions.md", "errors") in LINKS
    assert not any(path.startswith("..") for _, path, _ in LINKS)
    assert "without-the-workers-packages" in anchors("docs/client.md")


@pytest.fixture
def runpod():
    services = Services()
    with ControlPlane() as plane, runpod_api(services, plane):
        yield services


REST = [block for block in BLOCKS if runpod_rest.HOST in block.text]


@pytest.mark.parametrize("block", REST, ids=lambda block: block.place)
def test_the_commands_that_make_an_endpoint_work_as_they_stand(block, runpod):
    outcome = check(block, runpod)
    assert outcome.failure is None, outcome.failure


@pytest.mark.skipif(runpod_rest.OPENAPI is None, reason="Runpod's OpenAPI document is not at hand")
@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ('"minCudaVersion"', '"minCuda"', "minCuda"),
        ('"pools"', '"ids"', "ids"),
        ('"QUEUE"', '"queue"', "queue"),
        ('"networkVolumes"', '"networkVolumeId"', "networkVolumeId"),
        ('"dataCenter"', '"dataCenterId"', "dataCenterId"),
        ('"serverless": true', '"isServerless": true', "isServerless"),
        ("v2/serverless", "v1/endpoints", "no /v1/endpoints"),
    ],
)
def test_a_body_that_runpod_s_api_refuses_is_refused_by_its_stand_in(right, wrong, said, runpod):
    block = next(block for block in REST if right in block.text)
    changed = replace(block, text=block.text.replace(right, wrong))
    assert said in (check(changed, runpod).failure or "")


@pytest.mark.skipif(runpod_rest.OPENAPI is None, reason="Runpod's OpenAPI document is not at hand")
def test_the_examples_of_runpod_s_own_document_are_accepted():
    assert runpod_rest.OPENAPI is not None
    paths = json.loads(runpod_rest.OPENAPI.read_text())["paths"]
    checked = 0
    for path, operations in paths.items():
        for method in operations.keys() & {"post", "patch"}:
            content = operations[method]["requestBody"]["content"]["application/json"]
            for example in content["examples"].values():
                body = example["value"]
                assert runpod_rest.faults(method, path.replace("{id}", "abc"), body) == []
                checked += 1
    assert checked >= 6


@pytest.mark.skipif(runpod_rest.OPENAPI is None, reason="Runpod's OpenAPI document is not at hand")
def test_what_runpod_s_api_has_is_got_with_its_key_alone(runpod):
    key = '-H "Authorization: Bearer $RUNPOD_API_KEY"'
    for path, header, said in (
        ("serverless/$ENDPOINT_ID/workers", key, None),
        ("serverless/$ENDPOINT_ID/nothing", key, "no /v2/serverless/"),
        ("serverless/$ENDPOINT_ID/workers", "", "Unauthorized"),
    ):
        command = f"curl {runpod_rest.HOST}/v2/{path} {header}"
        failure = check(Block("docs/runpod.md", 1, "sh", command), runpod).failure
        assert (said in (failure or "")) if said else failure is None


def test_a_block_that_fails_is_reported_with_what_it_printed():
    for text, language in (("echo seen; false", "sh"), ("raise SystemExit('seen')", "python")):
        outcome = check(Block("README.md", 1, language, text), Services())
        assert outcome.failure == "seen"


def test_a_command_keeps_its_lines_together():
    script = "# first\ncurl \\\n  -d '{\n}'\n\nmake run  # second\n"
    assert commands(script) == ["curl \\\n  -d '{\n}'", "make run"]
    for broken in ("echo 'open", "if true"):
        with pytest.raises(ValueError, match="no complete command"):
            commands(broken)


def test_the_typescript_compiler_s_lock_names_hashes_and_no_host():
    lock = json.loads((ROOT / "tools" / "typescript" / "package-lock.json").read_text())
    packages = [package for name, package in lock["packages"].items() if name]
    assert packages
    assert all(package["integrity"] and "resolved" not in package for package in packages)


def test_the_changelog_s_version_is_the_project_s():
    project = (ROOT / "pyproject.toml").read_text()
    version = re.search(r'^version = "(\S+)"$', project, re.M)
    assert version is not None
    assert version[1] in (ROOT / "CHANGELOG.md").read_text()

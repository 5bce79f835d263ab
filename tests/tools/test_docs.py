"""What the documents show can be parsed, and is run by `make docs-check` unless it says why not."""

import json
import re

import pytest

from schemas import parse_request
from tests.support.control_plane import ControlPlane
from tools.docs_check import NOT_RUN, PYTHON_PRELUDES, check, reason_not_to_run
from tools.docs_services import Services, runpod_api
from tools.documents import DOCUMENTS, ROOT, Block, all_blocks, commands, is_shell

BLOCKS = all_blocks()
COMMANDS = [
    command for block in BLOCKS if block.language == "sh" for command in commands(block.text)
]
PROGRAMS = {"sh", "python", "typescript"}


def of(language):
    found = [block for block in BLOCKS if block.language == language]
    return pytest.mark.parametrize("block", found, ids=lambda block: block.place)


def test_every_document_is_there_and_every_block_s_language_is_known():
    assert all((ROOT / document).exists() for document in DOCUMENTS)
    assert {block.language for block in BLOCKS} <= PROGRAMS | {"json", ""}


@of("python")
def test_a_python_program_compiles(block):
    compile(block.text, block.place, "exec")


@of("json")
def test_a_json_example_is_json_and_a_job_is_accepted(block):
    example = json.loads(block.text)
    if "input" in example:
        parse_request(example["input"])


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
    text = "".join((ROOT / document).read_text() for document in DOCUMENTS)
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.M))
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert named <= targets
    assert targets - named <= {"clean"}


def test_links_to_files_lead_somewhere():
    for document in DOCUMENTS:
        text = (ROOT / document).read_text()
        for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", text):
            assert (ROOT / document).parent.joinpath(target).exists(), f"{document}: {target}"


@pytest.fixture
def runpod():
    services = Services()
    with ControlPlane() as plane, runpod_api(services, plane):
        yield services


def test_the_commands_that_make_an_endpoint_send_what_runpod_s_api_has(runpod):
    [block] = [block for block in BLOCKS if "rest.runpod.io" in block.text]
    outcome = check(block, runpod)
    assert outcome.failure is None, outcome.failure
    wrong = Block("README.md", 1, "sh", block.text.replace('"gpuTypeIds"', '"gpuTypes"'))
    assert "unknown or missing: gpuTypes" in (check(wrong, runpod).failure or "")


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

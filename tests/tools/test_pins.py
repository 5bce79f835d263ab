"""What the image and its release are built from is named by its content: digest, commit or hash."""

import re

import pytest
import yaml
from dockerfile_parse import DockerfileParser

from tests.support.bake_file import BAKE
from tests.support.programs import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.y*ml"))
DIGEST = re.compile(r"[\w./-]+:[\w.-]+@sha256:[0-9a-f]{64}")
USES = re.compile(r"^\s*(?:- )?uses: (.*)$", re.M)
ACTION = re.compile(r"[\w-]+/[\w-]+(/[\w-]+)*@[0-9a-f]{40} # v\d+\.\d+\.\d+")


def test_there_are_workflows():
    assert {file.stem for file in WORKFLOWS} == {"audit", "release"}


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_an_action_is_named_by_its_commit_beside_its_version(file):
    used = USES.findall(file.read_text())
    assert used
    for action in used:
        assert ACTION.fullmatch(action), action


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_a_workflow_says_what_its_token_may_do_and_on_which_system_it_runs(file):
    workflow = yaml.safe_load(file.read_text())
    assert workflow["permissions"]["contents"] == "read"
    for job in workflow["jobs"].values():
        assert "latest" not in job["runs-on"]
        for step in job["steps"]:
            if "actions/checkout" in step.get("uses", ""):
                assert step["with"]["persist-credentials"] is False


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_an_action_has_one_commit_in_all_workflows(file):
    everywhere = {a for other in WORKFLOWS for a in USES.findall(other.read_text())}
    for action in USES.findall(file.read_text()):
        name = action.partition("@")[0]
        assert [other for other in everywhere if other.startswith(f"{name}@")] == [action]


def test_the_base_image_is_named_by_its_digest():
    text = (ROOT / "Dockerfile").read_text()
    [base] = re.findall(r"^ARG PYTHON_IMAGE=(.*)$", text, re.M)
    assert DIGEST.fullmatch(base)
    stages = set()
    for instruction in DockerfileParser(fileobj=(ROOT / "Dockerfile").open("rb")).structure:
        words = instruction["value"].split()
        if instruction["instruction"] == "FROM":
            assert words[0] == "${PYTHON_IMAGE}" or words[0] in stages
            stages.add(words[2])
        if instruction["instruction"] == "COPY":
            for word in words:
                if word.startswith("--from="):
                    assert word.removeprefix("--from=") in stages
        # Nothing else comes from the network but Debian's signed packages, and weights by choice.
        assert instruction["instruction"] != "ADD"
        assert not re.search(r"\b(curl|wget|git clone)\b", instruction["value"])
    assert {"build", "runtime", "worker"} <= stages


def test_no_target_of_the_bake_file_has_another_base():
    for block in BAKE["target"]:
        for target in block.values():
            assert "PYTHON_IMAGE" not in (target.get("args") or {})
            assert "contexts" not in target


def test_a_release_pushes_what_is_in_the_image_and_how_it_was_built():
    [job] = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())["jobs"].values()
    [build] = [step["run"] for step in job["steps"] if "bake" in step.get("run", "")]
    assert {"--push", "--sbom=true", "--provenance=mode=min"} <= set(build.split())
    # Docker's own builder can't attest; the one that this action makes can.
    assert any("docker/setup-buildx-action" in step.get("uses", "") for step in job["steps"])


@pytest.mark.parametrize("lock", sorted(ROOT.glob("*.lock")), ids=lambda lock: lock.name)
def test_every_locked_package_has_a_version_and_hashes(lock):
    entries = re.split(r"^(?=[^ ])", lock.read_text(), flags=re.M)[1:]
    assert entries
    for entry in entries:
        assert re.match(r"[a-z0-9.-]+(\[[a-z,-]+\])?==\S+", entry), entry[:80]
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry[:80]

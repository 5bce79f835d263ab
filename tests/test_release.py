"""The release workflow builds what docker-bake.hcl and the Dockerfile have, under the documents'
name."""

import json
import os
import re
import shutil
import subprocess
import tomllib

import pytest
import yaml

from tests.support.bake_file import BAKE, TARGETS
from tests.support.programs import ROOT
from tools.documents import DOCUMENTS, read
from tools.presets import REPOSITORY, image

WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())
TRIGGERS = WORKFLOW[True]  # YAML 1.1 reads the key `on` so
JOB = WORKFLOW["jobs"]["image"]
STEPS = {step.get("name", step.get("uses", "").split("@")[0]): step for step in JOB["steps"]}
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def run(step: str, tmp_path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a step's script as the runner does, in the repository."""
    for name in ("GITHUB_ENV", "GITHUB_STEP_SUMMARY"):
        variables.setdefault(name, str(tmp_path / name))
    return subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", STEPS[step]["run"]],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    )


def test_a_version_s_tag_starts_a_release_and_a_baked_image_is_built_by_hand():
    assert TRIGGERS["push"] == {"tags": ["v[0-9]+.[0-9]+.[0-9]+"]}
    assert TRIGGERS["workflow_dispatch"]["inputs"]["target"]["default"] in TARGETS
    assert JOB["env"]["TARGET"] == "${{ inputs.target || 'worker' }}"


def test_every_action_is_pinned_by_its_commit():
    used = [step["uses"] for step in JOB["steps"] if "uses" in step]
    assert len(used) == 3
    for action in used:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action)


def test_the_token_can_write_packages_and_nothing_else():
    assert WORKFLOW["permissions"] == {"contents": "read", "packages": "write"}
    secrets = re.findall(r"secrets\.(\w+)", json.dumps(WORKFLOW[True]) + json.dumps(JOB))
    assert secrets == ["GITHUB_TOKEN", "HF_TOKEN"]


def test_no_script_has_an_expression_in_it_which_a_name_could_break_out_of():
    for step in JOB["steps"]:
        assert "${{" not in step.get("run", "")


def test_the_build_sets_variables_and_arguments_that_there_are():
    variables = {name for block in BAKE["variable"] for name in block}
    assert variables == {"IMAGE", "TAG", "REVISION"}
    assert {"IMAGE", "REVISION"} <= set(JOB["env"])
    assert 'echo "TAG=' in STEPS["Take the version from the tag"]["run"]
    command = STEPS["Build and push"]["run"]
    assert {"bake", "--push", "--metadata-file"} <= set(command.split())
    arguments = set(re.findall(r"args\.(\w+)=", command))
    assert arguments <= set(re.findall(r"^ARG (\w+)=", (ROOT / "Dockerfile").read_text(), re.M))


def test_the_image_s_tag_is_the_version(tmp_path):
    run("Take the version from the tag", tmp_path, GITHUB_REF_NAME=f"v{VERSION}")
    assert (tmp_path / "GITHUB_ENV").read_text() == f"TAG={VERSION}\n"


def test_an_image_that_the_documents_do_not_name_is_not_built(tmp_path):
    step = "Hold the documents to the image's name"
    ours = JOB["env"]["IMAGE"].replace("${{ github.repository }}", REPOSITORY)
    assert run(step, tmp_path, IMAGE=ours, TAG=VERSION).returncode == 0
    for name, tag in ((ours, "9.9.9"), ("ghcr.io/someone/else", VERSION)):
        done = run(step, tmp_path, IMAGE=name, TAG=tag)
        assert done.returncode == 1
        assert f"The documents don't name {name}:{tag}" in done.stderr


@pytest.mark.skipif(shutil.which("jq") is None, reason="jq is not installed")
def test_the_digest_of_each_image_is_said(tmp_path):
    digest = "sha256:" + "0" * 64
    built = {"image.name": "ghcr.io/a/b:1", "containerimage.digest": digest}
    (tmp_path / "metadata.json").write_text(json.dumps({"worker": built, "buildx.build.ref": "r"}))
    script = STEPS["Say the name and the digest"]["run"]
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", script],
        cwd=tmp_path,
        env={**os.environ, "GITHUB_STEP_SUMMARY": str(tmp_path / "summary")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == (tmp_path / "summary").read_text() == f"ghcr.io/a/b:1@{digest}\n"


def test_the_documents_name_one_image_and_it_is_the_workflow_s():
    named = {name for page in DOCUMENTS for name in re.findall(r"ghcr\.io/[\w./:-]+\w", read(page))}
    assert named == {image()}
    assert image() == f"ghcr.io/{REPOSITORY}:{VERSION}"
    assert REPOSITORY.lower() == REPOSITORY  # as an image's name has to be

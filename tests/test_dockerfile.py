"""The image's build, step by step as the Dockerfile has it, in a folder that stands for its root.

`make image-check` installs the locked packages anew, as the build does; `make test` takes those
that are there.
"""

import contextlib
import io
import os
import re
import shlex
import shutil
import string
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from dockerfile_parse import DockerfileParser

from settings import VERSION
from tests.support.programs import ROOT
from tools.house import read_house

JOB = '{"input": {"action": "generate-graph", "prompt": "Rafael Nadal juega al"}}'
IMPORT_ALL = """
import importlib, pathlib
for path in sorted(pathlib.Path().rglob("*.py")):
    if ".venv" not in path.parts:
        importlib.import_module(".".join(path.with_suffix("").parts).removesuffix(".__init__"))
"""
ANSWER = "import handler; handler.main()"
# They change the system, so only a container can run them.
SYSTEM_COMMANDS = ("apt-get", "useradd")
AS_ROOT = pytest.mark.skipif(
    os.getuid() != 0 or shutil.which("setpriv") is None, reason="only root can give up being root"
)


def parse(text: str) -> dict[str, list[tuple[str, str]]]:
    """The instructions of each stage, its base's first."""
    found: dict[str, list[tuple[str, str]]] = {}
    current: list[tuple[str, str]] = []
    for step in DockerfileParser(fileobj=io.BytesIO(text.encode())).structure:
        if step["instruction"] == "FROM":
            base, _, name = step["value"].split()
            current = found[name] = list(found.get(base, []))
        elif step["instruction"] != "COMMENT":
            current.append((step["instruction"], step["value"]))
    return found


DOCKERFILE = (ROOT / "Dockerfile").read_text()
STAGES = parse(DOCKERFILE)


class Image:
    """A folder that stands for an image's root, and what a container's process would have."""

    def __init__(self, root: Path, stage: str, **args: str) -> None:
        self.root = root
        self.app = root / "app"
        self.steps = STAGES[stage]
        self.environment = dict(os.environ)
        for instruction, value in self.steps:
            if instruction == "ARG":
                name, _, default = shlex.split(value)[0].partition("=")
                args.setdefault(name, default)
            if instruction == "ENV":
                for pair in shlex.split(value):
                    name, _, value = pair.partition("=")
                    self._set(name, value, args)

    def _set(self, name: str, value: str, args: dict[str, str]) -> None:
        full = string.Template(value).substitute(self.environment | args)
        self.environment[name] = f"{self.root}{full}" if full.startswith("/") else full

    def copy(self) -> None:
        """What the COPY instructions bring in from the repository."""
        for sources, target in copies(self.steps):
            for path in (path for source in sources for path in ROOT.glob(source)):
                copied = self.app / (f"{target}{path.name}" if target.endswith("/") else target)
                copied.parent.mkdir(parents=True, exist_ok=True)
                if path.is_dir():
                    shutil.copytree(path, copied, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copy(path, copied)

    def run(self, *only: str) -> str:
        """Run what holds one of these words, or all that needs no system; what it prints."""
        printed = ""
        for instruction, value in self.steps:
            command = re.sub(r"^(--\S+\s+)+", "", value)
            if instruction != "RUN" or command.startswith(SYSTEM_COMMANDS):
                continue
            if not only or any(word in command for word in only):
                printed += self.call("bash", "-ec", command).stdout
        return printed

    def call(self, *command: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command,
            cwd=self.app,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr + done.stdout
        return done

    def last(self, instruction: str) -> list[str]:
        """ENTRYPOINT or CMD, at this root."""
        value = [value for name, value in self.steps if name == instruction][-1]
        words = shlex.split(value.strip("[]").replace(",", " "))
        return [f"{self.root}{word}" if word.startswith("/") else word for word in words]


def copies(steps: list[tuple[str, str]]) -> list[tuple[list[str], str]]:
    """(sources, target) of each COPY from the repository."""
    words = [shlex.split(value) for name, value in steps if name == "COPY"]
    return [(sources, target) for *sources, target in words if not sources[0].startswith("--")]


def test_the_copied_files_are_importable_and_answer_a_job_on_their_own(tmp_path):
    image = Image(tmp_path, "worker")
    image.environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    image.copy()
    image.run("compileall")
    done = image.call("python", "-c", IMPORT_ALL + ANSWER, "--test_input", JOB)
    assert '" tenis"' in done.stdout


def test_prefetch_needs_no_network_for_the_demo_and_fails_for_a_model_that_is_not_there(tmp_path):
    image = Image(tmp_path, "baked", MODEL_ID="demo")
    image.environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    image.copy()
    assert f"{image.app}/demo/transcoders (directory)" in image.run("prefetch")
    image.environment |= {"MODEL_ID": "/nowhere", "TRANSCODER_SET": "/nowhere/either"}
    with pytest.raises(AssertionError, match="/nowhere"):
        image.run("prefetch")


def public_interpreter() -> Path:
    """The folder of a `python3` that any user may run, as the image's is."""
    suits = "import ensurepip, ssl, sys; sys.exit(sys.version_info[:2] not in {(3, 11), (3, 12)})"
    for folder in [Path(sys.executable).resolve().parent, Path("/usr/local/bin"), Path("/usr/bin")]:
        command = [str(folder / "python3"), "-c", suits]
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            subprocess.run(command, user=10001, cwd="/", check=True, capture_output=True)
            return folder
    pytest.skip("no python3 of a version that suits and that any user may run")


@pytest.mark.soak
@AS_ROOT
def test_the_image_s_own_install_answers_a_job_as_another_user_than_root(public_directory):
    build = Image(public_directory, "build")
    build.environment["PATH"] = f"{public_interpreter()}:{os.environ['PATH']}"
    build.copy()
    build.run()
    image = Image(public_directory, "baked", MODEL_ID="demo")
    image.copy()
    image.run()
    (image.app / "out").mkdir()
    os.chown(image.app / "out", 10001, 10001)
    start = [*image.last("ENTRYPOINT"), *image.last("CMD")]
    done = image.call(*start, "--test_input", JOB)
    assert '" tenis"' in done.stdout
    written = next((image.app / "out").iterdir())
    assert written.stat().st_uid == 10001
    image.call(*image.last("ENTRYPOINT"), "python", "-c", IMPORT_ALL)


def test_the_image_has_the_modules_that_its_programs_import_and_no_others(tmp_path):
    image = Image(tmp_path, "worker")
    image.copy()
    assert not (image.app / "client.py").exists()
    house = read_house(ROOT)
    needed, waiting = set(), ["handler", "start", "model_loader"]
    while waiting:
        module = waiting.pop()
        if module not in needed:
            needed.add(module)
            package = module.rpartition(".")[0]
            waiting += [
                *house.imports[module],
                *[name for name in [package] if name in house.lines],
            ]
    assert set(read_house(image.app).lines) == needed


def test_of_the_web_pages_the_image_has_the_http_documents_alone():
    sources = {source for sources, _ in copies(STAGES["worker"]) for source in sources}
    pages = {source for source in sources if source.startswith("web_assets")}
    assert pages == {
        "web_assets/__init__.py",
        "web_assets/docs.html",
        "web_assets/vendor/swagger-ui-dist",
    }


def test_only_what_is_copied_is_sent_to_the_builder():
    sent = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.M)
    taken = {s for steps in STAGES.values() for sources, _ in copies(steps) for s in sources}
    assert sorted(sent) == sorted(taken)


def test_the_base_is_pinned_by_digest_and_the_version_is_the_project_s():
    assert re.search(
        r"^ARG PYTHON_IMAGE=python:3\.12\.\d+-\S+@sha256:[0-9a-f]{64}$", DOCKERFILE, re.M
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert ("ARG", f"VERSION={project['version']}") in STAGES["worker"]


def test_the_image_s_worker_knows_its_version_and_the_commit_it_was_built_from(tmp_path):
    environment = Image(tmp_path, "worker", REVISION="c0ffee").environment
    assert environment["WORKER_VERSION"] == VERSION
    assert environment["WORKER_REVISION"] == "c0ffee"


def test_no_secret_and_no_cache_stay_in_the_image():
    mounts = re.findall(r"--mount=\S+", DOCKERFILE)
    assert mounts == ["--mount=type=secret,id=hf_token"]
    kept = [value for steps in STAGES.values() for name, value in steps if name != "RUN"]
    assert not any("TOKEN" in value for value in kept)
    assert "PIP_NO_CACHE_DIR=1" in dict(STAGES["build"])["RUN"]


# The entry point


@pytest.fixture
def public_directory(tmp_path_factory):
    """A folder that any user may enter, which pytest's own are not."""
    directory = Path(subprocess.check_output(["mktemp", "--directory"], text=True).strip())
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


def user_of_the_command(
    hf_home: Path, started_as: int = 0, hf_hub_cache: str | Path = ""
) -> tuple[int, str]:
    """The user that the entry point runs its command as, and what it says on the way."""
    done = subprocess.run(
        ["/bin/sh", "-s", "id", "-u"],
        input=(ROOT / "entrypoint.sh").read_text(),
        env={**os.environ, "HF_HOME": str(hf_home), "HF_HUB_CACHE": str(hf_hub_cache)},
        cwd="/",
        user=started_as,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout), done.stderr


@AS_ROOT
def test_root_is_given_up_where_the_weights_folder_can_be_made(public_directory):
    volume = public_directory / "volume" / "huggingface-cache"
    assert user_of_the_command(volume) == (10001, "")
    assert volume.stat().st_uid == 10001
    assert user_of_the_command(volume) == (10001, "")


@AS_ROOT
def test_root_is_kept_and_said_where_only_root_can_write_weights(public_directory):
    (public_directory / "hub").mkdir()
    os.chown(public_directory, 10001, 10001)
    user, said = user_of_the_command(public_directory)
    assert user == 0
    assert f"chown -R 10001 {public_directory}" in said


@AS_ROOT
def test_the_folder_of_downloads_decides_where_it_is_set_apart(public_directory):
    downloads = public_directory / "downloads"
    assert user_of_the_command(Path("/"), hf_hub_cache=downloads) == (10001, "")
    assert downloads.stat().st_uid == 10001
    os.chown(downloads, 0, 0)
    user, said = user_of_the_command(public_directory / "home", hf_hub_cache=downloads)
    assert user == 0
    assert f"chown -R 10001 {downloads}" in said


@AS_ROOT
def test_root_is_given_up_where_root_itself_cannot_write_weights():
    assert user_of_the_command(Path("/dev/null/weights"))[0] == 10001


@AS_ROOT
def test_another_user_than_root_stays_who_it_is(public_directory):
    assert user_of_the_command(public_directory, started_as=12345) == (12345, "")


@AS_ROOT
def test_the_command_takes_the_entry_point_s_place_so_that_signals_reach_it(public_directory):
    for hf_home in (public_directory / "weights", Path("/")):  # as the worker, and as root
        entry_point = [ROOT / "entrypoint.sh", "sh", "-c", "echo $$"]
        environment = {**os.environ, "HF_HOME": str(hf_home)}
        with subprocess.Popen(entry_point, env=environment, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert int(process.stdout.read()) == process.pid


def command_of(directory: Path, *command: str, **environment: str) -> list[str]:
    """The command that the entry point runs, seen by a `python` that prints its arguments."""
    seen = directory / "python"
    seen.write_text('#!/bin/sh\necho python "$@"\n')
    seen.chmod(0o755)
    clean = {name: value for name, value in os.environ.items() if name != "PORT"}
    path = f"{directory}:{os.environ['PATH']}"
    done = subprocess.run(
        [ROOT / "entrypoint.sh", *command],
        env={**clean, "PATH": path, "HF_HOME": str(directory / "weights"), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


def test_with_a_port_the_image_s_own_command_is_the_http_server(public_directory):
    own = Image(public_directory, "worker").last("CMD")
    assert own == ["python", "-u", "handler.py"]
    server = ["python", "-u", "start.py"]
    assert command_of(public_directory, *own) == own
    assert command_of(public_directory, *own, PORT="") == own
    assert command_of(public_directory, *own, PORT="80") == server
    prefetch = ["python", "model_loader.py", "prefetch"]
    assert command_of(public_directory, *prefetch, PORT="80") == prefetch
    assert (ROOT / "start.py").exists()


@AS_ROOT
@pytest.mark.parametrize(("port", "opened"), [("80", "opened by 10001"), ("", "not allowed")])
def test_another_user_than_root_may_open_a_load_balancer_s_port(port, opened, public_directory):
    program = (
        "import os, socket\n"
        "try: socket.socket().bind(('127.0.0.1', 80)); print('opened by', os.getuid())\n"
        "except PermissionError: print('not allowed')\n"
        "except OSError: print('opened by', os.getuid())"  # who may, finds another program there
    )
    least = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    if least <= 80 and not port:
        pytest.skip("every user may open port 80 here")
    python = str(public_interpreter() / "python3")
    words = command_of(public_directory, python, "-c", program, PORT=port)
    assert " ".join(words) == opened


def test_the_entry_point_s_user_is_the_image_s():
    [number] = re.findall(r"^WORKER=(\d+)$", (ROOT / "entrypoint.sh").read_text(), re.M)
    assert f"useradd --uid {number} " in DOCKERFILE

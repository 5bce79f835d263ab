"""`make run` installs the locked packages, with torch from PyPI or from an index of one's own.

The packages are made here, and come over loopback into a throwaway folder.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.demo_worker import ROOT
from tests.support.package_index import PackageIndexes, serving_packages
from tools.documents import read

# It stands for the worker.
HANDLER = "import helper, torch\nprint('a job with torch', torch.__version__)\n"
LARGE = 1_000_000  # pip shows progress for what is larger than half of this


@dataclass
class Clone:
    """A folder with the Makefile, small lock files, and the indexes that they install from."""

    folder: Path
    indexes: PackageIndexes

    def make(self, *words: str) -> subprocess.CompletedProcess[str]:
        """`make` with these words; stdout has the output, stderr's too."""
        inherited = ("PIP_", "MAKE", "MFLAGS", "TORCH_INDEX", "VIRTUAL_ENV", "PYTHON")
        environment = {k: v for k, v in os.environ.items() if not k.startswith(inherited)}
        environment |= {
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_INDEX_URL": f"{self.indexes.url}/locked/",
            "PIP_NO_CACHE_DIR": "1",
            "PATH": f"{self.folder}/bin:{environment['PATH']}",
        }
        return subprocess.run(
            ["make", f"PYTHON={sys.executable}", *words],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )

    def system(self, name: str) -> None:
        """Let `uname` name another system and machine."""
        (self.folder / "bin").mkdir()
        script = self.folder / "bin" / "uname"
        script.write_text(f"#!/bin/sh\necho {name}\n")
        script.chmod(0o755)

    def installed(self) -> set[str]:
        """Name and version of each package in the environment, as pip writes them."""
        command = [f"{self.folder}/.venv/bin/python", "-m", "pip", "list", "--format=freeze"]
        lines = subprocess.check_output(command, text=True).splitlines()
        return {line for line in lines if not line.startswith(("pip=", "setuptools="))}


@contextmanager
def a_clone(folder: Path) -> Iterator[Clone]:
    with serving_packages(folder / "indexes") as indexes:
        entries = [
            indexes.add("locked", "helper", "1.0"),
            indexes.add("locked", "torch", "2.10.0", size=LARGE, requires="nvidia"),
            indexes.add("locked", "torchaudio", "3.0"),
        ]
        cuda = indexes.add("locked", "nvidia", "12.8")
        indexes.add("old", "torch", "2.9.1+cpu")
        indexes.add("cpu", "torch", "2.10.0+cpu", size=LARGE)
        indexes.add("cpu", "helper", "1.0")
        clone = Clone(folder / "clone", indexes)
        clone.folder.mkdir()
        shutil.copy(ROOT / "Makefile", clone.folder)
        (clone.folder / "requirements.lock").write_text("".join(entries))
        (clone.folder / "requirements-cuda.lock").write_text(cuda)
        (clone.folder / "handler.py").write_text(HANDLER)
        yield clone


@pytest.fixture
def clone(tmp_path):
    with a_clone(tmp_path) as made:
        yield made


@dataclass
class Ran:
    """`make run` in a clone, and again."""

    clone: Clone
    first: subprocess.CompletedProcess[str]
    asked_first: dict[str, set[str]]  # packages by index
    again: subprocess.CompletedProcess[str]


def run_twice(clone: Clone, *words: str) -> Ran:
    """`make run` with these words, then without."""
    first = clone.make("run", *words)
    assert first.returncode == 0, first.stdout
    asked = {index: clone.indexes.asked(index) for index in ("locked", "cpu")}
    clone.indexes.requests.clear()
    return Ran(clone, first, asked, clone.make("run"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A clone after `make run`, twice."""
    with a_clone(tmp_path_factory.mktemp("plain")) as made:
        made.system("Linux x86_64")
        yield run_twice(made)


@pytest.fixture(scope="module")
def cpu(tmp_path_factory):
    """A clone after `make run TORCH_INDEX=…`, then `make run`."""
    with a_clone(tmp_path_factory.mktemp("cpu")) as made:
        made.system("Linux x86_64")
        yield run_twice(made, f"TORCH_INDEX={made.indexes.url}/cpu/")


def test_without_an_index_torch_and_nvidia_s_libraries_come_from_the_lock_files(plain):
    assert plain.clone.installed() == {
        "helper==1.0",
        "nvidia==12.8",
        "torch==2.10.0",
        "torchaudio==3.0",
    }
    assert plain.asked_first["cpu"] == set()
    assert "a job with torch 2.10.0\n" in plain.first.stdout


def test_torch_index_gives_torch_alone_in_its_locked_version_without_nvidia_s_libraries(cpu):
    assert cpu.clone.installed() == {"helper==1.0", "torch==2.10.0+cpu", "torchaudio==3.0"}
    assert cpu.asked_first == {"cpu": {"torch"}, "locked": {"helper", "torchaudio"}}
    assert "a job with torch 2.10.0+cpu\n" in cpu.first.stdout


@pytest.mark.parametrize("installed", ["plain", "cpu"])
def test_the_next_make_run_installs_nothing(installed, request):
    ran = request.getfixturevalue(installed)
    assert ran.again.returncode == 0
    assert ran.clone.indexes.requests == []
    assert "pip" not in ran.again.stdout
    assert "a job with torch 2.10.0" in ran.again.stdout


@pytest.mark.parametrize("installed", ["plain", "cpu"])
def test_the_size_and_time_are_said_first_and_each_download_is_shown(installed, request):
    first = request.getfixturevalue(installed).first.stdout
    said, rest = first.split("\n", 1)
    assert re.search(r"about [\d.]+ GB to download.* [\d.]+ GB of disk.* \d+ min", said)
    assert re.search(r"Downloading \S*torch-2\.10\.0\S* \(1\.0 MB\)", rest)
    assert "1.0/1.0 MB" in rest


def test_the_size_is_that_of_the_cuda_build_only_where_it_is_what_is_installed(plain, cpu, clone):
    large, small = (ran.first.stdout.splitlines()[0] for ran in (plain, cpu))
    assert large != small
    assert "TORCH_INDEX=" in large
    assert "TORCH_INDEX=" not in small
    clone.system("Darwin arm64")
    assert f'echo "{small}"' in clone.make("--dry-run", "run").stdout


def test_the_readme_says_the_same_sizes_as_the_install(plain, cpu):
    readme = " ".join(read("README.md").split())
    for ran in (plain, cpu):
        sizes = re.findall(r"[\d.]+ (?:GB|minutes)", ran.first.stdout.splitlines()[0])
        assert len(sizes) >= 3
        assert not [size for size in sizes if size not in readme]


def test_an_index_without_the_locked_version_fails_at_once_and_says_what_to_do(clone):
    failed = clone.make("run", f"TORCH_INDEX={clone.indexes.url}/old/")
    assert failed.returncode != 0
    assert "\ntorch==2.10.0 can't be had from TORCH_INDEX" in failed.stdout
    assert "https://download.pytorch.org/whl/cpu has" in failed.stdout
    assert clone.indexes.asked("locked") == set()
    assert not (clone.folder / ".venv/.runtime").exists()


def test_with_torch_index_too_every_other_package_must_have_its_locked_hash(clone):
    clone.indexes.add("locked", "helper", "1.0", size=1)
    failed = clone.make("run", f"TORCH_INDEX={clone.indexes.url}/cpu/")
    assert failed.returncode != 0
    assert "DO NOT MATCH THE HASHES" in failed.stdout
    assert "helper==1.0" not in clone.installed()


def test_torch_index_replaces_the_cuda_build_that_an_interrupted_install_left(clone):
    shutil.rmtree(clone.indexes.folder / "locked" / "nvidia")
    assert clone.make("run").returncode != 0
    assert "torch==2.10.0" in clone.installed()
    done = clone.make("run", f"TORCH_INDEX={clone.indexes.url}/cpu/")
    assert done.returncode == 0, done.stdout
    assert clone.installed() == {"helper==1.0", "torch==2.10.0+cpu", "torchaudio==3.0"}


def test_when_another_package_changes_the_build_of_torch_stays_as_it_is(clone):
    assert clone.make("run", f"TORCH_INDEX={clone.indexes.url}/cpu/").returncode == 0
    added = clone.indexes.add("locked", "added", "1.0")
    with (clone.folder / "requirements.lock").open("a") as lock:
        lock.write(added)
    done = clone.make("run")
    assert done.returncode == 0, done.stdout
    assert clone.installed() >= {"added==1.0", "torch==2.10.0+cpu"}
    assert "nvidia" not in clone.indexes.asked("locked")


def test_a_python_of_another_version_is_refused_before_anything_is_installed(clone):
    python = clone.folder / "python3.10"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    failed = clone.make(f"PYTHON={python}", "run")
    assert failed.returncode != 0
    assert "Python 3.11 or 3.12 is needed: make PYTHON=" in failed.stdout
    assert not (clone.folder / ".venv").exists()

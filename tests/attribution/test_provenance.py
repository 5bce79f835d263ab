"""Graphs are credited to the circuit-tracer that made them, however it was installed."""

import json
from importlib.metadata import distributions, version
from pathlib import Path

import pytest

from attribution.provenance import PYPI_FORK, UPSTREAM, Provenance, provenance_of

AUTHORS = "circuit-tracer by Hanna & Piotrowski"
COMMIT = "4bb8c0e0123456789012345678901234567890ab"
FORK_S_LINKS = [
    f"Homepage, {PYPI_FORK}",
    f"Documentation, {PYPI_FORK}#readme",
    f"Original Repository, {UPSTREAM}",
]


def source_tree(folder: Path, *files: str) -> Path:
    """A package circuit_tracer in `folder`, with these files."""
    package = folder / "circuit_tracer"
    for name in ("__init__.py", *files):
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return package


def upstream_tree(folder: Path) -> Path:
    return source_tree(folder, "attribution/attribute_transformerlens.py")


def installation(
    folder: Path, release: str, links: list[str] | None = None, origin: dict | None = None
) -> None:
    """What pip writes beside the package."""
    metadata = folder / f"circuit_tracer-{release}.dist-info"
    metadata.mkdir(parents=True)
    headers = ["Metadata-Version: 2.4", "Name: circuit-tracer", f"Version: {release}"]
    headers += [f"Project-URL: {link}" for link in links or []]
    (metadata / "METADATA").write_text("\n".join(headers) + "\n")
    if origin is not None:
        (metadata / "direct_url.json").write_text(json.dumps(origin))


def provenance(package: Path, *path: Path) -> Provenance:
    return provenance_of(package, distributions(name="circuit-tracer", path=[*map(str, path)]))


def from_git(url: str) -> dict:
    return {"url": url, "vcs_info": {"vcs": "git", "commit_id": COMMIT}}


def test_the_one_on_pypi_is_a_fork_and_credited_as_one(tmp_path):
    package = source_tree(tmp_path)
    installation(tmp_path, "0.5.0", FORK_S_LINKS)
    expected = Provenance(f"{AUTHORS} (fork)", "0.5.0", PYPI_FORK)
    assert provenance(package, tmp_path) == expected


def test_the_lock_file_s_is_the_one_on_pypi():
    installed = next(iter(distributions(name="circuit-tracer")))
    package = Path(str(installed.locate_file("circuit_tracer")))
    found = provenance_of(package, [installed])
    assert found == Provenance(f"{AUTHORS} (fork)", version("circuit-tracer"), PYPI_FORK)


@pytest.mark.parametrize(
    "url",
    [
        f"{UPSTREAM}.git",
        UPSTREAM,
        "ssh://git@github.com/decoderesearch/circuit-tracer.git",
        "https://github.com/safety-research/circuit-tracer",
    ],
)
def test_upstream_from_git_is_credited_with_its_commit(tmp_path, url):
    package = upstream_tree(tmp_path)
    installation(tmp_path, "0.4.1", origin=from_git(url))
    assert provenance(package, tmp_path) == Provenance(AUTHORS, "0.4.1+4bb8c0e", UPSTREAM)


def test_another_fork_from_git_has_its_own_address_and_no_name_or_token_of_who_fetched_it(tmp_path):
    package = upstream_tree(tmp_path)
    installation(tmp_path, "0.4.1", origin=from_git("https://me:secret@github.com/me/tracer.git"))
    expected = Provenance(f"{AUTHORS} (fork)", "0.4.1+4bb8c0e", "https://github.com/me/tracer")
    assert provenance(package, tmp_path) == expected


def test_a_fork_on_another_server_has_its_own_address_without_a_token(tmp_path):
    package = upstream_tree(tmp_path)
    origin = from_git("https://me:secret@git.example.org/me/circuit-tracer?token=secret")
    installation(tmp_path, "0.4.1", origin=origin)
    assert provenance(package, tmp_path).url == "https://git.example.org/me/circuit-tracer"


def test_a_wheel_of_a_local_folder_is_known_by_its_modules_and_the_folder_is_not_told(tmp_path):
    upstream, fork = upstream_tree(tmp_path / "a"), source_tree(tmp_path / "b")
    for package in (upstream, fork):
        installation(package.parent, "0.4.1", origin={"url": "file:///home/me/x", "dir_info": {}})
    assert provenance(upstream, upstream.parent) == Provenance(AUTHORS, "0.4.1", UPSTREAM)
    assert provenance(fork, fork.parent) == Provenance(f"{AUTHORS} (fork)", "0.4.1", PYPI_FORK)


def test_a_source_tree_on_the_path_is_not_taken_for_what_is_installed(tmp_path):
    package = upstream_tree(tmp_path / "checkout")
    (tmp_path / "checkout" / "pyproject.toml").write_text('[project]\nversion = "0.4.1"\n')
    source_tree(tmp_path / "site")
    installation(tmp_path / "site", "0.5.0", FORK_S_LINKS)
    assert provenance(package, tmp_path / "site") == Provenance(AUTHORS, "0.4.1", UPSTREAM)


def test_an_editable_installation_is_its_source_tree(tmp_path):
    checkout = tmp_path / "checkout"
    package = source_tree(checkout / "src")
    origin = {"url": checkout.as_uri(), "dir_info": {"editable": True}}
    installation(tmp_path / "site", "0.6.0", FORK_S_LINKS, origin)
    expected = Provenance(f"{AUTHORS} (fork)", "0.6.0", PYPI_FORK)
    assert provenance(package, tmp_path / "site") == expected


def test_a_fork_s_source_tree_says_its_version_in_the_package(tmp_path):
    package = source_tree(tmp_path)
    (package / "_version.py").write_text('__version__ = "0.5.1"\n')
    (tmp_path / "pyproject.toml").write_text('[project]\ndynamic = ["version"]\n')
    assert provenance(package) == Provenance(f"{AUTHORS} (fork)", "0.5.1", PYPI_FORK)


def test_a_package_without_any_version_is_credited_all_the_same(tmp_path):
    assert provenance(upstream_tree(tmp_path)) == Provenance(AUTHORS, "unknown", UPSTREAM)

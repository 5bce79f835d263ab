"""Lays files out as Hugging Face's cache does."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

Files = Mapping[str, bytes]


def commit_of(repository: str, revision: str = "main") -> str:
    """A commit's name, forty hexadecimal digits as git's."""
    return hashlib.sha1(f"{repository}@{revision}".encode()).hexdigest()


def write_repository(
    cache: Path, repository: str, files: Files, *, revision: str = "main", refs: bool = True
) -> Path:
    """Write a repository into a cache: blobs by content, a snapshot of links, a ref.

    Returns:
        The snapshot's folder.
    """
    folder = cache / f"models--{repository.replace('/', '--')}"
    commit = commit_of(repository, revision)
    snapshot = folder / "snapshots" / commit
    for name, content in files.items():
        blob = folder / "blobs" / hashlib.sha256(content).hexdigest()
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        link = snapshot / name
        link.parent.mkdir(parents=True, exist_ok=True)
        depth = len(link.relative_to(folder).parts) - 1
        link.symlink_to(Path(*[".."] * depth) / "blobs" / blob.name)
    if refs:
        ref = folder / "refs" / revision
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(commit)
    return snapshot


def write_repositories(cache: Path, repositories: Mapping[str, Files]) -> None:
    """Write repositories, by their names, into a cache."""
    for name, files in repositories.items():
        write_repository(cache, name, files)


def files_of(directory: Path) -> dict[str, bytes]:
    """A directory's files by their relative names."""
    paths = [path for path in directory.rglob("*") if path.is_file()]
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in paths}

"""Which circuit-tracer is in use: its own repository's, PyPI's fork of it, or another.

Each of them calls itself circuit-tracer. An installation may record where it came from. A source
tree on the path, and a wheel without such a record, are recognised by their modules.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

UPSTREAM = "https://github.com/decoderesearch/circuit-tracer"
PYPI_FORK = "https://github.com/Caerii/circuit-tracer"

_AUTHORS = "circuit-tracer by Hanna & Piotrowski"
_FORMER_UPSTREAM = "https://github.com/safety-research/circuit-tracer"  # GitHub redirects it
_ONLY_UPSTREAM = Path("attribution", "attribute_transformerlens.py")
_NAMES_OF_HOMEPAGE = ("homepage", "repository", "source")


@dataclass(frozen=True)
class Provenance:
    """A circuit-tracer, as a graph's metadata credits it."""

    name: str
    version: str  # with the commit, where it was installed from one: 0.4.1+4bb8c0e
    url: str


def circuit_tracer_in_use() -> Provenance:
    """The circuit-tracer that `import circuit_tracer` would give, found without importing it."""
    spec = find_spec("circuit_tracer")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("circuit_tracer is not installed", name="circuit_tracer")
    return provenance_of(Path(spec.origin).parent, distributions(name="circuit-tracer"))


def provenance_of(package: Path, installed: Iterable[Distribution]) -> Provenance:
    """The provenance of the circuit-tracer whose modules are in `package`.

    Args:
        installed: distributions named circuit-tracer. The package may belong to one or to none.
    """
    own = next((d for d in installed if _has_installed(d, package)), None)
    version = own.version if own else _version_of_source(package)
    origin = _origin(own) if own else {}
    commit = origin.get("vcs_info", {}).get("commit_id", "")
    by_modules = UPSTREAM if (package / _ONLY_UPSTREAM).exists() else PYPI_FORK
    url = _public(origin.get("url", "")) or _public(_homepage(own) if own else "") or by_modules
    return Provenance(
        name=_AUTHORS if url == UPSTREAM else f"{_AUTHORS} (fork)",
        version=f"{version}+{commit[:7]}" if commit and "+" not in version else version,
        url=url,
    )


def _has_installed(distribution: Distribution, package: Path) -> bool:
    """Whether the package's files are the distribution's, in place or in its source tree."""
    package = package.resolve()
    if Path(str(distribution.locate_file(package.name))).resolve() == package:
        return True
    origin = _origin(distribution)
    is_editable = origin.get("dir_info", {}).get("editable", False)
    return is_editable and Path(urlsplit(origin["url"]).path).resolve() in package.parents


def _origin(distribution: Distribution) -> dict[str, Any]:
    """What pip recorded of an installation that came from a URL or a folder (PEP 610)."""
    origin: dict[str, Any] = json.loads(distribution.read_text("direct_url.json") or "{}")
    return origin


def _homepage(distribution: Distribution) -> str:
    metadata = distribution.metadata
    labelled = [entry.partition(",") for entry in metadata.get_all("Project-URL") or ()]
    urls = {label.strip().lower(): url.strip() for label, _, url in labelled}
    named = (urls[name] for name in _NAMES_OF_HOMEPAGE if name in urls)
    return next(named, (metadata.get_all("Home-page") or [""])[0])


def _public(url: str) -> str | None:
    """A repository's address in one form, or None for a local path and for no address.

    It has no user name or token, because it is published with each graph.
    """
    on_github = re.search(r"github\.com[:/]([\w.-]+)/([\w.-]+)", url)
    if on_github:
        found = f"https://github.com/{on_github[1]}/{on_github[2].removesuffix('.git')}"
        return UPSTREAM if found in (UPSTREAM, _FORMER_UPSTREAM) else found
    parts = urlsplit(url)
    is_web = parts.scheme.endswith(("http", "https")) and parts.hostname
    return f"https://{parts.hostname}{parts.path}" if is_web else None


def _version_of_source(package: Path) -> str:
    """The version in the `pyproject.toml` beside the package or in the package's own file."""
    project = package.resolve().parent / "pyproject.toml"
    if project.exists():
        version = tomllib.loads(project.read_text("utf-8")).get("project", {}).get("version")
        if version is not None:
            return str(version)
    own = package / "_version.py"
    found = re.search(r'__version__ = "(.+)"', own.read_text("utf-8")) if own.exists() else None
    return found[1] if found else "unknown"

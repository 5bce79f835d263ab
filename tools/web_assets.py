"""Fetch what `web_assets/pins.json` names from npm and PyPI into `web_assets/vendor/`.

    make web-assets                                      what is pinned; any other bytes are refused
    .venv/bin/python -m tools.web_assets --accept        pin what the named versions hold now

Needs `npm`, and the `pip` of this interpreter.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from web_assets import DIRECTORY, VENDOR

PINS = DIRECTORY / "pins.json"


def read_pins() -> list[dict[str, Any]]:
    """Each package: `package`, `version`, `licence`, `registry` ("npm" or "pypi"), and `files`,
    a path inside the package to its SHA-256."""
    pins: list[dict[str, Any]] = json.loads(PINS.read_text())
    return pins


def stored_at(package: str, path: str) -> Path:
    """Where a file of a package is kept: at its own path in the package's folder."""
    return VENDOR / package / path


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def fetch(pin: dict[str, Any]) -> dict[str, bytes]:
    """The bytes of a pin's files, as the registry has them."""
    package, version = pin["package"], pin["version"]
    pip_download = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    commands = {
        "npm": ["npm", "pack", f"{package}@{version}", "--silent"],
        "pypi": [*pip_download, f"{package}=={version}"],
    }
    with tempfile.TemporaryDirectory() as directory:
        command = commands[pin["registry"]]
        subprocess.run(command, cwd=directory, check=True, capture_output=True)
        [archive] = Path(directory).iterdir()
        try:
            return dict(_read(archive, pin["files"]))
        except KeyError as missing:
            raise SystemExit(f"{package} {version}: {missing}") from None


def _read(archive: Path, paths: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """Files of a wheel, or of npm's archive, which has everything in the folder `package`."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            yield from ((path, wheel.read(path)) for path in paths)
    else:
        with tarfile.open(archive) as packed:
            for path in paths:
                file = packed.extractfile(f"package/{path}")
                if file is None:
                    raise KeyError(f"{path} is no file")
                yield path, file.read()


def main() -> None:
    parser = argparse.ArgumentParser(description="Fetch the web pages' third-party files.")
    parser.add_argument("--accept", action="store_true", help="pin what comes")
    accept = parser.parse_args().accept
    pins = read_pins()
    for pin in pins:
        for path, data in fetch(pin).items():
            found = sha256(data)
            if accept:
                pin["files"][path] = found
            elif found != pin["files"][path]:
                raise SystemExit(
                    f"{pin['package']} {pin['version']}: {path} has SHA-256 {found}, "
                    f"pinned is {pin['files'][path]}; nothing of it was written"
                )
            target = stored_at(pin["package"], path)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
    if accept:
        PINS.write_text(json.dumps(pins, indent=2) + "\n")


if __name__ == "__main__":
    main()

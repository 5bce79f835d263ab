"""Fetch what `web_assets/pins.json` names from the npm registry into `web_assets/vendor/`.

    make web-assets                                      what is pinned; any other bytes are refused
    .venv/bin/python -m tools.web_assets --accept        pin what the named versions hold now

Needs `npm`.
"""

import argparse
import hashlib
import io
import json
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from web_assets import DIRECTORY, VENDOR

PINS = DIRECTORY / "pins.json"


def read_pins() -> list[dict[str, Any]]:
    """Each package: `package`, `version`, `licence`, and `files`, a path to its SHA-256."""
    pins: list[dict[str, Any]] = json.loads(PINS.read_text())
    return pins


def place(package: str, path: str) -> Path:
    """Where a file of a package lies."""
    return VENDOR / package / Path(path).name


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def fetch(package: str, version: str, paths: list[str]) -> dict[str, bytes]:
    """The bytes of these files of a published package."""
    with tempfile.TemporaryDirectory() as directory:
        subprocess.run(
            ["npm", "pack", f"{package}@{version}", "--silent"],
            cwd=directory,
            check=True,
            capture_output=True,
        )
        [archive] = Path(directory).glob("*.tgz")
        packed = archive.read_bytes()
    contents = {}
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive_file:
        for path in paths:
            member = archive_file.extractfile(f"package/{path}")
            if member is None:
                raise SystemExit(f"{package} {version}: {path} is no file")
            contents[path] = member.read()
    return contents


def main() -> None:
    parser = argparse.ArgumentParser(description="Fetch the web pages' third-party files.")
    parser.add_argument("--accept", action="store_true", help="pin what comes")
    accept = parser.parse_args().accept
    pins = read_pins()
    for pin in pins:
        for path, data in fetch(pin["package"], pin["version"], list(pin["files"])).items():
            found = sha256(data)
            if accept:
                pin["files"][path] = found
            elif found != pin["files"][path]:
                raise SystemExit(
                    f"{pin['package']} {pin['version']}: {path} has SHA-256 {found}, "
                    f"pinned is {pin['files'][path]}; nothing of it was written"
                )
            target = place(pin["package"], path)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
    if accept:
        PINS.write_text(json.dumps(pins, indent=2) + "\n")


if __name__ == "__main__":
    main()

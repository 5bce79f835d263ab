"""Made wheels, and a server on loopback with indexes of them that pip installs from."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from zipfile import ZipFile

from tests.support.handler_thread import answering


@dataclass
class PackageIndexes:
    """Indexes by name, each a folder of packages, and the paths that were asked of them."""

    folder: Path
    url: str = ""
    requests: list[str] = field(default_factory=list)  # "/index/package/wheel"

    def add(self, index: str, package: str, version: str, *, size: int = 0, requires: str = ""):
        """A wheel with the module `package` and `size` bytes more; its entry in a lock file."""
        path = self.folder / index / package / f"{package}-{version}-py3-none-any.whl"
        path.parent.mkdir(parents=True, exist_ok=True)
        about = f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n"
        if requires:
            about += f"Requires-Dist: {requires}\n"
        tags = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        with ZipFile(path, "w") as wheel:
            wheel.writestr(f"{package}.py", f"__version__ = {version!r}\n#" + "#" * size)
            for name, text in {"METADATA": about, "WHEEL": tags, "RECORD": ""}.items():
                wheel.writestr(f"{package}-{version}.dist-info/{name}", text)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        hashes = [f"--hash=sha256:{value}" for value in ("0" * 64, digest)]
        return " \\\n    ".join([f"{package}=={version}", *hashes]) + "\n"

    def asked(self, index: str) -> set[str]:
        """The packages that were asked for at an index."""
        parts = [path.split("/") for path in self.requests]
        return {package for _, name, package, *_ in parts if name == index}


@contextmanager
def serving_packages(folder: Path) -> Iterator[PackageIndexes]:
    indexes = PackageIndexes(folder)

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, form, *args):
            indexes.requests.append(self.path)

    with answering(Handler) as indexes.url:
        yield indexes

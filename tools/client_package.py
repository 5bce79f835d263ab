"""The build hook of the package `attribution_client`, which hatchling runs for `pip install .`.

In a checkout the client's modules import each other as top-level modules, such as `schemas`. An
installed package must not put such general names into its environment. So the modules are copied
under `attribution_client`, and their imports of each other get that name in front.
"""

import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGE = "attribution_client"
# Each source, and its path in the package.
SOURCES = {
    "client.py": "__init__.py",
    "errors.py": "errors.py",
    "schemas.py": "schemas.py",
    "contract": "contract",
    "remote": "remote",
    "viewer": "viewer",
    "web_assets": "web_assets",
    "demo/feature_examples.json.gz": "demo/feature_examples.json.gz",
    "demo/complete/feature_examples.json.gz": "demo/complete/feature_examples.json.gz",
}
# Only the worker uses these.
LEFT_OUT = shutil.ignore_patterns("__pycache__", "docs.html", "swagger-ui-dist")
MODULES = r"(errors|schemas|contract|remote|viewer|web_assets)"


def with_package_imports(code: str) -> str:
    """A module's code, in which the imports of the client's modules name the package."""
    code = re.sub(rf"^( *)from {MODULES}\b", rf"\1from {PACKAGE}.\2", code, flags=re.MULTILINE)
    return re.sub(rf"^( *)import {MODULES}$", rf"\1from {PACKAGE} import \2", code, flags=re.M)


class ClientPackage(BuildHookInterface):
    def initialize(self, _version: str, build_data: dict[str, Any]) -> None:
        self._directory = tempfile.TemporaryDirectory()
        package = Path(self._directory.name)
        for source, target in SOURCES.items():
            path = Path(self.root, source)
            (package / target).parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                shutil.copytree(path, package / target, ignore=LEFT_OUT)
            else:
                shutil.copy(path, package / target)
        for module in package.rglob("*.py"):
            module.write_text(with_package_imports(module.read_text()))
        (package / "py.typed").touch()
        build_data["force_include"][str(package)] = PACKAGE

    def finalize(self, *_: Any) -> None:
        self._directory.cleanup()

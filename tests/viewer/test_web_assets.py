"""The third-party files are those that are pinned, each beside its licence."""

import base64
import hashlib
import re
from pathlib import PurePath

from tools.web_assets import read_pins, sha256, stored_at
from web_assets import DIRECTORY, VENDOR

PINS = read_pins()


def test_every_pinned_file_is_there_with_its_bytes():
    for pin in PINS:
        for path, pinned in pin["files"].items():
            assert sha256(stored_at(pin["package"], path).read_bytes()) == pinned, path


def test_every_file_that_is_there_is_pinned():
    pinned = {stored_at(pin["package"], path) for pin in PINS for path in pin["files"]}
    assert {path for path in VENDOR.rglob("*") if path.is_file()} == pinned


def test_every_package_has_its_licence():
    for pin in PINS:
        assert pin["licence"]
        assert "LICENSE" in {PurePath(path).name for path in pin["files"]}


def test_the_page_of_the_http_documents_runs_its_own_scripts_alone_and_asks_its_own_server():
    text = (DIRECTORY / "docs.html").read_text()
    [policy] = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]+)">', text)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    [script] = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == f"'self' 'sha256-{digest}'"
    assert rules["connect-src"] == "'self'"

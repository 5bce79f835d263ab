"""The third-party files are those that are pinned, each beside its licence."""

from pathlib import PurePath

from tools.web_assets import read_pins, sha256, stored_at
from web_assets import VENDOR

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

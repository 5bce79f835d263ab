"""The README's tables say what the code does."""

import re
from pathlib import Path

import pytest

import errors
from loading.registry import REGISTRY
from settings import Settings
from tools.house import OUTSIDE, ROOMS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def rows(first_cell: str) -> dict[str, list[str]]:
    """The rows of the table whose heading starts with `first_cell`, by their first cell."""
    table = README.split(f"| {first_cell} |", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    return {row[0].strip("`"): row[1:] for row in cells}


def test_the_settings_table_has_every_setting_with_its_default_and_meaning():
    table = rows("setting")
    assert set(table) == {name.upper() for name in Settings.model_fields}
    for name, field in Settings.model_fields.items():
        default, meaning = table[name.upper()]
        assert meaning == field.description
        shown = {None: "none", (): "none"}.get(field.default, str(field.default))
        assert default.strip("`") == shown


def test_the_error_table_has_every_code():
    codes = {error.code for error in errors.WorkerError.__subclasses__()}
    assert set(rows("code")) == codes


@pytest.mark.parametrize("entry", REGISTRY)
def test_every_known_model_and_its_transcoders_are_listed(entry):
    assert f"`{entry.model}`" in README
    assert f"`{entry.transcoder_set}`" in README


def test_the_picture_of_the_architecture_has_every_room_in_the_order_of_imports():
    lines = README.split("Data goes one way", 1)[1].split("```")[1].strip().splitlines()
    names = [line.split()[0].removesuffix("/").removesuffix(".py") for line in lines]
    assert names == [*ROOMS, *(name for name in OUTSIDE if name != "tests")]


def test_links_to_files_lead_somewhere():
    for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target

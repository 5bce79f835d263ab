"""The rooms: imports lead down, never up and never in a circle."""

import textwrap
from pathlib import Path

import pytest

from tests.support.programs import ROOT
from tools.house import ROOMS, read_house, room_of, upward

HOUSE = read_house(ROOT)


def test_every_module_is_in_a_known_room() -> None:
    assert {room_of(module) for module in HOUSE.lines} == set(ROOMS)


def test_no_module_imports_itself_through_others() -> None:
    assert HOUSE.circles() == []


def test_no_room_imports_from_a_room_further_up() -> None:
    assert upward(HOUSE.arrows()) == []


@pytest.fixture
def written(tmp_path: Path):
    def write(**modules: str) -> Path:
        for name, source in modules.items():
            path = tmp_path / f"{name.replace('__', '/')}.py"
            path.parent.mkdir(exist_ok=True)
            path.write_text(textwrap.dedent(source))
        return tmp_path

    return write


def test_a_circle_and_an_upward_arrow_are_seen(written) -> None:
    house = read_house(
        written(
            loading__a="from loading import b",
            loading__b="def late():\n    import loading.a\n    import handler",
            handler="import loading.a",
        )
    )
    assert house.circles() == [["handler", "loading.a", "loading.b"]]
    assert upward(house.arrows()) == [("loading", "handler")]


def test_imports_for_types_alone_are_no_arrows(written) -> None:
    house = read_house(
        written(
            errors="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import handler",
            handler="import errors",
        )
    )
    assert house.circles() == []
    assert dict(house.arrows()) == {("handler", "errors"): 1}

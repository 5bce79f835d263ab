"""Ctrl-C in the client's first second, while modules are imported and the command line is read."""

import sys

import pytest


@pytest.mark.parametrize(
    "module", ["orjson", "pydantic", "requests", "rich.console", "remote.client"]
)
def test_ctrl_c_while_modules_are_imported_ends_as_quietly_as_later(interrupted_at, module):
    assert interrupted_at(module, sys.executable, "client.py", "health") == (130, "stopped\n")


def test_ctrl_c_while_a_file_that_an_option_names_is_read_ends_as_quietly(interrupted_at):
    command = [sys.executable, "client.py", "steer", "--messages", "turns.json"]
    assert interrupted_at("turns.json", *command) == (130, "stopped\n")

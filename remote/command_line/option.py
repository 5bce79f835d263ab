"""An option of a command: its flags, and the arguments of `add_argument`."""

from typing import Any

from remote.command_line.written_values import layers

Option = tuple[list[str], dict[str, Any]]


def option(flags: str, words: str | None = None, **settings: Any) -> Option:
    """An option with these flags, as `-o --output`, and these words of help."""
    return flags.split(), {"help": words, **settings}


def constrained_layers() -> Option:
    """The one of the commands that set features."""
    return option(
        "--constrained-layers",
        "freeze the MLPs of these layers: FIRST-LAST, or all, which freezes norms too",
        type=layers,
        metavar="LAYERS",
    )

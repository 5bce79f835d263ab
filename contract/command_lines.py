"""A command line that answers a misspelt command or option with the one that was meant."""

import sys
from argparse import Action, ArgumentError, ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from contract.closest import closest

_MOST_EXTRAS = 5


class Parser(ArgumentParser):
    """An ArgumentParser whose errors are short and name what is closest.

    argparse itself suggests nothing before Python 3.14, and looks at unknown options only after
    all others.
    """

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, without the usage, which would push it out of sight."""
        self.exit(2, f"{self.prog}: error: {message}\nsee {self.prog} --help\n")

    def _check_value(self, action: Action, value: Any) -> None:
        """Name the closest of an argument's choices."""
        choices = action.choices
        if choices is None or value in choices:
            return
        known = [str(choice) for choice in choices]
        if action.dest == "command":
            raise ArgumentError(None, self.unknown_command(str(value), known))
        hint = did_you_mean(closest(str(value), known))
        raise ArgumentError(action, f"{str(value)!r} is none of {', '.join(known)}{hint}")

    def unknown_command(self, given: str, known: Sequence[str]) -> str:
        """What is said of a first argument that is no command."""
        hint = did_you_mean(closest(given, known))
        return f"{given[:60]!r} is none of the commands {', '.join(known)}{hint}"

    def hint_on(self, extra: str, given: Namespace) -> str:  # noqa: ARG002 - for those below
        """What else is said of an argument that is left over."""
        return ""

    def options(self) -> list[str]:
        return [option for action in self._actions for option in action.option_strings]

    def commands(self) -> dict[str, "Parser"]:
        """The parsers of the commands, by name."""
        for action in self._actions:
            if action.dest == "command" and isinstance(action.choices, dict):
                return action.choices
        return {}

    def _check_options(self, arguments: Sequence[str]) -> None:
        """Refuse an unknown option before its value is taken for something else."""
        command = next((word for word in arguments if word in self.commands()), None)
        if command is not None:
            at = arguments.index(command)
            self.commands()[command]._check_options(arguments[at + 1 :])
            arguments = arguments[:at]
        for argument in _options_of(arguments):
            name = argument.partition("=")[0]
            if not any(option.startswith(name) for option in self.options()):
                close = closest(name, [option for option in self.options() if option[:2] == "--"])
                self.error(f"there is no option {name[:60]}{did_you_mean(close)}")

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Namespace | None = None
    ) -> Namespace:
        arguments = sys.argv[1:] if args is None else args
        self._check_options(arguments)
        given, extras = self.parse_known_args(arguments, namespace)
        if extras:
            command = self.commands().get(getattr(given, "command", ""), self)
            shown = " ".join(extra[:60] for extra in extras[:_MOST_EXTRAS])
            command.error(f"{shown!r} is unexpected{command.hint_on(extras[0], given)}")
        return given


def did_you_mean(close: str | None) -> str:
    return "" if close is None else f"; did you mean {close}?"


def _options_of(arguments: Sequence[str]) -> Iterator[str]:
    """The arguments that argparse takes for options: up to `--`, without a space."""
    for argument in arguments:
        if argument == "--":
            return
        if argument.startswith("--") and " " not in argument:
            yield argument

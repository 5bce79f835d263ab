"""The client's command line, which answers what is misspelt with what was meant."""

from argparse import Namespace
from collections.abc import Sequence

from contract import command_lines
from contract.closest import closest
from contract.command_lines import did_you_mean
from schemas import canonical_action


class Parser(command_lines.Parser):
    """A parser that knows actions by all their names, and that prompts take quotes."""

    def unknown_command(self, given: str, known: Sequence[str]) -> str:
        if " " in given.strip():
            return "the first argument is a command, such as graph; the prompt follows it"
        action = canonical_action(given.lower())
        names = {canonical_action(name): name for name in known}
        close = names.get(action) or closest(given.replace("_", "-"), known)
        return f"{given[:60]!r} is none of the commands {', '.join(known)}{did_you_mean(close)}"

    def hint_on(self, extra: str, given: Namespace) -> str:
        if extra.startswith("-"):
            return "; a text that begins with - goes behind -- at the end"
        if getattr(given, "prompt", None) is not None:
            return "; a prompt of several words takes quotes around it"
        return super().hint_on(extra, given)

"""The programs and commands that the documents show."""

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "demo/README.md")


@dataclass(frozen=True)
class Block:
    """A fenced block of a document; `line` is that of its first line, from 1."""

    document: str
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.document}:{self.line}"


def blocks(document: str) -> Iterator[Block]:
    """The fenced blocks of a document, in order."""
    text = (ROOT / document).read_text()
    for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S):
        line = text.count("\n", 0, found.start(2)) + 1
        yield Block(document, line, found[1], found[2])


def all_blocks() -> list[Block]:
    """The fenced blocks of every document."""
    return [block for document in DOCUMENTS for block in blocks(document)]


def commands(script: str) -> list[str]:
    """A shell script's commands, each with all of its lines, without the comments.

    Raises:
        ValueError: the last command isn't complete.
    """
    found, pending = [], ""
    for line in script.splitlines():
        pending += re.sub(r"(^|  +)# .*", "", line) + "\n"
        if not line.endswith("\\") and is_shell(pending):
            found.append(pending.strip())
            pending = ""
    if pending:
        raise ValueError(f"no complete command: {pending}")
    return [command for command in found if command]


def is_shell(text: str) -> bool:
    """Whether bash can parse it."""
    return subprocess.run(["bash", "-n"], input=text.encode(), capture_output=True).returncode == 0

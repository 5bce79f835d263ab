"""The documents: the programs and commands that they show, their tables, headings and links."""

import os
import re
import subprocess
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = tuple(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))
DOCUMENTS = (
    *("README.md", *PAGES),
    *("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "demo/README.md", ".runpod/README.md"),
)


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


def read(document: str) -> str:
    return (ROOT / document).read_text()


def blocks(document: str) -> Iterator[Block]:
    """The fenced blocks of a document, in order; those of a list without its indentation."""
    text = read(document)
    for found in re.finditer(r"^( *)```(\w*)\n(.*?)^\1```$", text, re.M | re.S):
        line = text.count("\n", 0, found.start(3)) + 1
        yield Block(document, line, found[2], textwrap.dedent(found[3]))


def rows(document: str, first_cell: str) -> dict[str, list[str]]:
    """The rows of the table whose heading starts with `first_cell`, by their first cell."""
    table = read(document).split(f"| {first_cell} |", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    return {row[0].strip("`"): row[1:] for row in cells}


def links(document: str) -> Iterator[tuple[str, str]]:
    """Path, from the root, and anchor of each link of a document to a file of the repository."""
    for target in re.findall(r"\]\((?!https?://)([^)]+)\)", read(document)):
        path, _, anchor = target.partition("#")
        absolute = (ROOT / document).parent / path if path else ROOT / document
        yield os.path.relpath(absolute, ROOT), anchor


def anchors(document: str) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```$", "", read(document), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


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

"""The file of a batch: CSV, JSON lines or plain text in, a checked `generate-graph` job a row out.

    prompts.csv    a column `prompt` (or `messages`), and a column for each field that rows set
    prompts.jsonl  an object a line with the same names
    prompts.txt    a prompt a line; empty lines are left out

Besides fields of the request a row may have `download_url`, a presigned GET of what its
`signed_url` puts, and columns to keep: they are no part of the job, and go into the index.
"""

import csv
import hashlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

import schemas
from contract.closest import closest
from contract.json_text import NotJson, read_json
from errors import WorkerError
from remote.command_line.field_options import NOT_IN_BATCH, simple_type
from remote.errors import WrongFile

_FIELDS = schemas.GenerateGraphRequest.model_fields
# They say where a graph goes or by when, not which graph it is; a signed URL is new each day.
_NOT_THE_GRAPH_S = {"signed_url", "signed_headers", "compress", "deadline"}
_LONGEST_CELL = 10_000_000
_LONGEST_WORDS = 60  # of a prompt, in a name
_HASH_DIGITS = 10
_MOST_FAULTS = 3
_FLAGS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


@dataclass(frozen=True)
class PromptRow:
    """A row: its line in the file, its job, and the name of everything that is kept of it.

    The name is made from the job, so that a row keeps it wherever it stands in the file, and two
    rows with the same job share one graph.
    """

    line: int
    name: str
    job: dict[str, Any]
    download_url: str | None = None
    kept: dict[str, str] = field(default_factory=dict)

    @property
    def prompt(self) -> str:
        """The prompt, or the messages as JSON."""
        return str(self.job.get("prompt") or orjson.dumps(self.job["messages"]).decode())


def read_prompts(
    path: Path, defaults: Mapping[str, Any], keep: Sequence[str] = ()
) -> list[PromptRow]:
    """Read the rows of a file and check every one as the worker will.

    Args:
        defaults: fields of the request for rows that don't set them.
        keep: columns that are copied into the index.

    Raises:
        WrongFile: the file can't be read, is of no form that is known, has no row, or has a row
            that can't be right; the sentence names the lines.
    """
    readers = {".csv": _csv_rows, ".jsonl": _json_rows, ".txt": _text_rows}
    if path.suffix.lower() not in readers:
        hint = "; of .json make a .jsonl, an object a line" if path.suffix == ".json" else ""
        raise WrongFile(f"{path}: name a file of prompts that ends with {', '.join(readers)}{hint}")
    rows: list[PromptRow] = []
    faults: list[str] = []
    try:
        for line, cells in readers[path.suffix.lower()](path):
            try:
                rows.append(_row(line, cells, defaults, keep))
            except (WorkerError, ValueError) as error:
                words = error.sentence if isinstance(error, WorkerError) else str(error)
                faults.append(f"line {line}: {words}")
    except (OSError, UnicodeDecodeError, csv.Error, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else _why_unreadable(error)
        raise WrongFile(f"{path}: {reason}") from None
    if faults:
        more = len(faults) - _MOST_FAULTS
        ending = f"; and {more} more lines" if more > 0 else ""
        raise WrongFile(f"{path}: {'; '.join(faults[:_MOST_FAULTS])}{ending}")
    if not rows:
        raise WrongFile(f"{path}: there is no prompt in it")
    return rows


def _why_unreadable(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"it is not UTF-8 (byte {error.start}); save it as UTF-8"
    return str(error)


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(_LONGEST_CELL)
    reader = csv.DictReader(io.StringIO(_text(path), newline=""), strict=True)
    names = [name.strip() for name in reader.fieldnames or []]
    if not {"prompt", "messages"} & set(names):
        raise ValueError(
            f"its first line has to name the columns, and one of them is prompt{_why(names)}"
        )
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"two columns are called {twice!r}")
    reader.fieldnames = names
    for cells in reader:
        if None in cells:
            raise ValueError(
                f"line {reader.line_num}: more cells than columns; a cell with a comma needs quotes"
            )
        yield reader.line_num, {name: text for name, text in cells.items() if text}


def _why(names: Sequence[str]) -> str:
    """Why no column is called `prompt`, where that can be seen."""
    if len(names) == 1 and (";" in names[0] or "\t" in names[0]):
        return "; columns are separated by commas"
    close = closest("prompt", names)
    return "" if close is None else f"; rename {close!r} to prompt"


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, text in enumerate(_text(path).split("\n"), 1):
        if text.strip():
            try:
                fields = read_json(text)
            except NotJson as error:
                fault = str(error).removeprefix("line 1, ")
                if "the text ends here" in fault:
                    fault += "; each line is an object of its own"
                raise ValueError(f"line {number} is no JSON: {fault}") from None
            if not isinstance(fields, dict):
                no_list = ", without a list around them" if isinstance(fields, list) else ""
                raise ValueError(
                    f"line {number} is no object; write one a line{no_list}, such as {_EXAMPLE}"
                )
            yield number, {name: value for name, value in fields.items() if value is not None}


_EXAMPLE = '{"prompt": "Michael Jordan joue au"}'


def _text_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, text in enumerate(_text(path).split("\n"), 1):
        if text.strip():
            yield number, {"prompt": text.removesuffix("\r")}


def _text(path: Path) -> str:
    return path.read_bytes().decode("utf-8-sig")


def _row(
    line: int, cells: Mapping[str, Any], defaults: Mapping[str, Any], keep: Sequence[str]
) -> PromptRow:
    """Check a row.

    Raises:
        ValueError, WorkerError: it can't be right.
    """
    cells = dict(cells)
    kept = {name: _as_text(cells.pop(name, "")) for name in keep}
    download_url = cells.pop("download_url", None)
    given = {name: _value(name, cell) for name, cell in cells.items()}
    if NOT_IN_BATCH & given.keys():
        raise ValueError(
            f"{', '.join(sorted(NOT_IN_BATCH & given.keys()))} can't be set in a batch"
        )
    if download_url is not None and "signed_url" not in given:
        raise ValueError("download_url is given without signed_url")
    job = {"action": schemas.GenerateGraphRequest.action, **defaults, **given}
    request = schemas.parse_request(job)
    fields = request.model_dump(mode="json", exclude_unset=True)
    name = _name(fields)
    job = {"action": request.action, "slug_identifier": name, **fields}
    return PromptRow(line, name, job, download_url, kept)


def _value(name: str, cell: Any) -> Any:
    """The value of a field: of CSV's text what the field's type makes of it."""
    if not isinstance(cell, str) or name not in _FIELDS:
        return cell
    kind = simple_type(_FIELDS[name].annotation)
    if kind is str:
        return cell
    text = cell.strip()
    try:
        if kind is bool:
            return _FLAGS[text.lower()]
        if kind is not None:
            return kind(text)
        return read_json(text) if text[:1] in {"[", "{"} else text
    except NotJson as error:
        raise ValueError(
            f"{name} is {cell[:_LONGEST_WORDS]!r}, which is not JSON: {error}"
        ) from None
    except (ValueError, KeyError):
        wanted = "JSON" if kind is None else "true or false" if kind is bool else "a number"
        raise ValueError(f"{name} is {cell[:_LONGEST_WORDS]!r}, which is not {wanted}") from None


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _name(fields: Mapping[str, Any]) -> str:
    """A safe file name of a job: its slug or words of its prompt, and a hash of all of it."""
    graph = {name: value for name, value in fields.items() if name not in _NOT_THE_GRAPH_S}
    digest = hashlib.sha256(orjson.dumps(graph, option=orjson.OPT_SORT_KEYS)).hexdigest()
    text = fields.get("slug_identifier") or fields.get("prompt") or "messages"
    words = re.sub(r"[^a-z0-9]+", "-", text.lower())[:_LONGEST_WORDS].strip("-") or "prompt"
    return f"{words}-{digest[:_HASH_DIGITS]}"

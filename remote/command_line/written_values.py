"""How values are written on the command line: features, groups, experiments, targets, files."""

import os
import re
from argparse import ArgumentTypeError
from pathlib import Path
from typing import Any

import orjson

from contract.json_text import NotJson, read_json
from remote.command_line import meant_values
from remote.errors import WrongFile
from remote.graphs.groups import GraphGroups
from remote.graphs.reading import content_of
from remote.torch_file import begins_as_torch_s

_TARGET_FEATURE = re.compile(
    r"(?P<layer>\d+):(?P<index>\d+):(?P<position>\d+)(:(?P<kind>transcoder|lorsa))?"
)

_FEATURE = re.compile(
    r"((?P<kind>lorsa|transcoder):)?(?P<layer>\d+):(?P<index>\d+):(?P<read>\d+)(@(?P<changed>\d+|new))?"
    r"=(?P<change>0|[+-]\d*\.?\d+([eE][+-]?\d+)?)"
)

_LONGEST_NAME = 200  # of a file, in an error
_LAST_PORT = 65535
_LONGEST_NAME_BYTES = 255  # that file systems take
_SITE = re.compile(r"((?P<kind>lorsa|transcoder):)?(?P<layer>\d+):(?P<index>\d+):(?P<position>\d+)")
_NUMBER = r"[+-]?\d*\.?\d+(?:[eE][+-]?\d+)?"
_CHANGE = re.compile(rf"(?P<group>.+)(?P<how>[*=])(?P<number>{_NUMBER})")
_CHANGE_LIKE = re.compile(rf"[*=:×]\s*{_NUMBER}\s*$")


def feature(text: str) -> dict[str, Any]:
    found = _FEATURE.fullmatch(text)
    if found is None:
        raise ArgumentTypeError(
            f"{text!r} is not LAYER:INDEX:POSITION=CHANGE with a change of 0 (ablate), +N or -N; "
            f"such as 2:157:4=0 or 2:146:4=+10.8{meant_values.feature(text)}"
        )
    position, changed, change = int(found["read"]), found["changed"], found["change"]
    return {
        "layer": int(found["layer"]),
        "index": int(found["index"]),
        **({"kind": found["kind"]} if found["kind"] else {}),
        "token_active_position": position,
        **(
            {"steer_generated_tokens": True}
            if changed == "new"
            else {"steer_position": position if changed is None else int(changed)}
        ),
        **({"ablate": True} if change == "0" else {"delta": float(change)}),
    }


def group(text: str) -> tuple[str, list[dict[str, Any]]]:
    name, equals, sites = text.partition("=")
    found = [_SITE.fullmatch(site.strip()) for site in sites.split(",")]
    if not (name and equals) or None in found:
        raise ArgumentTypeError(
            f"{text!r} is not NAME=LAYER:INDEX:POSITION,...; such as French=2:157:4,1:120:4 or "
            f"name=lorsa:1:105:4{meant_values.group(text)}"
        )
    return name, [_site(site) for site in found if site]


def _site(found: re.Match[str]) -> dict[str, Any]:
    """A feature at a position, as requests name it; with its kind where that was written."""
    place = {name: int(found[name]) for name in ("layer", "index", "position")}
    return place if found["kind"] is None else {**place, "kind": found["kind"]}


def experiment(text: str) -> list[dict[str, Any]]:
    changes: list[dict[str, Any]] = []
    begun: str | None = None
    for piece in text.split(","):
        part = piece if begun is None else f"{begun},{piece}"
        found = _CHANGE.fullmatch(part.strip())
        if found is None:
            if _CHANGE_LIKE.search(part):
                raise _no_experiment(part)
            begun = part  # names may have commas in them, as '"," → " la"' has
            continue
        begun = None
        how = "scale" if found["how"] == "*" else "value"
        changes.append({"group": found["group"], how: float(found["number"])})
    if begun is not None:
        raise _no_experiment(begun)
    return changes


def _no_experiment(part: str) -> ArgumentTypeError:
    return ArgumentTypeError(
        f"{part!r} is not GROUP*SCALE or GROUP=VALUE; such as French*0 or Spanish=10.8"
        f"{meant_values.experiment(part)}"
    )


def layers(text: str) -> str | list[int]:
    found = re.fullmatch(r"(\d+)-(\d+)", text)
    if found is None and text != "all":
        raise ArgumentTypeError(
            f"{text!r} is not all or FIRST-LAST, such as 0-3{meant_values.layers(text)}"
        )
    return "all" if found is None else [int(found[1]), int(found[2])]


def side(text: str) -> list[str]:
    """The tokens of a difference's side: one, or those of a JSON list."""
    try:
        tokens = orjson.loads(text)
    except orjson.JSONDecodeError:
        return [text]
    is_list = isinstance(tokens, list) and all(isinstance(token, str) for token in tokens)
    return tokens if is_list else [text]


def target_feature(text: str) -> dict[str, Any]:
    found = _TARGET_FEATURE.fullmatch(text)
    if found is None:
        raise ArgumentTypeError(
            f"{text!r} is not LAYER:INDEX:POSITION or LAYER:INDEX:POSITION:lorsa; such as 2:157:4"
            f"{meant_values.target_feature(text)}"
        )
    return _site(found)


def groups_of_file(name: str) -> GraphGroups:
    try:
        return GraphGroups.of(Path(name), _json_of(name))
    except ValueError as error:
        raise ArgumentTypeError(f"{name}: {error}") from None


def _json_of(name: str) -> Any:
    if name.lstrip().startswith(("[", "{")):
        raise ArgumentTypeError("it takes the name of a file, and this is JSON: put it in a file")
    try:
        content = content_of(Path(name))
        if begins_as_torch_s(content):
            raise ArgumentTypeError(
                f"{name}: it is circuit-tracer's own file of a graph, and this reads JSON"
            )
        return read_json(content)
    except WrongFile as error:
        raise ArgumentTypeError(str(error)) from None
    except NotJson as error:
        raise ArgumentTypeError(f"{name} is no JSON: {error}") from None
    except ValueError:  # a null character
        raise ArgumentTypeError(f"{name!r} is no file's name") from None


def messages(name: str) -> Any:
    messages = _json_of(name)
    if isinstance(messages, dict):
        messages = messages.get("messages")
    if not isinstance(messages, list):
        raise ArgumentTypeError(
            f"{name} has no list of messages; write "
            '[{"role": "user", "content": "What is the capital of France?"}]'
        )
    return messages


def new_file(text: str) -> Path:
    """The name of a file that can be written, looked at before somebody computes what is in it."""
    path = Path(text)
    fault = fault_of_place(path)
    if fault is not None:
        raise ArgumentTypeError(fault)
    return path


def fault_of_place(path: Path, suffix: str = ".json") -> str | None:
    """Why no file can be written there, as far as can be seen; None where it can."""
    n_bytes = len(path.name.encode(errors="surrogateescape"))
    if n_bytes == 0:
        return "name a file"
    if n_bytes > _LONGEST_NAME_BYTES:
        return f"its name has {n_bytes} bytes, and a file's has {_LONGEST_NAME_BYTES} at most"
    try:
        if path.is_dir():
            example = path / f"graph{suffix}"
            return f"{path} is a folder; name a file in it, such as {example}"
        if path.exists() and not path.is_file():  # such as /dev/null, which would be replaced
            return f"{path} is no plain file; name one, or a file that isn't there yet"
        above = next(folder for folder in path.parents if folder.exists())
    except (OSError, ValueError):  # a part of it is too long, or has a null character
        return f"{str(path)[:_LONGEST_NAME]!r} is no file's name"
    if not above.is_dir():
        return f"{above} is no folder"
    return None if os.access(above, os.W_OK | os.X_OK) else f"{above} can't be written"


def header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon:
        raise ArgumentTypeError("a header is NAME:VALUE")
    return name.strip(), value.strip()


def seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ArgumentTypeError(f"{text!r} is no number of seconds above 0")
    return seconds


def port(text: str) -> int:
    if not re.fullmatch("[0-9]{1,5}", text) or int(text) > _LAST_PORT:
        raise ArgumentTypeError(f"{text[:20]!r} is no port; it is a number from 0 to {_LAST_PORT}")
    return int(text)


def count(text: str) -> int:
    if not re.fullmatch("[0-9]{1,6}", text) or int(text) == 0:
        raise ArgumentTypeError(f"{text[:20]!r} is no whole number from 1 to 999999")
    return int(text)

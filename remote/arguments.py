"""The command line of `client.py`: arguments in, a job and the server to send it to out."""

import re
from argparse import ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, get_args

import orjson

import schemas

DEFAULT_URL = "http://localhost:5004"

_EPILOG = """\
environment (or a .env file):
  RUNPOD_API_KEY  the key for --endpoint
  SECRET          the worker's, sent as x-secret-key with --url

exit codes:
  0    done
  1    the job failed: the worker's code and sentence are printed
  2    the request, the target, the key or a file is wrong
  3    no usable answer came from the server or the store
  4    the job was cancelled, timed out or is no longer known
  5    what was downloaded is not the graph
  130  Ctrl-C: the job is cancelled, where that is possible; once more exits at once
"""

_FEATURE_HELP = """\
LAYER:INDEX:POSITION=CHANGE, as often as needed. POSITION is the prompt token (forward-pass
numbers them) whose activation is read and changed. CHANGE is 0 to ablate, or +10 or -3 to add.
2:157:4@6=+10 reads at 4 and changes 6; 2:157:4@new=+10 changes every generated token. With
features of attention, lorsa:2:157:4=0 is one of these, and transcoder:2:157:4=0 is not. Without
features both texts are the default one.
"""

_TARGET_FEATURE = re.compile(
    r"(?P<layer>\d+):(?P<index>\d+):(?P<position>\d+)(:(?P<kind>transcoder|lorsa))?"
)

_FEATURE = re.compile(
    r"((?P<kind>lorsa|transcoder):)?(?P<layer>\d+):(?P<index>\d+):(?P<read>\d+)(@(?P<changed>\d+|new))?"
    r"=(?P<change>0|[+-]\d*\.?\d+([eE][+-]?\d+)?)"
)

# Fields of a request without an option of their own name: PROMPT and --timeout set them.
_NOT_OPTIONS = {"prompt", "deadline"}


_formatter = partial(RawDescriptionHelpFormatter, max_help_position=28)


def parse(arguments: Sequence[str] | None = None) -> Namespace:
    """Read the command line. `job` is the job's input, for the commands that send one.

    Raises:
        SystemExit: with 2, after a message about what is wrong; with 0 after `--help`.
    """
    parser = _parser()
    args = parser.parse_args(arguments)
    if _is_action(args.command):
        args.job = _job(args)
    if args.command == "graph" and args.download_url is not None and args.signed_url is None:
        parser.error("--download-url is given without --signed-url")
    return args


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        description="Use an attribution worker: on Runpod, or where start.py or "
        "handler.py --rp_serve_api runs.",
        epilog=_EPILOG,
        formatter_class=_formatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {_version()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (words, options) in _COMMANDS.items():
        command = commands.add_parser(
            name, help=words, description=words, formatter_class=_formatter
        )
        for flags, settings in options:
            command.add_argument(*flags, **settings)
        if _is_action(name):
            _add_fields(command, name)
        if name != "view":
            _add_server(command)
    return parser


def _version() -> str:
    try:
        return version("attribution-client")
    except PackageNotFoundError:
        return "(not installed: this is a checkout)"


def _is_action(command: str) -> bool:
    return schemas.canonical_action(command) in schemas.REQUESTS


def _add_server(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("where")
    target = group.add_mutually_exclusive_group()
    target.add_argument("--endpoint", metavar="ID", help="a Runpod serverless endpoint")
    target.add_argument(
        "--url", help=f"of start.py or of handler.py --rp_serve_api ({DEFAULT_URL})"
    )
    group.add_argument(
        "--server",
        choices=["auto", "http", "sdk"],
        default="auto",
        help="what is at --url: start.py (http), the SDK's local API (sdk), or ask it (auto)",
    )


def _add_fields(parser: ArgumentParser, command: str) -> None:
    """An option for each field of the action's request that is a string, a number or a flag."""
    fields = schemas.REQUESTS[schemas.canonical_action(command)].model_fields
    for name, field in fields.items():
        kind = _simple_type(field.annotation)
        if kind is None or name in _NOT_OPTIONS:
            continue
        flag = "--" + name.replace("_", "-")
        words = (field.description or name.replace("_", " ")).replace("%", "%%")
        if kind is bool:
            parser.add_argument(flag, action="store_true", default=None, help=words)
            continue
        if field.default is not None:
            words += f" ({field.default})"
        parser.add_argument(flag, type=kind, metavar=kind.__name__.upper(), help=words)


def _simple_type(annotation: Any) -> type | None:
    """str, int, float or bool, for an annotation that is one of these, optional or bounded."""
    if annotation in (str, int, float, bool):
        return annotation
    is_list = getattr(annotation, "__origin__", None) in (list, dict)
    inner = get_args(annotation)
    return _simple_type(inner[0]) if inner and not is_list else None


def _job(args: Namespace) -> dict[str, Any]:
    """The input of the job that an action's arguments describe."""
    action = schemas.canonical_action(args.command)
    given = {name: getattr(args, name, None) for name in schemas.REQUESTS[action].model_fields}
    if given.get("signed_headers") is not None:
        given["signed_headers"] = dict(args.signed_headers)
    if given.get("attribution_targets") is not None:
        given["attribution_targets"] = [
            {"plus": target[0], "minus": target[1]} if isinstance(target, list) else target
            for target in args.attribution_targets
        ]
    return {"action": action, **{name: v for name, v in given.items() if v is not None}}


def _feature(text: str) -> dict[str, Any]:
    found = _FEATURE.fullmatch(text)
    if found is None:
        raise ArgumentTypeError(
            f"{text!r} is not LAYER:INDEX:POSITION=CHANGE with a change of 0 (ablate), +N or -N; "
            "such as 2:157:4=0 or 2:146:4=+10.8"
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


def _side(text: str) -> list[str]:
    """The tokens of a difference's side: one, or those of a JSON list."""
    try:
        tokens = orjson.loads(text)
    except orjson.JSONDecodeError:
        return [text]
    is_list = isinstance(tokens, list) and all(isinstance(token, str) for token in tokens)
    return tokens if is_list else [text]


def _target_feature(text: str) -> dict[str, Any]:
    found = _TARGET_FEATURE.fullmatch(text)
    if found is None:
        raise ArgumentTypeError(
            f"{text!r} is not LAYER:INDEX:POSITION or LAYER:INDEX:POSITION:lorsa; such as 2:157:4"
        )
    place = {name: int(found[name]) for name in ("layer", "index", "position")}
    return place if found["kind"] is None else {**place, "kind": found["kind"]}


def _messages(name: str) -> Any:
    try:
        messages = orjson.loads(Path(name).read_bytes())
    except OSError as error:
        raise ArgumentTypeError(f"{name}: {error.strerror}") from None
    except orjson.JSONDecodeError as error:
        raise ArgumentTypeError(f"{name} is no JSON: {error}") from None
    return messages.get("messages") if isinstance(messages, dict) else messages


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon:
        raise ArgumentTypeError("a header is NAME:VALUE")
    return name.strip(), value.strip()


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ArgumentTypeError(f"{text!r} is no number of seconds above 0")
    return seconds


# An option: its flags, and the arguments of `add_argument`.
_Option = tuple[list[str], dict[str, Any]]


def _option(flags: str, words: str | None = None, **settings: Any) -> _Option:
    return flags.split(), {"help": words, **settings}


_PROMPT = [
    _option("prompt", "the text, or --messages", metavar="PROMPT", nargs="?"),
    _option("--messages", "chat turns, as JSON: [{role, content}]", type=_messages, metavar="FILE"),
]
_RENDERED = [_option("prompt", metavar="PROMPT")]
_FILE = [
    _option("-o --output", "the graph's file (out/SLUG.json)", type=Path, metavar="FILE"),
    _option(
        "--download-url",
        "presigned GET of what --signed-url puts: downloads it and checks its SHA-256",
        metavar="URL",
    ),
]
_TARGETS = [
    _option(
        "--attribution-target",
        "attribute from this token, such as ' basket', not from the likeliest",
        dest="attribution_targets",
        action="append",
        metavar="TOKEN",
    ),
    _option(
        "--attribution-difference",
        "attribute from a difference of logits; a side is a token, or a JSON list for their mean",
        dest="attribution_targets",
        action="append",
        type=_side,
        nargs=2,
        metavar=("PLUS", "MINUS"),
    ),
    _option(
        "--attribution-feature",
        "attribute from LAYER:INDEX:POSITION, a feature that is active there; one of attention "
        "ends with :lorsa",
        dest="attribution_targets",
        action="append",
        type=_target_feature,
        metavar="FEATURE",
    ),
    _option(
        "--signed-header",
        "a header that --signed-url was signed with",
        dest="signed_headers",
        action="append",
        type=_header,
        metavar="NAME:VALUE",
    ),
]
_FEATURES = [
    _option(
        "--feature",
        _FEATURE_HELP,
        dest="features",
        action="append",
        type=_feature,
        default=[],
        metavar="FEATURE",
    )
]
_LIMIT = "wait no longer, and stop the job (`wait` lets it go on)"
_TIMEOUT = [_option("--timeout", _LIMIT, type=_seconds, metavar="SECONDS")]
_JSON = [_option("--json", "print the output as JSON", action="store_true")]
_ID = [_option("job_id", metavar="ID")]
_VIEW = [
    _option("files", nargs="+", type=Path, metavar="FILE"),
    _option("--port", "on loopback; 0 takes a free one", type=int, default=0),
    _option("--no-browser", "only serve, open nothing", action="store_true"),
]

# Each command's description and its options, besides those of its action's fields.
_COMMANDS: dict[str, tuple[str, list[_Option]]] = {
    "graph": ("the attribution graph of a prompt", _PROMPT + _FILE + _TARGETS + _TIMEOUT + _JSON),
    "steer": ("a prompt continued with features changed", _PROMPT + _FEATURES + _TIMEOUT + _JSON),
    "forward-pass": ("a prompt's tokens and likeliest next tokens", _PROMPT + _TIMEOUT + _JSON),
    "parse-chat-prompt": ("a rendered prompt as messages", _RENDERED + _TIMEOUT + _JSON),
    "wait": ("wait for a job on Runpod that was sent before", _ID + _FILE + _TIMEOUT + _JSON),
    "status": ("the state of a job on Runpod", _ID + _JSON),
    "cancel": ("stop a job on Runpod", _ID),
    "health": ("what the server reports about itself", _JSON),
    "view": ("look at graphs in the browser", _VIEW),
}

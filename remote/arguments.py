"""The command line of `client.py`: arguments in, a job and the server to send it to out."""

import re
from argparse import ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from collections.abc import Collection, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, get_args

import orjson

import schemas
from remote.graph_groups import groups_of

DEFAULT_URL = "http://localhost:5004"

_EPILOG = """\
environment (or a .env file):
  RUNPOD_API_KEY  the key for --endpoint
  SECRET          the worker's, sent as x-secret-key with --url

exit codes:
  0    done
  1    the job failed: the worker's code and sentence are printed; in a batch, a row's job
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

_GROUP_HELP = """\
NAME=LAYER:INDEX:POSITION,..., as often as needed: features that are set together
"""
_EXPERIMENT_HELP = """\
GROUP*SCALE or GROUP=VALUE, several with commas, as often as needed. 'French*0' turns a group off,
'French*-2' reverses and doubles it, 'Spanish=10.8' sets each of its features.
"""

_SITE = re.compile(r"(\d+):(\d+):(\d+)")
_NUMBER = r"[+-]?\d*\.?\d+(?:[eE][+-]?\d+)?"
_CHANGE = re.compile(rf"(?P<group>.+)(?P<how>[*=])(?P<number>{_NUMBER})")

# Fields of a request without an option of their own name: PROMPT, OTHER_PROMPT and --timeout
# set them.
_NOT_OPTIONS = {"prompt", "other_prompt", "deadline"}


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
        if args.command == "intervene" and not args.job["groups"]:
            parser.error("name features with --group or --groups-of")
    if args.command == "graph" and args.download_url is not None and args.signed_url is None:
        parser.error("--download-url is given without --signed-url")
    if args.command == "batch":
        args.job = _job(args)
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
        if name == "batch":
            _add_fields(command, "graph", besides=NOT_IN_BATCH | _ROW_S_OWN)
        if name not in _ON_FILES:
            _add_server(command)
    return parser


def _version() -> str:
    try:
        return version("attribution-client")
    except PackageNotFoundError:
        return "(not installed: this is a checkout)"


def _is_action(command: str) -> bool:
    return schemas.canonical_action(command) in schemas.REQUESTS


# The commands that ask no server.
_ON_FILES = {"compare", "export"}
# Fields of a graph's request that no row of a batch has: --timeout says by when, and what is kept
# are documents. Of the rest, these are a row's own.
NOT_IN_BATCH = {"deadline", "format"}
_ROW_S_OWN = {"signed_url", "slug_identifier"}


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


def _add_fields(
    parser: ArgumentParser, command: str, *, besides: Collection[str] = frozenset()
) -> None:
    """An option for each field of the action's request that is a string, a number or a flag."""
    fields = schemas.REQUESTS[schemas.canonical_action(command)].model_fields
    for name, field in fields.items():
        kind = simple_type(field.annotation)
        if kind is None or name in _NOT_OPTIONS or name in besides:
            continue
        flag = "--" + name.replace("_", "-")
        words = (field.description or name.replace("_", " ")).replace("%", "%%")
        if kind is bool and field.default is True:
            flag = flag.replace("--", "--no-", 1)
            words = f"don't {words}"
            parser.add_argument(flag, action="store_false", default=None, dest=name, help=words)
            continue
        if kind is bool:
            parser.add_argument(flag, action="store_true", default=None, help=words)
            continue
        if field.default is not None:
            words += f" ({field.default})"
        parser.add_argument(flag, type=kind, metavar=kind.__name__.upper(), help=words)


def simple_type(annotation: Any) -> type | None:
    """str, int, float or bool, for an annotation that is one of these, optional or bounded."""
    if annotation in (str, int, float, bool):
        return annotation
    is_list = getattr(annotation, "__origin__", None) in (list, dict)
    inner = get_args(annotation)
    return simple_type(inner[0]) if inner and not is_list else None


def _job(args: Namespace) -> dict[str, Any]:
    """The input of the job that an action's arguments describe; of a batch, what its jobs share."""
    action = schemas.canonical_action("graph" if args.command == "batch" else args.command)
    given = {name: getattr(args, name, None) for name in schemas.REQUESTS[action].model_fields}
    if given.get("signed_headers") is not None:
        given["signed_headers"] = dict(args.signed_headers)
    if args.command == "intervene":
        given["groups"] = {**args.groups_of, **dict(args.groups or [])}
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


def _group(text: str) -> tuple[str, list[dict[str, int]]]:
    name, equals, sites = text.partition("=")
    found = [_SITE.fullmatch(site.strip()) for site in sites.split(",")]
    if not (name and equals) or None in found:
        raise ArgumentTypeError(
            f"{text!r} is not NAME=LAYER:INDEX:POSITION,...; such as French=2:157:4,1:120:4"
        )
    fields = ("layer", "index", "position")
    return name, [dict(zip(fields, map(int, site.groups()), strict=True)) for site in found if site]


def _experiment(text: str) -> list[dict[str, Any]]:
    changes = []
    for part in text.split(","):
        found = _CHANGE.fullmatch(part.strip())
        if found is None:
            raise ArgumentTypeError(
                f"{part!r} is not GROUP*SCALE or GROUP=VALUE; such as French*0 or Spanish=10.8"
            )
        how = "scale" if found["how"] == "*" else "value"
        changes.append({"group": found["group"], how: float(found["number"])})
    return changes


def _layers(text: str) -> str | list[int]:
    found = re.fullmatch(r"(\d+)-(\d+)", text)
    if found is None and text != "all":
        raise ArgumentTypeError(f"{text!r} is not all or FIRST-LAST, such as 0-3")
    return "all" if found is None else [int(found[1]), int(found[2])]


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


def _groups_of(name: str) -> dict[str, list[dict[str, int]]]:
    try:
        return groups_of(_json_of(name))
    except ValueError as error:
        raise ArgumentTypeError(f"{name}: {error}") from None


def _json_of(name: str) -> Any:
    try:
        return orjson.loads(Path(name).read_bytes())
    except OSError as error:
        raise ArgumentTypeError(f"{name}: {error.strerror}") from None
    except orjson.JSONDecodeError as error:
        raise ArgumentTypeError(f"{name} is no JSON: {error}") from None


def _messages(name: str) -> Any:
    messages = _json_of(name)
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


def _count(text: str) -> int:
    if not re.fullmatch("[0-9]{1,6}", text) or int(text) == 0:
        raise ArgumentTypeError(f"{text[:20]!r} is no whole number from 1 to 999999")
    return int(text)


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
_GROUPS = [
    _option(
        "--group",
        _GROUP_HELP,
        dest="groups",
        action="append",
        type=_group,
        metavar="GROUP",
    ),
    _option(
        "--groups-of",
        "take the groups of this graph, as the viewer or the worker made them",
        type=_groups_of,
        default={},
        metavar="FILE",
    ),
    _option(
        "--experiment",
        _EXPERIMENT_HELP,
        dest="experiments",
        action="append",
        type=_experiment,
        required=True,
        metavar="EXPERIMENT",
    ),
    _option(
        "--target",
        "report this token's logit and probability, such as ' basket'",
        dest="targets",
        action="append",
        metavar="TOKEN",
    ),
    _option(
        "--constrained-layers",
        "freeze the MLPs of these layers: FIRST-LAST, or all, which freezes norms too",
        type=_layers,
        metavar="LAYERS",
    ),
]
_OTHER = [
    _option("other_prompt", "or --other-messages", metavar="OTHER_PROMPT", nargs="?"),
    _option("--other-messages", "chat turns, as JSON", type=_messages, metavar="FILE"),
]
_LIMIT = "wait no longer, and stop the job (`wait` lets it go on)"
_TIMEOUT = [_option("--timeout", _LIMIT, type=_seconds, metavar="SECONDS")]
_JSON = [_option("--json", "print the output as JSON", action="store_true")]
_ID = [_option("job_id", metavar="ID")]
_IN_FLIGHT = "jobs that are sent and not done (16 on Runpod, else 1)"
_BATCH = [
    _option(
        "prompts",
        "a .csv with a column prompt and one for each field that rows set, a .jsonl with the same "
        "names, or a .txt with a prompt a line",
        type=Path,
        metavar="FILE",
    ),
    _option("--out", "the folder of the batch", type=Path, required=True, metavar="FOLDER"),
    _option("--in-flight", _IN_FLIGHT, type=_count, metavar="INT"),
    _option("--retry-failed", "do rows again that failed before", action="store_true"),
    _option(
        "--keep",
        "a column that is no field, to be copied into the index",
        action="append",
        default=[],
        metavar="COLUMN",
    ),
    _option(
        "--timeout", "give a row no longer, and stop its job", type=_seconds, metavar="SECONDS"
    ),
    *(option for option in _TARGETS if option[1]["dest"] == "attribution_targets"),
]
_TOP = _option("--top", "features in each table (20)", type=_count, default=20, metavar="INT")
_COMPARE = [
    _option("graphs", "files, or folders of batches", nargs="+", type=Path, metavar="GRAPH"),
    _TOP,
]
_FORM = "the form; png needs Chromium or Chrome"
_EXPORT = [
    _option("graph", type=Path, metavar="FILE"),
    _option(
        "--to",
        "the form; png needs Chromium or Chrome",
        choices=["graphml", "csv", "png"],
        required=True,
    ),
    _option("-o --output", "the file; of csv the folder", type=Path, metavar="PATH"),
]
_VIEW = [
    _option("files", nargs="+", type=Path, metavar="FILE"),
    _option("--port", "on loopback; 0 takes a free one", type=int, default=0),
    _option("--no-browser", "only serve, open nothing", action="store_true"),
    _option(
        "--worker",
        f"let the page ask the worker at {DEFAULT_URL}; --url or --endpoint name another",
        action="store_true",
    ),
]

# Each command's description and its options, besides those of its action's fields.
_COMMANDS: dict[str, tuple[str, list[_Option]]] = {
    "graph": ("the attribution graph of a prompt", _PROMPT + _FILE + _TARGETS + _TIMEOUT + _JSON),
    "steer": ("a prompt continued with features changed", _PROMPT + _FEATURES + _TIMEOUT + _JSON),
    "forward-pass": ("a prompt's tokens and likeliest next tokens", _PROMPT + _TIMEOUT + _JSON),
    "parse-chat-prompt": ("a rendered prompt as messages", _RENDERED + _TIMEOUT + _JSON),
    "intervene": (
        "a prompt's next tokens with groups of features off, scaled or set",
        _PROMPT + _GROUPS + _TIMEOUT + _JSON,
    ),
    "contrast": (
        "the features that tell two prompts apart, and a steer from one to the other",
        _PROMPT + _OTHER + _TIMEOUT + _JSON,
    ),
    "wait": ("wait for a job on Runpod that was sent before", _ID + _FILE + _TIMEOUT + _JSON),
    "status": ("the state of a job on Runpod", _ID + _JSON),
    "cancel": ("stop a job on Runpod", _ID),
    "health": ("what the server reports about itself", _JSON),
    "view": ("look at graphs in the browser", _VIEW),
    "batch": ("the graphs of many prompts, and an index of them", _BATCH),
    "compare": ("features that graphs share, or that recur over a batch", _COMPARE + _JSON),
    "export": ("a graph as GraphML, as CSV of its nodes and links, or as a picture", _EXPORT),
}

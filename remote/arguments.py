"""The command line of `client.py`: arguments in, a checked job and where to send it out."""

import re
from argparse import (
    ArgumentParser,
    ArgumentTypeError,
    Namespace,
    RawDescriptionHelpFormatter,
)
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
2:157:4@6=+10 reads at 4 and changes 6; 2:157:4@new=+10 changes every generated token.
"""

_FEATURE = re.compile(
    r"(?P<layer>\d+):(?P<index>\d+):(?P<read>\d+)(@(?P<changed>\d+|new))?"
    r"=(?P<change>0|[+-]\d*\.?\d+([eE][+-]?\d+)?)"
)

# Command -> the action's fields that are options as they stand, and their types.
_OPTIONS: dict[str, dict[str, type]] = {
    "graph": {
        "slug_identifier": str,
        "max_n_logits": int,
        "desired_logit_prob": float,
        "max_feature_nodes": int,
        "node_threshold": float,
        "edge_threshold": float,
        "batch_size": int,
        "user_id": str,
        "model_id": str,
        "signed_url": str,
        "compress": bool,
    },
    "steer": {
        "n_tokens": int,
        "top_k": int,
        "temperature": float,
        "freq_penalty": float,
        "seed": int,
        "freeze_attention": bool,
        "steered_output_only": bool,
        "model_id": str,
    },
    "forward-pass": {"max_n_logits": int, "desired_logit_prob": float, "model_id": str},
    "parse-chat-prompt": {"model_id": str},
}


def parse(arguments: Sequence[str] | None = None) -> Namespace:
    """Read the command line. `job` is the job's input, for the commands that send one.

    Raises:
        SystemExit: with 2, after saying what is wrong; with 0 after `--help`.
    """
    parser = _parser()
    args = parser.parse_args(arguments)
    if args.command in _OPTIONS:
        args.job = _job(args, parser)
    return args


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="client.py",
        description="Use an attribution worker: on Runpod, or where start.py or "
        "handler.py --rp_serve_api runs.",
        epilog=_EPILOG,
        formatter_class=_formatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, words: str) -> ArgumentParser:
        return commands.add_parser(name, help=words, description=words, formatter_class=_formatter)

    graph = command("graph", "the attribution graph of a prompt")
    _add_prompt(graph)
    _add_file(graph)
    _add_graph_fields(graph)
    steer = command("steer", "a prompt continued with features changed")
    _add_prompt(steer)
    _add_features(steer)
    forward_pass = command("forward-pass", "a prompt's tokens and likeliest next tokens")
    _add_prompt(forward_pass)
    parse_chat_prompt = command("parse-chat-prompt", "a rendered prompt as messages")
    parse_chat_prompt.add_argument("prompt", metavar="PROMPT")
    for name, action in zip(_OPTIONS, (graph, steer, forward_pass, parse_chat_prompt), strict=True):
        _add_options(action, name)
        _add_target(action)
        _add_timeout(action)
        _add_json(action)

    wait = command("wait", "wait for a job of Runpod's that was sent before")
    _add_file(wait)
    status = command("status", "how a job of Runpod's is")
    cancel = command("cancel", "stop a job of Runpod's")
    for asking in (wait, status, cancel):
        asking.add_argument("job_id", metavar="ID")
        _add_target(asking)
    _add_timeout(wait)
    health = command("health", "what the server says of itself")
    _add_target(health)
    for telling in (wait, status, health):
        _add_json(telling)
    _add_view(command("view", "look at graphs in the browser"))
    return parser


def _formatter(prog: str) -> RawDescriptionHelpFormatter:
    return RawDescriptionHelpFormatter(prog, max_help_position=28)


def _add_target(parser: ArgumentParser) -> None:
    """Where to: the options of every command that asks a server."""
    group = parser.add_argument_group("where")
    place = group.add_mutually_exclusive_group()
    place.add_argument("--endpoint", metavar="ID", help="a Runpod serverless endpoint")
    place.add_argument("--url", help=f"of start.py or of handler.py --rp_serve_api ({DEFAULT_URL})")
    group.add_argument(
        "--server",
        choices=["auto", "http", "sdk"],
        default="auto",
        help="what is at --url: start.py (http), the SDK's local API (sdk), or ask it (auto)",
    )


def _add_timeout(parser: ArgumentParser) -> None:
    words = "wait no longer, and stop the job (`wait` lets it go on)"
    parser.add_argument("--timeout", type=_seconds, metavar="SECONDS", help=words)


def _add_json(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the output as JSON")


def _add_file(parser: ArgumentParser) -> None:
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="the graph's file (out/SLUG.json)"
    )
    parser.add_argument(
        "--download-url",
        metavar="URL",
        help="presigned GET of what --signed-url puts: downloads it and checks its SHA-256",
    )


def _add_prompt(parser: ArgumentParser) -> None:
    parser.add_argument("prompt", metavar="PROMPT", nargs="?", help="the text, or --messages")
    parser.add_argument(
        "--messages", type=_messages, metavar="FILE", help="chat turns, as JSON: [{role, content}]"
    )


def _add_features(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--feature",
        dest="features",
        action="append",
        type=_feature,
        required=True,
        metavar="FEATURE",
        help=_FEATURE_HELP,
    )


def _add_graph_fields(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--attribution-target",
        dest="attribution_targets",
        action="append",
        metavar="TOKEN",
        help="attribute from this token, such as ' basket', not from the likeliest",
    )
    parser.add_argument(
        "--signed-header",
        dest="signed_headers",
        action="append",
        type=_header,
        metavar="NAME:VALUE",
        help="a header that --signed-url was signed with",
    )


def _add_options(parser: ArgumentParser, name: str) -> None:
    """The fields that are options as they stand, with the schema's words and defaults."""
    model = schemas.REQUESTS[schemas.canonical_action(name)]
    for field, kind in _OPTIONS[name].items():
        flag = "--" + field.replace("_", "-")
        known = model.model_fields[field]
        words = (known.description or field.replace("_", " ")).replace("%", "%%")
        if kind is bool:
            parser.add_argument(flag, action="store_true", default=None, help=words)
            continue
        if known.default is not None:
            words += f" ({known.default})"
        parser.add_argument(flag, type=kind, metavar=kind.__name__.upper(), help=words)


def _add_view(parser: ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--port", type=int, default=0, help="on loopback; 0 takes a free one")
    parser.add_argument("--no-browser", action="store_true", help="only serve, open nothing")


def _job(args: Namespace, parser: ArgumentParser) -> dict[str, Any]:
    """The input of the job that an action's arguments describe."""
    names = {*_OPTIONS[args.command], "prompt", "messages", "features", "attribution_targets"}
    job = {name: getattr(args, name, None) for name in names}
    if args.command == "graph":
        job["signed_headers"] = dict(args.signed_headers) if args.signed_headers else None
        if args.download_url is not None and args.signed_url is None:
            parser.error("--download-url is given without --signed-url")
    fields = {name: value for name, value in job.items() if value is not None}
    return {"action": schemas.canonical_action(args.command), **fields}


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
        "token_active_position": position,
        **(
            {"steer_generated_tokens": True}
            if changed == "new"
            else {"steer_position": position if changed is None else int(changed)}
        ),
        **({"ablate": True} if change == "0" else {"delta": float(change)}),
    }


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

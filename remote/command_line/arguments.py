"""The command line of `client.py`: arguments in, a job and the server to send it to out."""

from argparse import Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import schemas
from remote.command_line.field_options import NOT_IN_BATCH, OF_A_ROW, add_fields, is_action
from remote.command_line.options import COMMANDS, DEFAULT_URL, ON_FILES
from remote.command_line.suggestions import Parser
from remote.command_line.written_values import fault_of_place

_EPILOG = """\
environment (or a .env file):
  RUNPOD_API_KEY  the key for --endpoint
  SECRET          the worker's, sent as x-secret-key with --url
  FEATURE_LABELS  true: as if --labels were given
  NEURONPEDIA_URL, NEURONPEDIA_API_KEY  where labels come from; needs no key

exit codes:
  0    done
  1    the job failed: the worker's code and sentence are printed; in a batch, a row's job
  2    the request, the target, the key or a file is wrong
  3    no usable answer came from the server or the store
  4    the job was cancelled, timed out or is no longer known
  5    what was downloaded is not the graph
  130  Ctrl-C: the job is cancelled, where that is possible; once more exits at once
"""

_formatter = partial(RawDescriptionHelpFormatter, max_help_position=28)


def parse(arguments: Sequence[str] | None = None) -> Namespace:
    """Read the command line. `job` is the job's input, for the commands that send one.

    Raises:
        SystemExit: with 2, after a message about what is wrong; with 0 after `--help`.
    """
    parser = _parser()
    args = parser.parse_args(arguments)
    if is_action(args.command):
        args.job = _job(args)
        if args.command == "intervene" and not args.job["groups"]:
            parser.error(
                "name features with --group or --groups-of, such as --group French=2:157:4"
            )
        if args.command == "intervene" and not args.job["experiments"]:
            parser.error("say what to change with --experiment or --each-off")
    if args.command == "graph" and args.download_url is not None and args.signed_url is None:
        parser.error("--download-url is given without --signed-url")
    if args.command == "batch":
        args.job = _job(args)
    if getattr(args, "output", None) is not None:
        fault = _fault_of_output(args)
        if fault is not None:
            parser.error(f"argument -o/--output: {fault}")
    return args


def _fault_of_output(args: Namespace) -> str | None:
    """Why the output can't be written to the place that was named."""
    path: Path = args.output
    if args.command == "export":  # of csv a folder is named
        return None if args.to == "csv" else fault_of_place(path, f".{args.to}")
    if args.command == "graph" and args.format != "pt" and path.suffix == ".pt":
        return "a .pt file is circuit-tracer's own; add --format pt, or name a .json file"
    if args.command == "graph" and args.format == "pt" and path.suffix == ".json":
        return "--format pt writes circuit-tracer's own file, and no JSON; name a .pt file"
    return None


def _parser() -> Parser:
    parser = Parser(
        description="Use an attribution worker: on Runpod, or where start.py or "
        "handler.py --rp_serve_api runs.",
        epilog=_EPILOG,
        formatter_class=_formatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {_version()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (words, options) in COMMANDS.items():
        command = commands.add_parser(
            name, help=words, description=words, formatter_class=_formatter
        )
        for flags, settings in options:
            command.add_argument(*flags, **settings)
        if is_action(name):
            add_fields(command, name)
        if name == "batch":
            add_fields(command, "graph", besides=NOT_IN_BATCH | OF_A_ROW)
        if name not in ON_FILES:
            _add_server(command)
    return parser


def _version() -> str:
    try:
        return version("attribution-client")
    except PackageNotFoundError:
        return "(not installed: this is a checkout)"


def _add_server(parser: Parser) -> None:
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


def _job(args: Namespace) -> dict[str, Any]:
    """The input of the job that an action's arguments describe; of a batch, what its jobs share."""
    action = schemas.canonical_action("graph" if args.command == "batch" else args.command)
    given = {name: getattr(args, name, None) for name in schemas.REQUESTS[action].model_fields}
    if given.get("signed_headers") is not None:
        given["signed_headers"] = dict(args.signed_headers)
    if args.command == "intervene":
        of_graph = args.groups_of
        groups = {**(of_graph.groups if of_graph else {}), **dict(args.groups or [])}
        if of_graph is not None and args.model_id is None:
            given["model_id"] = of_graph.origin.model  # a worker with another model refuses it
        off = [[{"group": name, "scale": 0.0}] for name in groups]
        given["groups"] = groups
        given["experiments"] = [*args.experiments, *(off if args.each_off else [])]
    if given.get("attribution_targets") is not None:
        given["attribution_targets"] = [
            {"plus": target[0], "minus": target[1]} if isinstance(target, list) else target
            for target in args.attribution_targets
        ]
    return {"action": action, **{name: v for name, v in given.items() if v is not None}}

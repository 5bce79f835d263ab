"""The commands of `client.py`, and the options of each besides the fields of its action."""

from argparse import BooleanOptionalAction
from pathlib import Path

from remote.command_line import written_values as written
from remote.command_line.circuit_arguments import CIRCUIT
from remote.command_line.option import Option, constrained_layers, option

DEFAULT_URL = "http://localhost:5004"

_FEATURE_HELP = """\
LAYER:INDEX:POSITION=CHANGE, as often as needed. POSITION is the prompt token (forward-pass
numbers them) whose activation is read and changed. CHANGE is 0 to ablate, or +10 or -3 to add.
2:157:4@6=+10 reads at 4 and changes 6; 2:157:4@new=+10 changes every generated token. With
features of attention, lorsa:2:157:4=0 is one of these, and transcoder:2:157:4=0 is not. Without
features both texts are the default one.
"""
_GROUP_HELP = """\
NAME=LAYER:INDEX:POSITION,..., as often as needed: features that are set together. With features
of attention, lorsa:1:105:4 is one of these, and transcoder:1:105:4 is not.
"""
_EXPERIMENT_HELP = """\
GROUP*SCALE or GROUP=VALUE, several with commas, as often as needed. 'French*0' turns a group off,
'French*-2' reverses and doubles it, 'Spanish=10.8' sets each of its features.
"""

_LABELS = [
    option(
        "--labels",
        "name real models' features as Neuronpedia explains them, and ask it for what isn't here",
        action=BooleanOptionalAction,
    )
]
_PROMPT = [
    option("prompt", "the text, or --messages", metavar="PROMPT", nargs="?"),
    option(
        "--messages",
        "chat turns, as JSON: [{role, content}]",
        type=written.messages,
        metavar="FILE",
    ),
]
_RENDERED = [option("prompt", metavar="PROMPT")]
_FILE = [
    option(
        "-o --output", "the graph's file (out/SLUG.json)", type=written.new_file, metavar="FILE"
    ),
    option(
        "--download-url",
        "presigned GET of what --signed-url puts: downloads it and checks its SHA-256",
        metavar="URL",
    ),
]
_TARGETS = [
    option(
        "--attribution-target",
        "attribute from this token, such as ' basket', not from the likeliest",
        dest="attribution_targets",
        action="append",
        metavar="TOKEN",
    ),
    option(
        "--attribution-difference",
        "attribute from a difference of logits; a side is a token, or a JSON list for their mean",
        dest="attribution_targets",
        action="append",
        type=written.side,
        nargs=2,
        metavar=("PLUS", "MINUS"),
    ),
    option(
        "--attribution-feature",
        "attribute from LAYER:INDEX:POSITION, a feature that is active there; one of attention "
        "ends with :lorsa",
        dest="attribution_targets",
        action="append",
        type=written.target_feature,
        metavar="FEATURE",
    ),
    option(
        "--signed-header",
        "a header that --signed-url was signed with",
        dest="signed_headers",
        action="append",
        type=written.header,
        metavar="NAME:VALUE",
    ),
]
_FEATURES = [
    option(
        "--feature",
        _FEATURE_HELP,
        dest="features",
        action="append",
        type=written.feature,
        default=[],
        metavar="FEATURE",
    )
]
_GROUPS = [
    option(
        "--group",
        _GROUP_HELP,
        dest="groups",
        action="append",
        type=written.group,
        metavar="GROUP",
    ),
    option(
        "--groups-of",
        "take the groups of this graph, as the viewer or the worker made them",
        type=written.groups_of_file,
        metavar="FILE",
    ),
    option(
        "--experiment",
        _EXPERIMENT_HELP,
        dest="experiments",
        action="append",
        type=written.experiment,
        default=[],
        metavar="EXPERIMENT",
    ),
    option(
        "--each-off",
        "besides, an experiment for each group, in their order, with this one off",
        action="store_true",
    ),
    option(
        "--target",
        "report this token's logit and probability, such as ' basket'",
        dest="targets",
        action="append",
        metavar="TOKEN",
    ),
    constrained_layers(),
]
_OTHER = [
    option("other_prompt", "or --other-messages", metavar="OTHER_PROMPT", nargs="?"),
    option("--other-messages", "chat turns, as JSON", type=written.messages, metavar="FILE"),
]
_LIMIT = "wait no longer, and stop the job (`wait` lets it go on)"
_TIMEOUT = [option("--timeout", _LIMIT, type=written.seconds, metavar="SECONDS")]
_JSON = [option("--json", "print the output as JSON", action="store_true")]
_ID = [option("job_id", metavar="ID")]
_IN_FLIGHT = "jobs that are sent and not done (16 on Runpod, else 1)"
_BATCH = [
    option(
        "prompts",
        "a .csv with a column prompt and one for each field that rows set, a .jsonl with the same "
        "names, or a .txt with a prompt a line",
        type=Path,
        metavar="FILE",
    ),
    option("--out", "the folder of the batch", type=Path, required=True, metavar="FOLDER"),
    option("--in-flight", _IN_FLIGHT, type=written.count, metavar="INT"),
    option("--retry-failed", "do rows again that failed before", action="store_true"),
    option(
        "--keep",
        "a column that is no field, to be copied into the index",
        action="append",
        default=[],
        metavar="COLUMN",
    ),
    option(
        "--timeout",
        "give a row no longer, and stop its job",
        type=written.seconds,
        metavar="SECONDS",
    ),
    *(one for one in _TARGETS if one[1]["dest"] == "attribution_targets"),
]
_TOP = option("--top", "features in each table (20)", type=written.count, default=20, metavar="INT")
_COMPARE = [
    option("graphs", "files, or folders of batches", nargs="+", type=Path, metavar="GRAPH"),
    _TOP,
]
_EXPORT = [
    option("graph", type=Path, metavar="FILE"),
    option(
        "--to",
        "the form; png and svg need Chromium or Chrome",
        choices=["graphml", "csv", "png", "svg"],
        required=True,
    ),
    option("-o --output", "the file; of csv the folder", type=Path, metavar="PATH"),
]
_VIEW = [
    option("files", nargs="+", type=Path, metavar="FILE"),
    option(
        "--port",
        "on loopback (8046, or the next free one); 0 takes a free one",
        type=written.port,
        metavar="INT",
    ),
    option("--no-browser", "only serve, open nothing", action="store_true"),
    option(
        "--worker",
        f"let the page ask the worker at {DEFAULT_URL}; --url or --endpoint name another",
        action="store_true",
    ),
]

# Each command's description and its options, besides those of its action's fields.
COMMANDS: dict[str, tuple[str, list[Option]]] = {
    "graph": (
        "the attribution graph of a prompt",
        _PROMPT + _FILE + _TARGETS + _LABELS + _TIMEOUT + _JSON,
    ),
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
    "wait": (
        "wait for a job on Runpod that was sent before",
        _ID + _FILE + _LABELS + _TIMEOUT + _JSON,
    ),
    "status": ("the state of a job on Runpod", _ID + _JSON),
    "cancel": ("stop a job on Runpod", _ID),
    "health": ("what the server reports about itself", _JSON),
    "view": ("look at graphs in the browser", _VIEW + _LABELS),
    "batch": ("the graphs of many prompts, and an index of them", _BATCH),
    "compare": (
        "features that graphs share, or that recur over a batch",
        _COMPARE + _LABELS + _JSON,
    ),
    "circuit": (
        "what a set of a graph's features is worth: kept alone, removed, beside random sets",
        CIRCUIT + _TIMEOUT + _JSON,
    ),
    "export": (
        "a graph as GraphML, as CSV of its nodes and links, or as a picture",
        _EXPORT + _LABELS,
    ),
}

# The commands that ask no server.
ON_FILES = {"compare", "export"}

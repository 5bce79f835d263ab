"""The options of `client.py circuit`."""

import re
from argparse import ArgumentTypeError
from pathlib import Path
from typing import Any, get_args

from remote.circuits.experiments import Metric, Strength
from remote.circuits.sets import NamedFeature
from remote.command_line.written_values import layers, side

_MOST_RANDOM_SETS = 1_000


def _features(text: str) -> list[NamedFeature]:
    try:
        return [NamedFeature.parse(part) for part in text.split(",")]
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None


def _number_of_sets(text: str) -> int:
    if not re.fullmatch("[0-9]{1,4}", text) or int(text) > _MOST_RANDOM_SETS:
        raise ArgumentTypeError(f"{text[:20]!r} is no number from 0 to {_MOST_RANDOM_SETS}")
    return int(text)


def _strongest(text: str) -> int:
    if not re.fullmatch("[0-9]{1,6}", text) or int(text) == 0:
        raise ArgumentTypeError(f"{text[:20]!r} is no number of features above 0")
    return int(text)


# Each option's flags, and the arguments of `add_argument`.
CIRCUIT: list[tuple[list[str], dict[str, Any]]] = [
    (
        ["graphs"],
        {
            "help": "files of graphs, or folders of batches",
            "nargs": "+",
            "type": Path,
            "metavar": "GRAPH",
        },
    ),
    (
        ["--features"],
        {
            "help": "the set: LAYER:INDEX:POSITION,...; without POSITION a feature counts at each "
            "token where it is, with lorsa: before it it is one of attention",
            "type": _features,
            "metavar": "FEATURES",
        },
    ),
    (
        ["--group"],
        {
            "help": "the set: this group (supernode) of each graph; several may be given",
            "dest": "groups",
            "action": "append",
            "metavar": "NAME",
        },
    ),
    (
        ["--strongest"],
        {
            "help": "the set: so many features of most influence. Without any of these it is what "
            "each graph has in groups and pins",
            "type": _strongest,
            "metavar": "INT",
        },
    ),
    (
        ["--set-of"],
        {
            "help": "take the set from this graph, and try it wherever its features are in the "
            "others",
            "type": Path,
            "metavar": "FILE",
        },
    ),
    (
        ["--random"],
        {
            "help": "random sets to compare with (20)",
            "type": _number_of_sets,
            "default": 20,
            "metavar": "INT",
        },
    ),
    (
        ["--strength"],
        {
            "help": "in which sum random sets are as strong as the set (activation); of number "
            "they have only as many features",
            "choices": get_args(Strength),
            "default": "activation",
        },
    ),
    (
        ["--seed"],
        {"help": "of the random sets (0)", "type": int, "default": 0, "metavar": "INT"},
    ),
    (
        ["--metric"],
        {
            "help": "what is measured (logit-difference)",
            "choices": get_args(Metric),
            "default": "logit-difference",
        },
    ),
    (
        ["--target"],
        {
            "help": "the token whose prediction is explained, or a JSON list for their mean (the "
            "graph's target, or the likeliest)",
            "type": side,
            "metavar": "TOKEN",
        },
    ),
    (
        ["--against"],
        {
            "help": "the token whose logit is subtracted, or a JSON list (the graph's, or all "
            "others together)",
            "type": side,
            "metavar": "TOKEN",
        },
    ),
    (
        ["--constrained-layers"],
        {
            "help": "freeze the MLPs of these layers: FIRST-LAST, or all, which freezes norms too",
            "type": layers,
            "metavar": "LAYERS",
        },
    ),
    (
        ["--no-freeze-attention"],
        {
            "help": "don't keep the prompt's attention patterns",
            "dest": "freeze_attention",
            "action": "store_false",
            "default": None,
        },
    ),
]

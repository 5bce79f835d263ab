"""The options of `client.py circuit`."""

import re
from argparse import ArgumentTypeError
from pathlib import Path
from typing import get_args

from remote.circuits.experiments import Metric, Strength
from remote.circuits.sets import NamedFeature
from remote.command_line.option import constrained_layers, option
from remote.command_line.written_values import count, side

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


CIRCUIT = [
    option(
        "graphs", "files of graphs, or folders of batches", nargs="+", type=Path, metavar="GRAPH"
    ),
    option(
        "--features",
        "the set: LAYER:INDEX:POSITION,...; without POSITION a feature counts at each token where "
        "it is, with lorsa: before it it is one of attention",
        type=_features,
        metavar="FEATURES",
    ),
    option(
        "--group",
        "the set: this group (supernode) of each graph; several may be given",
        dest="groups",
        action="append",
        metavar="NAME",
    ),
    option(
        "--strongest",
        "the set: so many features of most influence. Without any of these it is what each graph "
        "has in groups and pins",
        type=count,
        metavar="INT",
    ),
    option(
        "--set-of",
        "take the set from this graph, and try it wherever its features are in the others",
        type=Path,
        metavar="FILE",
    ),
    option(
        "--random",
        "random sets to compare with (20)",
        type=_number_of_sets,
        default=20,
        metavar="INT",
    ),
    option(
        "--strength",
        "in which sum random sets are as strong as the set (activation); of number they have only "
        "as many features",
        choices=get_args(Strength),
        default="activation",
    ),
    option("--seed", "of the random sets (0)", type=int, default=0, metavar="INT"),
    option(
        "--metric",
        "what is measured (logit-difference)",
        choices=get_args(Metric),
        default="logit-difference",
    ),
    option(
        "--target",
        "the token whose prediction is explained, or a JSON list for their mean (the graph's "
        "target, or the likeliest)",
        type=side,
        metavar="TOKEN",
    ),
    option(
        "--against",
        "the token whose logit is subtracted, or a JSON list (the graph's, or all others together)",
        type=side,
        metavar="TOKEN",
    ),
    constrained_layers(),
    option(
        "--no-freeze-attention",
        "don't keep the prompt's attention patterns",
        dest="freeze_attention",
        action="store_false",
        default=None,
    ),
]

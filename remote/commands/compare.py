"""`client.py compare`: which features graphs share."""

from argparse import Namespace

from rich.console import Console

from remote.commands.connecting import labels_for
from remote.offline.compare import compare
from remote.offline.compare_tables import as_json, print_comparison
from remote.terminal.json_output import print_json


def run(args: Namespace, out: Console, err: Console) -> None:
    with labels_for(args, err) as labels:
        comparison = compare(args.graphs, labels, None if args.json else args.top)
    if args.json:
        print_json(as_json(comparison))
    else:
        print_comparison(out, comparison, args.top)

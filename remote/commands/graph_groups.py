"""An intervention on the groups of a graph: whether they mean on this worker what they do there.

The worker is asked before the job where it can be: `start.py` tells its set, and every worker
refuses a job whose `model_id`, the graph's, isn't its model. Else the answer shows it.
"""

from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console

from errors import ModelNotLoaded
from remote.client import Client
from remote.errors import WorkerFailure
from remote.graphs.groups import GraphGroups
from remote.terminal.text import line, quoted
from schemas import InterveneResponse

_MOST_NAMED = 3  # groups in a sentence


@contextmanager
def of_same_model(args: Namespace, client: Client) -> Iterator[None]:
    """What is asked inside is asked of a worker with the graph's model and set, as far as known.

    Raises:
        WrongFile: the worker has another set.
        WorkerFailure: it has another model; the message begins with the graph's file.
    """
    groups = _groups_of_graph(args)
    if groups is not None:
        groups.origin.check_worker(client.transcoders())
    try:
        yield
    except WorkerFailure as failure:
        if groups is None or args.model_id is not None or failure.code != ModelNotLoaded.code:
            raise
        raise WorkerFailure(failure.code, f"{groups.origin.path}: {failure.message}") from None


def warn_of_inactive(args: Namespace, output: dict[str, Any], err: Console) -> None:
    """Say which of the graph's groups have no feature that is active, as all are in their graph."""
    groups = _groups_of_graph(args)
    if groups is None:
        return
    active = InterveneResponse.model_validate(output).baseline.groups
    inactive = [name for name in groups.groups if active.get(name) is None]
    if inactive:
        more = len(inactive) - _MOST_NAMED
        names = ", ".join(map(quoted, inactive[:_MOST_NAMED]))
        if more > 0:
            names += f" and {more} more"
        err.print(
            f"warning  no feature of {names} is active here, as they are in "
            f"{line(str(groups.origin.path))}: the prompt, or the worker's transcoders, are others "
            "than the graph's",
            style="yellow",
            soft_wrap=True,
        )


def _groups_of_graph(args: Namespace) -> GraphGroups | None:
    groups: GraphGroups | None = getattr(args, "groups_of", None)
    return groups

"""`client.py export`: a graph in forms that other programs read, or as a picture."""

from argparse import Namespace
from pathlib import Path
from typing import Literal

from rich.console import Console

from remote.commands.connecting import labels_for
from remote.download import replacing
from remote.errors import WrongTarget
from remote.labels.labels import Labels
from remote.offline.export import beside, export
from remote.terminal.text import line, size


def run(args: Namespace, out: Console, err: Console) -> None:
    with labels_for(args, err) as labels:
        if args.to in {"png", "svg"}:
            paths = [args.output or beside(args.graph, f".{args.to}")]
            picture = _picture(args.graph, args.to, labels)
            with replacing(paths[0]) as file:
                file.write(picture)
        else:
            paths = export(args.graph, args.to, args.output, labels)
    for path in paths:
        out.print(f"file    {line(str(path))} ({size(path.stat().st_size)})", soft_wrap=True)


def _picture(graph: Path, form: Literal["png", "svg"], labels: Labels | None) -> bytes:
    # With the viewer's server, which the other forms don't need.
    from viewer.graph_files import ViewerError
    from viewer.picture import take_picture

    try:
        return take_picture(graph, form, labels)
    except ViewerError as error:
        raise WrongTarget(str(error)) from None

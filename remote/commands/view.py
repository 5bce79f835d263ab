"""`client.py view`: graphs in the browser, with a worker for what their page asks of one."""

from argparse import Namespace
from contextlib import nullcontext

from rich.console import Console

from remote.commands.connecting import connect, labels_for
from remote.errors import WrongTarget


def run(args: Namespace, _out: Console, err: Console) -> None:
    from remote.viewer_worker import worker_of  # with a web server, which only this command needs
    from viewer.graph_files import ViewerError
    from viewer.server import view

    has_worker = args.worker or args.url is not None or args.endpoint is not None
    try:
        with (
            labels_for(args, err) as labels,
            connect(args) if has_worker else nullcontext() as client,
        ):
            view(
                args.files,
                port=args.port,
                open_browser=not args.no_browser,
                descriptions=labels,
                worker=None if client is None else worker_of(client),
            )
    except ViewerError as error:
        raise WrongTarget(str(error)) from None

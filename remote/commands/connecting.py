"""The worker and the labels that a command uses, as its arguments and the settings say."""

from argparse import Namespace
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from rich.console import Console

from remote.client import Client
from remote.command_line.options import DEFAULT_URL
from remote.commands.settings import read_settings
from remote.errors import NotAllowed, WrongTarget
from remote.labels.labels import Labels, open_labels
from remote.terminal.text import line


def connect(args: Namespace) -> Client:
    """A client of the server that the arguments name.

    Raises:
        NotAllowed: an endpoint is named, and there is no key for it.
        WrongTarget: a setting is wrong, or the address is none.
    """
    settings = read_settings()
    if args.endpoint is None:
        secret = settings.secret
        return Client.to_url(
            args.url or DEFAULT_URL,
            None if secret is None else secret.get_secret_value(),
            kind=args.server,
        )
    if settings.runpod_api_key is None:
        raise NotAllowed("set RUNPOD_API_KEY to a key of the endpoint's account")
    return Client.to_runpod(
        args.endpoint,
        settings.runpod_api_key.get_secret_value(),
        base_url=settings.runpod_endpoint_base_url,
    )


@contextmanager
def labels_for(args: Namespace, err: Console) -> Iterator[Labels | None]:
    """Where the names of features come from, if they are asked for."""
    settings = read_settings()
    asked = getattr(args, "labels", False)  # None: neither --labels nor --no-labels
    if not (settings.feature_labels if asked is None else asked):
        yield None
        return
    key = settings.neuronpedia_api_key
    labels = open_labels(
        settings.neuronpedia_url,
        None if key is None else key.get_secret_value(),
        settings.xdg_cache_home or _cache_home(),
        lambda sentence: err.print(line(sentence), style="yellow", soft_wrap=True),
    )
    with closing(labels):
        yield labels


def _cache_home() -> Path:
    try:
        return Path.home() / ".cache"
    except RuntimeError:  # as in a container, whose user has no entry in /etc/passwd
        raise WrongTarget(
            "no home folder is known; set XDG_CACHE_HOME to a folder in which labels are kept"
        ) from None

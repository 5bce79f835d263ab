"""The HTTP door: the same actions as handler.py's, a path each.

    python start.py                                                    the demo model
    python start.py --model_id google/gemma-2-2b --transcoder_set gemma

Importing this module loads no model and no torch.
"""

import contextlib
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import uvicorn

from contract.command_lines import Parser
from serving import http_bounds, startup
from serving.http_api import create_app
from serving.listening import answering_while_loading, front, listen, listening_host
from settings import Settings

if TYPE_CHECKING:
    from loading.loaded_model import LoadedModel

logger = logging.getLogger(__name__)

# What answers are streamed with; it would be imported by the first graph.
LIBRARIES = ("anyio._backends._asyncio",)

# Seconds in which a job may end after the server was stopped, before it is cancelled.
_GRACE_S = 10

# The settings that arguments override; those of the server are `--host` and `--port`.
_ARGUMENTS = (
    *("model_id", "transcoder_set", "model_dtype", "model_engine", "device", "token_limit"),
    *("max_feature_nodes", "update_interval", "server_host", "server_port"),
    *("attribution_engine", "sae_repo", "sae_expansion", "sae_topk"),
    *("np_model_id", "np_transcoder_source_set", "np_lorsa_source_set"),
)


def main() -> None:
    """Listen, load the model, then serve it until SIGINT or SIGTERM."""
    settings = startup.prepare(**_parse_arguments())
    listeners = listen(settings)
    with answering_while_loading(settings, listeners):
        startup.load(settings, *LIBRARIES, check=True)
    from model_loader import get_model

    loaded = get_model(settings)
    host = listening_host(settings)
    if host != settings.server_host:
        logger.warning("SECRET is not set: listening on %s only, not on SERVER_HOST", host)
    address = f"[{host}]" if ":" in host else host
    logger.info(
        "serving %s, see http://%s:%d/docs", loaded.entry.label, address, settings.listening_port
    )
    with contextlib.suppress(KeyboardInterrupt):  # raised again by uvicorn once it has stopped
        server(settings, loaded).run(listeners)


def server(settings: Settings, loaded: "LoadedModel") -> uvicorn.Server:
    """The server of a loaded model. Its caller runs it, on sockets that listen."""
    app = front(create_app(settings, loaded), settings)
    config = http_bounds.config(app, timeout_graceful_shutdown=_GRACE_S)
    return uvicorn.Server(config)


def _parse_arguments(arguments: Sequence[str] | None = None) -> dict[str, str | None]:
    """The settings that are given as arguments."""
    parser = Parser(
        description="Serve a model over HTTP; without arguments or settings, the demo model."
    )
    for setting in _ARGUMENTS:
        argument = setting.removeprefix("server_")
        flags = dict.fromkeys([f"--{argument}", f"--{argument.replace('_', '-')}"])
        description = Settings.model_fields[setting].description
        parser.add_argument(*flags, dest=setting, metavar="VALUE", help=description)
    given = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value}
    return given | ({"port": None} if "server_port" in given else {})  # which would win over it


if __name__ == "__main__":
    main()

"""The HTTP door: the same actions as handler.py's, a path each.

    python start.py                                                    the demo model
    python start.py --model_id google/gemma-2-2b --transcoder_set gemma

Importing this module loads no model and no torch.
"""

import argparse
import contextlib
import ipaddress
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import uvicorn

import logs
from serving import cpu_threads
from serving.http_api import create_app
from settings import Settings, SettingsError, read_settings

if TYPE_CHECKING:
    from loading.loaded_model import LoadedModel

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"

# Seconds that a job has to end in after the server was told to stop, before it is cancelled.
_GRACE_S = 10

# Argument -> the setting that it overrides.
_ARGUMENTS = {
    "model_id": "model_id",
    "transcoder_set": "transcoder_set",
    "model_dtype": "model_dtype",
    "model_engine": "model_engine",
    "device": "device",
    "token_limit": "token_limit",
    "max_feature_nodes": "max_feature_nodes",
    "update_interval": "update_interval",
    "host": "server_host",
    "port": "server_port",
}


def main() -> None:
    """Load the model, then serve it until told to stop."""
    arguments = _parse_arguments()
    try:
        settings = read_settings(**arguments)
    except SettingsError as error:
        raise SystemExit(f"settings: {error}") from None
    logs.set_up(settings.log_level, as_json=False)
    cpu_threads.set_threads(settings)
    from model_loader import ModelLoadError, get_model, import_libraries, read_weights_ahead
    from serving import fitness

    try:
        read_weights_ahead(settings)
        import_libraries(settings)
        fitness.check_device(settings)
        loaded = get_model(settings)
        fitness.check(settings)
    except (SettingsError, ModelLoadError, fitness.UnfitError) as error:
        raise SystemExit(f"start: {error}") from None
    host = listening_host(settings)
    if host != settings.server_host:
        logger.warning("SECRET is not set: listening on %s only, not on SERVER_HOST", host)
    shown = f"[{host}]" if ":" in host else host
    logger.info(
        "serving %s, see http://%s:%d/docs", loaded.entry.label, shown, settings.server_port
    )
    with contextlib.suppress(KeyboardInterrupt):  # raised again by uvicorn once it has stopped
        server(settings, loaded).run()


def server(settings: Settings, loaded: "LoadedModel") -> uvicorn.Server:
    """The server of a loaded model, to be run."""
    return uvicorn.Server(
        uvicorn.Config(
            create_app(settings, loaded),
            host=listening_host(settings),
            port=settings.server_port,
            log_config=None,  # logs.py's
            access_log=False,  # a line a job is the HTTP door's
            server_header=False,
            timeout_graceful_shutdown=_GRACE_S,
        )
    )


def listening_host(settings: Settings) -> str:
    """SERVER_HOST, or loopback where nothing keeps strangers out."""
    host = settings.server_host
    if settings.secret is not None or _is_loopback(host):
        return host
    return LOOPBACK


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _parse_arguments(arguments: Sequence[str] | None = None) -> dict[str, str]:
    """The settings that arguments give, which win over the environment."""
    parser = argparse.ArgumentParser(
        description="Serve a model over HTTP; without arguments or settings, the demo model."
    )
    for argument, setting in _ARGUMENTS.items():
        flags = dict.fromkeys([f"--{argument}", f"--{argument.replace('_', '-')}"])
        description = Settings.model_fields[setting].description
        parser.add_argument(*flags, dest=setting, metavar="VALUE", help=description)
    given = vars(parser.parse_args(arguments))
    return {setting: value for setting, value in given.items() if value}


if __name__ == "__main__":
    main()

"""The start of both doors, from the environment to a loaded model.

Importing this module imports no torch: the number of its threads has to be set before.
"""

import logging
import os
import signal
import time

import logs
from serving import cpu_threads, error_reports
from serving.identity import identify
from serving.lean_imports import import_lean
from settings import Settings, SettingsError, get_settings, how_threads_wait, read_settings

logger = logging.getLogger(__name__)

_INTERRUPTED = 130  # the exit status that shells use for SIGINT


def prepare(**overrides: str | None) -> Settings:
    """Read the settings, and set up the process's signals, log and threads by them.

    Args:
        overrides: as `read_settings` takes them.

    Raises:
        SystemExit: with one line that says which setting can't be used.
    """
    # While the model loads nothing is lost, and an exception might be raised where Python drops it.
    # A container's first process ignores the default.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    # A terminal that is closed ends the worker as SIGTERM does, then too; `nohup` has it ignored.
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
    # Ctrl-C ends it too, without the traceback of the import that it met; `load` gives it back.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: os._exit(_INTERRUPTED))
    _close_stdin()
    try:
        settings = read_settings(**overrides) if overrides else get_settings()
    except SettingsError as error:
        raise SystemExit(f"settings: {error}") from None
    logs.set_up(settings.log_level, as_json=settings.logs_as_json)
    settings.export_thread_variables(cpu_threads.available_threads())
    return settings


def _close_stdin() -> None:
    """Let stdin be at its end: nobody answers a question that a library asks."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)


def load(settings: Settings, *libraries: str, check: bool) -> None:
    """Load the process's one model.

    Args:
        libraries: modules that the door needs besides.
        check: whether to check that the worker is fit. Runpod's SDK does it for its own door.

    Raises:
        SystemExit: with one line that says why the worker can't start.
    """
    from model_loader import ModelLoadError, get_model, read_weights_ahead
    from serving import fitness

    try:
        error_reports.set_up(settings)
        with error_reports.of_the_start(settings):
            read_weights_ahead(settings)
            import_libraries(settings, *libraries)
            if settings.logs_as_json:
                logs.take_over_libraries()
            fitness.check_device(settings)
            loaded = get_model(settings)
            for is_fit in fitness.checks(settings) if check else ():
                is_fit()
    except (SettingsError, ModelLoadError, fitness.UnfitError) as error:
        if settings.logs_as_json:
            logger.critical("start: %s", error)
            raise SystemExit(1) from None
        raise SystemExit(f"start: {error}") from None
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    logger.info("identity", extra={"event": identify(loaded, settings).model_dump()})


def import_libraries(settings: Settings, *libraries: str) -> None:
    """Import what loading and answering take, lean; for a process that does nothing else.

    The nnsight engine is left to `load`: it uses what lean imports defer.

    Raises:
        SettingsError: the settings name no model.
    """
    from loading.selection import select

    started = time.perf_counter()
    settings.export_hub_variables()
    if select(settings).engine == "transformerlens":
        libraries = ("loading.transformerlens_engine", *libraries)
    import_lean("actions.answer", "loading.build", *libraries)
    import torch

    logger.info(
        "imported the libraries in %.1f s; CPU threads: %d, %s",
        time.perf_counter() - started,
        torch.get_num_threads(),
        how_threads_wait(),
    )

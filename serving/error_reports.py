"""Reports of the worker's own faults to Sentry, where SENTRY_DSN is set.

A report has the type of an exception, the places in the code that it went through, the action and
our own code. It has no message, no local variable and nothing of a request: these may quote a
prompt, a URL or a secret. Sentry's package is imported only when SENTRY_DSN is set.
"""

import atexit
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from errors import Internal
from settings import Settings, SettingsError

_KEPT = ("event_id", "timestamp", "level", "platform", "release", "environment", "tags")
_KEPT_OF_FRAME = ("filename", "module", "function", "lineno", "in_app")
# A thread sends the reports. A process that ends waits at most this long for the last one.
_SENDING_S = 5.0


def set_up(settings: Settings) -> None:
    """Get Sentry ready, if there is a DSN.

    Raises:
        SettingsError: SENTRY_DSN is no DSN.
    """
    if settings.sentry_dsn is None:
        return
    import sentry_sdk
    from sentry_sdk.utils import BadDsn

    try:
        sentry_sdk.init(
            dsn=settings.sentry_dsn.get_secret_value(),
            release=f"attribution-worker@{settings.worker_version}",
            server_name="",
            before_send=_scrubbed,
            default_integrations=False,
            auto_enabling_integrations=False,
            auto_session_tracking=False,
            send_client_reports=False,
            send_default_pii=False,
            include_local_variables=False,
            include_source_context=False,
            max_breadcrumbs=0,
        )
    except BadDsn:
        wanted = Settings.model_fields["sentry_dsn"].description
        raise SettingsError(
            f"SENTRY_DSN=***: it must be https://KEY@HOST/PROJECT ({wanted})"
        ) from None
    atexit.register(_wait_until_sent, settings)


def report(settings: Settings, error: BaseException, code: str, action: str | None = None) -> None:
    """Report an exception if it is a fault of the worker's own, and if there is a DSN."""
    if settings.sentry_dsn is None or code not in (Internal.code, "start"):
        return
    import sentry_sdk

    with sentry_sdk.new_scope() as scope:
        scope.set_tag("code", code)
        scope.set_tag("action", action)
        scope.capture_exception(error)


@contextmanager
def of_the_start(settings: Settings) -> Iterator[None]:
    """Report whatever is raised within, and wait until it is sent.

    What comes next may be `os._exit`, which runs no `atexit`: Runpod's SDK ends a worker with it
    when a fitness check fails.
    """
    try:
        yield
    except Exception as error:
        report(settings, error, "start")
        _wait_until_sent(settings)
        raise


def _wait_until_sent(settings: Settings) -> None:
    if settings.sentry_dsn is not None:
        import sentry_sdk

        sentry_sdk.flush(_SENDING_S)


def _scrubbed(event: Any, _hint: object) -> Any:
    """What may be sent of an event: a choice by name, so that nothing new slips through."""
    exceptions = [
        {
            "type": exception["type"],
            "module": exception.get("module"),
            "stacktrace": {"frames": [_frame(f) for f in _frames(exception)]},
        }
        for exception in event.get("exception", {}).get("values", ())
    ]
    kept = {name: event[name] for name in _KEPT if name in event}
    return {**kept, "exception": {"values": exceptions}}


def _frames(exception: dict[str, Any]) -> list[dict[str, Any]]:
    frames: list[dict[str, Any]] = (exception.get("stacktrace") or {}).get("frames", [])
    return frames


def _frame(frame: dict[str, Any]) -> dict[str, Any]:
    return {name: frame[name] for name in _KEPT_OF_FRAME if name in frame}

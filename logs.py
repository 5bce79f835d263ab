"""How the worker's log lines look: JSON, one an event, on Runpod; readable elsewhere.

A line's own fields come as `extra={"event": {...}}`. Of an exception only its type and traceback
are written: its message may quote a prompt or a signed URL.
"""

import logging
import sys
import traceback
from datetime import UTC, datetime
from types import TracebackType

import orjson

_OWN = (
    "__main__",
    "actions",
    "attribution",
    "delivery",
    "graphs",
    "loading",
    "model_loader",
    "prompting",
    "serving",
    "start",
    "steering",
)

_ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


def set_up(level: str, *, as_json: bool) -> None:
    """Write the worker's own lines from `level` on to stderr, and the libraries' warnings."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if as_json else ReadableLines())
    # Libraries may have set up the root logger when they were imported, hence the force.
    logging.basicConfig(level="WARNING", handlers=[handler], force=True)
    for name in _OWN:
        logging.getLogger(name).setLevel(level)
    if as_json:
        logging.captureWarnings(True)
        sys.excepthook = _log_uncaught


def take_over_libraries() -> None:
    """Write the lines of libraries that have handlers of their own in the worker's form.

    To be called once they are imported.
    """
    for name in list(logging.root.manager.loggerDict):
        library = logging.getLogger(name)
        if library.handlers:
            library.handlers.clear()
            library.propagate = True


def _log_uncaught(
    kind: type[BaseException], error: BaseException, tb: TracebackType | None
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    logging.getLogger(__name__).critical("the process ends", exc_info=(kind, error, tb))


class _Lines(logging.Formatter):
    def formatException(self, ei: _ExcInfo) -> str:  # noqa: N802 - logging's name
        kind, _, tb = ei
        name = kind.__name__ if kind else "exception"
        return "".join(traceback.format_tb(tb)) + name


class JsonLines(_Lines):
    """A JSON object a line: time, level, logger, message, and the event's own fields.

    The time is ISO 8601, in UTC.
    """

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "event", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()


class ReadableLines(_Lines):
    """Time, level, logger, message, and the event's fields as name=value."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        event = getattr(record, "event", {})
        return " ".join([super().formatMessage(record), *(f"{k}={v}" for k, v in event.items())])

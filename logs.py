"""What is logged, and how: the worker's own lines, and of the libraries' only warnings."""

import logging
import traceback
from types import TracebackType

_OWN = (
    "__main__",
    "actions",
    "attribution",
    "delivery",
    "http_api",
    "model_loader",
    "start",
    "steering",
)

_ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


class _Lines(logging.Formatter):
    """An exception is its type and place: its message may quote a prompt or a signed URL."""

    def formatException(self, ei: _ExcInfo) -> str:  # noqa: N802 - logging's name
        kind, _, place = ei
        name = kind.__name__ if kind else "exception"
        return "".join(traceback.format_tb(place)) + name


FORMATTER = _Lines("%(asctime)s %(levelname)s %(name)s: %(message)s")


def set_up(level: str) -> None:
    """Write the worker's own lines at `level` to stderr; of the libraries only warnings."""
    handler = logging.StreamHandler()
    handler.setFormatter(FORMATTER)
    # The Runpod SDK has set up the root logger by being imported, hence the force.
    logging.basicConfig(level="WARNING", handlers=[handler], force=True)
    for name in _OWN:
        logging.getLogger(name).setLevel(level)

"""Ctrl-C from another thread: it ends a wait for a worker at once, as at the terminal.

A thread that waits for bytes of a socket can't be interrupted, but the socket can be shut down
under it. It then gets a KeyboardInterrupt, at which the client stops the job.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from contextvars import ContextVar


class Interruption:
    """What `press` interrupts: the waits within `effective`, each press one of them."""

    def __init__(self) -> None:
        self._is_pressed = threading.Event()
        self._lock = threading.Lock()
        self._connection: socket.socket | None = None  # of which bytes are awaited

    def press(self) -> None:
        with self._lock:
            self._is_pressed.set()
            if self._connection is not None:
                # Not an SSLSocket's own `shutdown`, which takes TLS away under the reader.
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(self._connection, socket.SHUT_RDWR)

    @contextlib.contextmanager
    def effective(self) -> Iterator[None]:
        token = _interruption.set(self)
        try:
            yield
        finally:
            _interruption.reset(token)

    @contextlib.contextmanager
    def of_reading(self, connection: socket.socket) -> Iterator[None]:
        """Interrupt what is read of a connection, which can't be used any more then."""
        with self._lock:
            self._raise_if_pressed()
            self._connection = connection
        try:
            yield
        finally:
            with self._lock:
                self._connection = None
                self._raise_if_pressed()

    def pause(self, seconds: float) -> None:
        if self._is_pressed.wait(seconds):
            self._raise_if_pressed()

    def _raise_if_pressed(self) -> None:
        if self._is_pressed.is_set():
            self._is_pressed.clear()  # what is done about the interruption isn't interrupted
            raise KeyboardInterrupt


_interruption: ContextVar[Interruption] = ContextVar("interruption")


def interruption() -> Interruption | None:
    """The one that is effective here."""
    return _interruption.get(None)


def pause(seconds: float) -> None:
    """`time.sleep`, which can be interrupted."""
    found = interruption()
    if found is None:
        time.sleep(seconds)
    else:
        found.pause(seconds)

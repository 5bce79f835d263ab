"""A job whose model is held while its caller hangs up: it is told so before it can go on."""

import itertools
import threading
from contextlib import contextmanager

from tests.support.http_server import get
from tests.support.polling import until


@contextmanager
def held_after(passes, block):
    """Hold the model of this block before each of its later passes, until the end."""
    go_on, before = threading.Event(), itertools.count()

    def hold(*_):
        if next(before) >= passes:
            assert go_on.wait(60)

    handle = block.register_forward_pre_hook(hold)
    try:
        yield
    finally:
        go_on.set()
        handle.remove()


def until_hung_up(server):
    """Wait until the server has no connection and its job, which has the model, is told so."""
    until(lambda: not server.server_state.connections)
    for _ in range(3):  # turns of the event loop
        assert get(server, "/check-busy").json() == {"busy": True}


def n_failed(server):
    """How many jobs have failed, once none is at work."""
    until(lambda: not get(server, "/check-busy").json()["busy"])
    return get(server, "/health").json()["jobs"]["failed"]

"""The viewer's server in a thread of this process, on a free port of loopback."""

import socket
import threading
from contextlib import contextmanager

from viewer import server as viewer


@contextmanager
def showing(paths):
    """Serve these files; gives the address of the page."""
    server = viewer.server(viewer.create_app(viewer.read_graphs(paths)))
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join()

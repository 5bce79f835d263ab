"""The sockets of the SDK's local API, opened before the model is loaded.

The SDK opens them after that, and says what is wrong only then. Importing this module imports no
SDK.
"""

import argparse
import os
import socket
from collections.abc import Sequence

from serving.listening import open_socket


def listen(arguments: Sequence[str]) -> list[socket.socket]:
    """Listen where the SDK's own arguments say; on each address, if the host is a name.

    Raises:
        SystemExit: with one line that says why it can't be done.
    """
    parser = argparse.ArgumentParser(add_help=False)
    # The defaults are the SDK's.
    parser.add_argument("--rp_api_host", default="localhost")
    parser.add_argument("--rp_api_port", type=int, default=8000)
    parser.add_argument("--rp_api_concurrency", type=int, default=1)
    given, _ = parser.parse_known_args(arguments)
    host, port = given.rp_api_host, given.rp_api_port
    if given.rp_api_concurrency != 1:
        raise SystemExit(
            f"start: --rp_api_concurrency={given.rp_api_concurrency}: one process serves the "
            "model; leave it out"
        )
    listeners = [
        open_socket(f"--rp_api_port={port}", address, port, f"--rp_api_host={host}")
        for address in _addresses(host, port)
    ]
    # The SDK may start a process of its own, which would keep the port when this one has ended.
    for listener in listeners:
        os.register_at_fork(after_in_child=listener.close)
    return listeners


def _addresses(host: str, port: int) -> list[str]:
    """The addresses of a host that this machine can listen on."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, OverflowError, UnicodeError) as error:
        raise SystemExit(
            f"start: --rp_api_host={host}, --rp_api_port={port}: no address to listen on: {error}"
        ) from None
    addresses = list(dict.fromkeys(str(address[0]) for *_, address in found))
    usable = [address for address in addresses if _is_this_machine_s(address)]
    return usable or addresses  # of which opening one says what is wrong


def _is_this_machine_s(address: str) -> bool:
    """Whether an address can be listened on, at a port that is free; a container may lack IPv6."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        socket.create_server((address, 0), family=family).close()
    except OSError:
        return False
    return True

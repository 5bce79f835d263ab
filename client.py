"""Use a worker from the command line, or from Python: `from client import Client`.

    python client.py graph "Michael Jordan joue au"                    start.py on this machine
    python client.py graph "..." --url http://localhost:8000           handler.py --rp_serve_api
    python client.py graph "..." --endpoint abc123                     Runpod, with RUNPOD_API_KEY
    python client.py steer "..." --feature 2:157:4=0 --feature 2:146:4=+10.8

Needs no torch and no model. `python client.py --help` has the rest. `pip install .` installs the
same as the package and the command `attribution_client`.
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from remote.client import Client
    from remote.download import download

__all__ = ["Client", "download", "main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the arguments say and return the exit code; `--help` lists the codes."""
    try:
        # The imports take a second, in which Ctrl-C ends the program as quietly as later.
        from remote.commands.program import run

        return run(arguments)
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        return 130  # the exit code that shells use for SIGINT


def __getattr__(name: str) -> Any:
    """`Client` and `download` are imported when they are asked for, so that `main` begins first."""
    if name == "Client":
        from remote.client import Client

        return Client
    if name == "download":
        from remote.download import download

        return download
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if __name__ == "__main__":
    raise SystemExit(main())

"""`start.py` whose load holds Python's interpreter lock until a line comes on stdin.

That is what loading torch's libraries does for seconds. Without a line, at the end of stdin, the
load fails.
"""

import ctypes
import os
import sys

import model_loader
import start
from serving import http_bounds

_load = model_loader.load
_stdin = os.dup(sys.stdin.fileno())  # before the start closes it


def _load_when_told(settings):
    sys.stdout.write("loading\n")
    sys.stdout.flush()
    byte = ctypes.create_string_buffer(1)
    # PyDLL keeps the lock during a call, unlike CDLL: no other thread of this process runs.
    if ctypes.PyDLL(None).read(_stdin, byte, 1) != 1:
        raise model_loader.ModelLoadError("there was no line")
    return _load(settings)


if __name__ == "__main__":
    # On a busy machine the load takes longer than a client may take to ask.
    http_bounds.HEAD_S = http_bounds.BODY_S = 600.0
    model_loader.load = _load_when_told
    start.main()

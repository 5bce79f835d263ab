"""What the programs of `bounded_process` have in common: they answer requests within their bounds.

The system's own limits are set in the process that can end: Python's checks can't interrupt C or
Rust code.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

# Of requests and answers, a line of JSON each: surrogates pass in both directions as they are.
ENCODING = ("utf-8", "surrogatepass")

Answer = Callable[[dict[str, Any]], dict[str, str]]

_OUT_OF_MEMORY = {"excess": "memory"}


def serve(prepare: Callable[[], Answer], memory_bytes: int, cpu_s: float) -> None:
    """Answer requests until the input ends, or a limit ends the process.

    Args:
        prepare: gives what answers a request. It has as much processor time as a request.
    """
    _limit_memory(memory_bytes)
    with _time(cpu_s):
        try:
            answer = prepare()
        except MemoryError:
            answer = lambda _: _OUT_OF_MEMORY  # noqa: E731
    for line in sys.stdin.buffer:
        with _time(cpu_s):
            try:
                answered = answer(json.loads(line.decode(*ENCODING)))
                out = json.dumps(answered, ensure_ascii=False).encode(*ENCODING)
            except MemoryError:
                answered, out = _OUT_OF_MEMORY, json.dumps(_OUT_OF_MEMORY).encode()
        sys.stdout.buffer.write(out + b"\n")
        sys.stdout.buffer.flush()
        if answered == _OUT_OF_MEMORY:
            return  # what it holds may be in pieces; the next one starts anew


@contextmanager
def _time(cpu_s: float) -> Iterator[None]:
    """Within it the process ends, whatever code it is in, once it has used its processor time."""
    signal.setitimer(signal.ITIMER_PROF, cpu_s)
    yield
    signal.setitimer(signal.ITIMER_PROF, 0)


def _limit_memory(n_bytes: int) -> None:
    try:
        import resource
    except ImportError:  # Windows has none
        return
    with suppress(OSError, ValueError):  # macOS refuses the limit
        resource.setrlimit(resource.RLIMIT_AS, (n_bytes, n_bytes))

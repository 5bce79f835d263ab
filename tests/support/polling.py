"""The one way in which tests wait for what comes about by itself."""

import time
from collections.abc import Callable

# So that a test that waits in vain ends. Where many programs share the processor, the start of a
# worker has taken minutes.
LONGEST_S = 300.0


def until(condition: Callable[[], object]) -> None:
    """Return when the condition holds; fail when it doesn't for LONGEST_S."""
    end = time.monotonic() + LONGEST_S
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"not within {LONGEST_S:.0f} s")
        time.sleep(0.02)

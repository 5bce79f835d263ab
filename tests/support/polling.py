"""The one way in which tests wait for what comes about by itself."""

import time
from collections.abc import Callable


def until(condition: Callable[[], object]) -> None:
    """Return when the condition holds; fail when it doesn't for 30 seconds."""
    for _ in range(1500):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("not within 30 s")

"""Telling how far an attribution has come, and stopping it."""

from collections.abc import Callable

import errors


class Progress:
    """Counts feature nodes; reports (0, total) at once and (total, total) at the end."""

    def __init__(
        self,
        total: int,
        on_progress: Callable[[int, int], None] | None,
        should_stop: Callable[[], bool] | None,
    ) -> None:
        self.total = total
        self.done = 0
        self._on_progress = on_progress
        self._should_stop = should_stop
        self._report()

    def check(self) -> None:
        """Raise `errors.Cancelled` if the caller wants no more; to be called before a batch."""
        if self._should_stop is not None and self._should_stop():
            raise errors.Cancelled(
                f"attribution was stopped after {self.done} of {self.total} feature nodes"
            )

    def advance(self, n_features: int) -> None:
        self.done += n_features
        self._report()

    def _report(self) -> None:
        if self._on_progress is not None:
            self._on_progress(self.done, self.total)

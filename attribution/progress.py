"""How far an attribution has come, and the check that stops it."""

from collections.abc import Callable


class Progress:
    """Counts feature nodes; reports (0, total) at once and (total, total) at the end.

    `check` is to be called before each batch: it raises when the caller wants no more.
    """

    def __init__(
        self,
        total: int,
        on_progress: Callable[[int, int], None] | None,
        check: Callable[[], None],
    ) -> None:
        self.total = total
        self.done = 0
        self.check = check
        self._on_progress = on_progress
        self.advance(0)

    def advance(self, n_features: int) -> None:
        self.done += n_features
        if self._on_progress is not None:
            self._on_progress(self.done, self.total)

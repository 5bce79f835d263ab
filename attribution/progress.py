"""How far an attribution has come, and the check that stops it."""

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Progress:
    """Counts feature nodes; reports (0, total) at the start and (total, total) at the end.

    `check` is to be called before each batch: it raises when the caller wants no more.
    """

    max_feature_nodes: int | None  # None for all that are active
    on_progress: Callable[[int, int], None] | None
    check: Callable[[], None]
    total: int = field(init=False)
    done: int = field(default=0, init=False)

    def start(self, n_active: int) -> None:
        self.total = min(self.max_feature_nodes or n_active, n_active)
        self.advance(0)

    def advance(self, n_features: int) -> None:
        self.done += n_features
        if self.on_progress is not None:
            self.on_progress(self.done, self.total)

"""What a piece of work asks of the device: kernels, copies and synchronisations, by operation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


def _counter() -> Counter[str]:
    return Counter()


@dataclass
class Counts:
    """How often each operation did what the field says, by the operation's name.

    `kernels`: operations that aren't views with an argument or a result on the device. What torch
    composes of others is counted as those; a `_foreach_` operation is one for each tensor, an
    allocation and a copy are one too. A CUDA operation may launch several kernels, so this counts
    calls into the backend, each a launch at least.

    `synchronisations`: the host waits for the device, as it needs a value or a shape from it. A
    copy from the host waits for its stream as well; those are in `to_device` and not here.

    `flop`: those of matrix products, by the dtype that is multiplied. `n_bytes`: what kernels read
    and write, each operand once, and copies to the host under `to the host`.
    """

    kernels: Counter[str] = field(default_factory=_counter)
    to_device: Counter[str] = field(default_factory=_counter)
    to_host: Counter[str] = field(default_factory=_counter)
    synchronisations: Counter[str] = field(default_factory=_counter)
    flop: Counter[str] = field(default_factory=_counter)
    n_bytes: Counter[str] = field(default_factory=_counter)

    @property
    def n_kernels(self) -> int:
        return self.kernels.total()

    @property
    def n_copies(self) -> int:
        return self.to_device.total() + self.to_host.total()

    @property
    def n_synchronisations(self) -> int:
        return self.synchronisations.total()

    def _counters(self) -> tuple[Counter[str], ...]:
        return (
            self.kernels,
            self.to_device,
            self.to_host,
            self.synchronisations,
            self.flop,
            self.n_bytes,
        )

    def copy(self) -> Counts:
        return Counts(*(counter.copy() for counter in self._counters()))

    def __add__(self, other: Counts) -> Counts:
        pairs = zip(self._counters(), other._counters(), strict=True)
        return Counts(*(mine + theirs for mine, theirs in pairs))

    def __sub__(self, earlier: Counts) -> Counts:
        """What was counted since `earlier`, a copy of these counts."""
        pairs = zip(self._counters(), earlier._counters(), strict=True)
        return Counts(*(now - then for now, then in pairs))

    @contextmanager
    def during(self) -> Iterator[Counts]:
        """The counts of a block, which are filled in at its end."""
        before, counted = self.copy(), Counts()
        try:
            yield counted
        finally:
            since = self - before
            for mine, theirs in zip(counted._counters(), since._counters(), strict=True):
                mine.update(theirs)

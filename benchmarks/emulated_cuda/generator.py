"""Random generators that say they are on the emulated device. Their numbers are the CPU's."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.emulated_cuda.tensor import DEVICE

# torch hands operations another Python object for a generator than the one that was made, each time
# the same. Its id is here as long as the generator lives.
_dispatched: set[int] = set()


class DeviceGenerator(torch.Generator):
    """A generator of the device."""

    _as_dispatched: torch.Generator  # kept, so that no other object gets its id

    def __new__(cls) -> DeviceGenerator:
        generator: DeviceGenerator = super().__new__(cls, "cpu")  # type: ignore[call-arg]
        with _Catch() as catch:
            torch.randperm(1, generator=generator)
        assert catch.generator is not None
        generator._as_dispatched = catch.generator
        _dispatched.add(id(catch.generator))
        weakref.finalize(generator, _dispatched.discard, id(catch.generator))
        return generator

    def __init__(self) -> None:
        """Made by `__new__`."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return DEVICE


class _Catch(TorchDispatchMode):
    generator: torch.Generator | None = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.generator = (kwargs or {}).get("generator")
        return func(*args, **(kwargs or {}))


def check_generator(generator: torch.Generator | None) -> None:
    """Raise RuntimeError, as CUDA does, for an operation's generator that is the CPU's."""
    if generator is not None and id(generator) not in _dispatched:
        raise RuntimeError(
            f"Expected a 'cuda' device type for generator but found '{generator.device.type}'"
        )

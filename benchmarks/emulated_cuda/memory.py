"""The emulated device's memory: what is allocated, its peak, and the point where it runs out."""

from __future__ import annotations

import weakref

import torch

DEFAULT_BYTES = 80_000_000_000


class Allocation:
    """A storage on the device. Its bytes are free again when no tensor refers to it."""

    __slots__ = ("__weakref__", "_memory", "n_bytes")

    def __init__(self, memory: DeviceMemory, n_bytes: int) -> None:
        self._memory = memory
        self.n_bytes = n_bytes

    def __del__(self) -> None:
        self._memory.allocated -= self.n_bytes


class DeviceMemory:
    """Counts the bytes of storages that tensors on the device refer to.

    Exactly those: no rounding to blocks, no workspaces of kernels, nothing kept for reuse.
    """

    def __init__(self, n_bytes: int) -> None:
        self.total = n_bytes
        self.largest_allocation: int | None = None
        self.allocated = 0
        self.peak = 0
        self.refused = 0  # allocations
        self._by_address: weakref.WeakValueDictionary[int, Allocation] = (
            weakref.WeakValueDictionary()
        )

    def allocation_of(self, host: torch.Tensor) -> tuple[Allocation, ...]:
        """The allocations behind a tensor's host memory, made if they are new.

        Raises:
            torch.OutOfMemoryError: the device has no room for it.
        """
        if host.layout == torch.sparse_coo:
            parts = (host._indices(), host._values())
            return tuple(allocation for part in parts for allocation in self.allocation_of(part))
        storage = host.untyped_storage()
        address, n_bytes = storage.data_ptr(), storage.nbytes()
        known = self._by_address.get(address)
        if known is not None and known.n_bytes == n_bytes:
            return (known,)
        if not n_bytes:
            return ()
        self._make_room(n_bytes)
        allocation = Allocation(self, n_bytes)
        self.allocated += n_bytes
        self.peak = max(self.peak, self.allocated)
        self._by_address[address] = allocation
        return (allocation,)

    def _make_room(self, n_bytes: int) -> None:
        too_large = self.largest_allocation is not None and n_bytes > self.largest_allocation
        if too_large or self.allocated + n_bytes > self.total:
            self.refused += 1
            raise torch.OutOfMemoryError(
                f"CUDA out of memory. Tried to allocate {n_bytes / 2**20:.2f} MiB. GPU 0 has a "
                f"total capacity of {self.total / 2**30:.2f} GiB of which "
                f"{(self.total - self.allocated) / 2**20:.2f} MiB is free."
            )

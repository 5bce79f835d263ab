"""Running out of memory: as a CUDA device says it, and as the host does."""

from collections.abc import Callable

import torch


def device_is_full() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def library_is_full() -> None:
    raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


def host_is_full() -> None:
    torch.empty(10**15)


FULL: dict[str, Callable[[], None]] = {
    "device": device_is_full,
    "library": library_is_full,
    "host": host_is_full,
}

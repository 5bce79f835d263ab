"""What an exception says of the device: that its memory is full, or that it has failed for good."""

import torch

# What torch's CPU allocator, and the libraries below its CUDA allocator, say when memory is full.
_OUT_OF_MEMORY = (
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "DefaultCPUAllocator: can't allocate memory",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the host's or the device's memory was full."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)


def is_broken_device(error: BaseException, device: torch.device | str) -> bool:
    """Whether a CUDA error has broken the device's context, so that every later call fails too.

    Only some CUDA errors do. A small calculation on the device shows it.
    """
    if not isinstance(error, RuntimeError):
        return False
    if not (isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error)):
        return False
    if not torch.cuda.is_initialized():
        return True
    try:
        torch.zeros(1, device=device).add_(1).item()
    except RuntimeError as after:
        return not is_out_of_memory(after)
    return False

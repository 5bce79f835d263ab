"""What an exception says of the device: that its memory is full, or that it has failed for good."""

import errno
import re

import torch

# What torch's CPU allocator, its memory maps of files, and the libraries below its CUDA allocator
# say when memory is full.
_OUT_OF_MEMORY = re.compile(
    r"CUDA error: out of memory"
    r"|CU[A-Z]+_STATUS_ALLOC_FAILED"
    r"|DefaultCPUAllocator: (can't allocate|not enough) memory"
    # The words of ENOMEM, which end what torch and safetensors say of a call that failed with it.
    r"|[Cc]annot allocate memory( \((os error )?12\)|$)"
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the host's or the device's memory was full."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    is_a_library_s = isinstance(error, RuntimeError) or type(error).__module__.startswith(
        "safetensors"
    )
    return is_a_library_s and _OUT_OF_MEMORY.search(str(error)) is not None


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

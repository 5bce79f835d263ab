"""A CUDA device without a GPU: CUDA's rules and what a piece of work asks of a device, on a CPU.

    with emulated_cuda() as cuda:
        model.to("cuda")
        with cuda.counts.during() as counts:
            attribution.attribute(tokens, model)
        print(counts.n_kernels, counts.synchronisations)

A tensor on it says `cuda:0` and computes with the CPU's kernels, so float32 results are the CPU's
bit for bit. What a real device refuses is refused with its error: operands on several devices,
numpy on device memory, products of several dtypes, more memory than there is; and, unless
`deterministic=False`, operations whose numbers may differ from run to run.

It has no streams, and its time says nothing of a GPU's. Of the kernels that torch has for CUDA
alone it has two: products (`out_dtype`) and softmaxes of 16-bit numbers into float32.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.emulated_cuda.counts import Counts
from benchmarks.emulated_cuda.device import EmulatedCuda, set_running
from benchmarks.emulated_cuda.memory import DEFAULT_BYTES
from benchmarks.emulated_cuda.patches import patched
from benchmarks.emulated_cuda.tensor import DeviceTensor

__all__ = ["Counts", "DeviceTensor", "EmulatedCuda", "emulated_cuda"]


@contextmanager
def emulated_cuda(
    memory_bytes: int = DEFAULT_BYTES, *, deterministic: bool = True
) -> Iterator[EmulatedCuda]:
    """Have a CUDA device in this thread, and whatever asks torch for one find it.

    Another thread takes part in `EmulatedCuda.mode`. Tensors on the device are of no use after.

    Args:
        memory_bytes: what the device has.
        deterministic: refuse operations whose numbers differ from run to run on CUDA.

    Raises:
        RuntimeError: there is an emulated device already.
    """
    emulation = EmulatedCuda(memory_bytes, deterministic=deterministic)
    set_running(emulation)
    try:
        with patched(emulation), emulation.mode():
            yield emulation
    finally:
        set_running(None)

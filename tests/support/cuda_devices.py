"""CUDA for tests: the emulated device, and a real one where there is one."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from benchmarks.emulated_cuda import EmulatedCuda, emulated_cuda

DEVICES = [
    "emulated",
    pytest.param(
        "real",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
        ],
    ),
]
emulated_only = pytest.mark.parametrize("cuda", ["emulated"], indirect=True)


@contextmanager
def cuda_device(kind: str) -> Iterator[EmulatedCuda | None]:
    """A CUDA device in this thread that refuses what isn't deterministic; None for a real one.

    CUBLAS_WORKSPACE_CONFIG, which cuBLAS needs for that, is set in conftest.py.
    """
    if kind == "emulated":
        with emulated_cuda() as emulation:
            yield emulation
        return
    torch.use_deterministic_algorithms(True)
    try:
        yield None
    finally:
        torch.use_deterministic_algorithms(False)


def on_cuda(model: Any) -> Any:
    """A TransformerLens model, moved to the device."""
    return model.to("cuda", print_details=False)


def numbers(
    *shape: int, seed: int = 0, dtype: torch.dtype = torch.float32, device: str = "cuda"
) -> torch.Tensor:
    """Random numbers, the same on each device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(device, dtype)


def places(*values: int) -> torch.Tensor:
    """Indices on the device."""
    return torch.tensor(values, device="cuda")

"""What torch asks of CUDA outside its operations, answered for the emulated device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.emulated_cuda.device import EmulatedCuda
from benchmarks.emulated_cuda.generator import DeviceGenerator

NAME = "emulated CUDA device"


class _GeneratorType(type(torch.Generator)):  # type: ignore[misc]
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, _PLAIN_GENERATOR)


_PLAIN_GENERATOR = torch.Generator


class _Generator(torch.Generator, metaclass=_GeneratorType):
    """`torch.Generator`, which makes those of the device too."""

    def __new__(cls, device: Any = "cpu") -> Any:
        if torch.device(device).type == "cuda":
            return DeviceGenerator()
        return _PLAIN_GENERATOR(device)


@contextmanager
def patched(emulation: EmulatedCuda) -> Iterator[None]:
    """Answer for the device meanwhile; everything is as before at the end.

    One thing stays: where there is no GPU, torch's C++ code has been told to ask no driver when an
    operation's device is CUDA, which nothing but an operation on such a device could tell.
    """
    torch._C._ensureCUDADeviceGuardSet()
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    with ExitStack() as stack:
        for name, answer in _answers(emulation).items():
            stack.enter_context(patch.object(torch.cuda, name, answer))
        stack.enter_context(patch.object(torch, "Generator", _Generator))
        # A parameter that moves is replaced; torch would put the new numbers into the old one.
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        try:
            yield
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(overwrites)


def _answers(emulation: EmulatedCuda) -> dict[str, Any]:
    """Functions of `torch.cuda` by name."""
    memory = emulation.memory
    properties = SimpleNamespace(
        name=NAME, total_memory=memory.total, major=9, minor=0, multi_processor_count=132
    )

    def reset_peak(*_: object) -> None:
        memory.peak = memory.allocated

    def synchronize(*_: object) -> None:
        emulation.counts.synchronisations["synchronize"] += 1

    def answer(value: Any) -> Any:
        return lambda *_, **__: value

    def nothing() -> Any:
        """Seeding the device, whose numbers are the CPU's; emptying caches that aren't there."""
        return answer(None)

    return {
        "_lazy_init": nothing(),
        "is_available": answer(True),
        "is_initialized": answer(True),
        "device_count": answer(1),
        "current_device": answer(0),
        "set_device": nothing(),
        "device": answer(nullcontext()),
        "get_device_name": answer(NAME),
        "get_device_properties": answer(properties),
        "get_device_capability": answer((properties.major, properties.minor)),
        "is_bf16_supported": answer(True),
        "synchronize": synchronize,
        "mem_get_info": lambda *_: (memory.total - memory.allocated, memory.total),
        "memory_allocated": lambda *_: memory.allocated,
        "memory_reserved": lambda *_: memory.allocated,
        "max_memory_allocated": lambda *_: memory.peak,
        "max_memory_reserved": lambda *_: memory.peak,
        "reset_peak_memory_stats": reset_peak,
        "empty_cache": nothing(),
        "ipc_collect": nothing(),
        "manual_seed": nothing(),
        "manual_seed_all": nothing(),
        "seed": nothing(),
        "seed_all": nothing(),
    }

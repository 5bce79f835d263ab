"""The emulated device: it runs operations on the CPU, under CUDA's rules, and counts them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.emulated_cuda import rules
from benchmarks.emulated_cuda.arithmetic import bytes_of, flop_of, n_bytes
from benchmarks.emulated_cuda.counts import Counts
from benchmarks.emulated_cuda.generator import check_generator
from benchmarks.emulated_cuda.memory import DeviceMemory
from benchmarks.emulated_cuda.operations import Operation
from benchmarks.emulated_cuda.tensor import DEVICE, DeviceTensor

P = ParamSpec("P")
T = TypeVar("T")

_CPU = torch.device("cpu")

_running: EmulatedCuda | None = None


def running() -> EmulatedCuda:
    """The emulation whose context is open.

    Raises:
        RuntimeError: none is; a tensor has outlived its device.
    """
    if _running is None:
        raise RuntimeError("the emulated CUDA device of this tensor is gone: its context was left")
    return _running


def set_running(emulation: EmulatedCuda | None) -> None:
    global _running
    if emulation is not None and _running is not None:
        raise RuntimeError("an emulated CUDA device is there already: there can be one")
    _running = emulation


class EmulatedCuda:
    """A CUDA device without a GPU. `emulated_cuda()` makes one.

    `deterministic`: refuse operations whose numbers differ from run to run on CUDA.
    """

    device = DEVICE

    def __init__(self, memory_bytes: int, *, deterministic: bool) -> None:
        self.memory = DeviceMemory(memory_bytes)
        self.deterministic = deterministic
        self.counts = Counts()

    @contextmanager
    def mode(self) -> Iterator[None]:
        """A context in which the thread's operations reach the device, new tensors too.

        It holds in the thread that enters it. `emulated_cuda()` enters one in its own.
        """
        lifts = torch._C._only_lift_cpu_tensors()
        # `torch.tensor(..., device="cuda")` makes a CPU tensor that is then moved, as seen here.
        torch._C._set_only_lift_cpu_tensors(True)
        try:
            with _Mode(self):
                yield
        finally:
            torch._C._set_only_lift_cpu_tensors(lifts)

    def in_thread(self, function: Callable[P, T]) -> Callable[P, T]:
        """The function, for whichever thread calls it, with the mode entered."""

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            with self.mode():
                return function(*args, **kwargs)

        return call

    @contextmanager
    def memory_limited_to(self, n_bytes: int) -> Iterator[None]:
        """Let the device run out of memory where more than `n_bytes` would be allocated in all."""
        before, self.memory.total = self.memory.total, n_bytes
        try:
            yield
        finally:
            self.memory.total = before

    @contextmanager
    def fail_allocations_above(self, n_bytes: int) -> Iterator[None]:
        """Let the device have no room for any single allocation of more than `n_bytes`."""
        before, self.memory.largest_allocation = self.memory.largest_allocation, n_bytes
        try:
            yield
        finally:
            self.memory.largest_allocation = before

    def count_read(self, name: str) -> None:
        """Count that the host reads a tensor."""
        self.counts.to_host[name] += 1
        self.counts.synchronisations[name] += 1

    def dispatch(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation, wherever its arguments are."""
        devices: list[DeviceTensor] = []
        hosts: list[torch.Tensor] = []
        host_args = _unwrapped(args, devices, hosts)
        host_kwargs = {name: _unwrapped(value, devices, hosts) for name, value in kwargs.items()}
        target = kwargs.get("device")
        # `aten.to`, which arrives only in inference mode, has its device among the others.
        named = [target, *(arg for arg in args if isinstance(arg, torch.device))]
        to_device = any(device is not None and _is_cuda(device) for device in named)
        if not devices and not to_device:
            return func(*args, **_without_pinning(kwargs))
        op = Operation.of(func)
        if op.is_composite:
            with _Mode(self):
                return func.decompose(*args, **kwargs)
        if hosts and devices:
            rules.check_devices(op, hosts, args, kwargs)
        if devices:
            if self.deterministic:
                rules.check_deterministic(op, args, kwargs, hosts=host_args)
            rules.check_dtypes(op, args, kwargs)
        if "generator" in op.arguments:
            check_generator(op.argument("generator", args, kwargs))
        if target is not None:
            host_kwargs["device"] = _CPU
        host_kwargs = _without_pinning(host_kwargs)
        result = self._run(op, func, args, kwargs, host_args, host_kwargs)
        self._count(op, args, kwargs, hosts, to_device)
        if op.launches:
            self._count_work(op, func, host_args, host_kwargs, result)
        stays = to_device or (target is None and op.name != "copy_")
        return self._results(op, result, args, kwargs, on_device=stays)

    def _run(
        self,
        op: Operation,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        host_args: tuple[Any, ...],
        host_kwargs: dict[str, Any],
    ) -> Any:
        """The operation's result on the host, where the CPU may lack what CUDA has."""
        if op.name in ("mm", "bmm", "addmm", "baddbmm") and "out_dtype" in op.arguments:
            out_dtype = op.argument("out_dtype", args, kwargs)
            rules.check_out_dtype(op, out_dtype, args, kwargs)
            return _product_into(op, out_dtype, host_args, host_kwargs)
        if op.name in ("_softmax", "_log_softmax") and host_args[2]:  # from 16 bits into float32
            return func(host_args[0].float(), host_args[1], False, **host_kwargs)
        return func(*host_args, **host_kwargs)

    def _count(
        self,
        op: Operation,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        hosts: list[torch.Tensor],
        to_device: bool,
    ) -> None:
        counts, name = self.counts, op.name
        kernels = op.n_kernels(args)
        if kernels:
            counts.kernels[name] += kernels
        waits = op.n_synchronisations(args, kwargs)
        if name in ("copy_", "_to_copy"):
            source = args[1] if name == "copy_" else args[0]
            arrives = args[0].is_cuda if name == "copy_" else to_device or "device" not in kwargs
            if source.is_cuda and not arrives:
                counts.to_host[name] += 1
                counts.n_bytes["to the host"] += n_bytes(source)
                waits = 1
            elif arrives and not source.is_cuda:
                counts.to_device[name] += 1
        elif op.indexes:
            counts.to_device[name] += sum(1 for host in hosts if host.dim())
        elif name == "_local_scalar_dense":
            counts.to_host[name] += 1
        if waits:
            counts.synchronisations[name] += waits

    def _count_work(
        self,
        op: Operation,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        result: Any,
    ) -> None:
        self.counts.n_bytes[op.name] += bytes_of(op, args, kwargs, result)
        flop = flop_of(op, func, args, result)
        if flop is not None:
            self.counts.flop[flop[0]] += flop[1]

    def _results(
        self,
        op: Operation,
        result: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        on_device: bool,
    ) -> Any:
        if any(name is not None for name in op.writes):
            written = [op.argument(name, args, kwargs) for name in op.writes if name is not None]
            if op.reshapes:
                for tensor in written:
                    if isinstance(tensor, DeviceTensor):
                        tensor.take_host_shape()
            return written[0] if len(op.writes) == 1 else tuple(written)
        if not on_device:
            return result
        # A view of a tensor from before inference mode is none of inference mode's own.
        if op.is_view and torch.is_inference_mode_enabled() and not args[0].is_inference():
            with torch.inference_mode(mode=False):
                return self._wrapped(result)
        return self._wrapped(result)

    def _wrapped(self, result: Any) -> Any:
        if isinstance(result, torch.Tensor):
            return DeviceTensor(result, self)
        if isinstance(result, list | tuple):
            return type(result)(self._wrapped(part) for part in result)
        return result


class _Mode(TorchDispatchMode):
    def __init__(self, emulation: EmulatedCuda) -> None:
        super().__init__()
        self._emulation = emulation

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return self._emulation.dispatch(func, args, kwargs or {})


def _unwrapped(value: Any, devices: list[DeviceTensor], hosts: list[torch.Tensor]) -> Any:
    """The value with host tensors for the device's; each tensor is added to its list."""
    if isinstance(value, DeviceTensor):
        devices.append(value)
        return value._host
    if isinstance(value, torch.Tensor):
        hosts.append(value)
        return value
    if isinstance(value, list | tuple):
        return type(value)([_unwrapped(part, devices, hosts) for part in value])
    return value


def _is_cuda(device: torch.device) -> bool:
    if device.type == "cuda" and device.index not in (None, 0):
        raise RuntimeError("CUDA error: invalid device ordinal")
    return device.type == "cuda"


def _without_pinning(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Pinned memory is the host's plain memory here."""
    return {**kwargs, "pin_memory": False} if kwargs.get("pin_memory") else kwargs


def _product_into(
    op: Operation, out_dtype: torch.dtype, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> torch.Tensor:
    """A product of 16-bit matrices whose sums stay in float32, as CUDA's are."""
    plain = getattr(torch, op.name)
    n_operands = 3 if op.name in ("addmm", "baddbmm") else 2
    factors = {name: kwargs[name] for name in ("beta", "alpha") if name in kwargs}
    product: torch.Tensor = plain(
        *(operand.to(out_dtype) for operand in args[:n_operands]), **factors
    )
    if "out" not in kwargs:
        return product
    out: torch.Tensor = kwargs["out"]
    return out.resize_(product.shape).copy_(product)

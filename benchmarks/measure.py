"""Time and memory: of a call, on the CPU or a CUDA device, and of a process."""

import ctypes
import gc
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch


class Cost(NamedTuple):
    seconds: float
    cpu_seconds: float  # the same, less what other processes took of the machine
    peak_bytes: int  # beyond what was in use before


def measure(call: Callable[[], Any], device: str = "cpu") -> Cost:
    """Run `call` once. Peak memory is the device's, which for the CPU is the process's."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what earlier calls freed is no memory in use
    on_gpu = device.startswith("cuda")
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        before = resident_bytes()
    start, cpu_start = time.perf_counter(), time.process_time()
    result = call()
    if on_gpu:
        torch.cuda.synchronize()
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    peak = torch.cuda.max_memory_allocated() if on_gpu else status_bytes("VmHWM")
    del result
    return Cost(seconds, cpu_seconds, peak - before)


def medians(costs: list[Cost]) -> Cost:
    return Cost(
        median(c.seconds for c in costs),
        median(c.cpu_seconds for c in costs),
        int(median(c.peak_bytes for c in costs)),
    )


def in_turns(ways: Mapping[str, Callable[[], Any]], repeats: int, device: str) -> dict[str, Cost]:
    """The medians of each way. They run in turns, so that a slow moment of the machine hits all."""
    costs: dict[str, list[Cost]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, run in ways.items():
            costs[name].append(measure(run, device))
    return {name: medians(runs) for name, runs in costs.items()}


def matmul_flops(m: int, k: int, n: int, device: str, dtype: torch.dtype) -> float:
    """FLOP a second of a plain (m, k) x (k, n) matrix product, the best of several."""
    a, b = torch.randn(m, k).to(device, dtype), torch.randn(k, n).to(device, dtype)
    repeats = max(3, int(2e9 / (2 * m * k * n)))
    best = min(
        _machine_seconds(lambda: [torch.mm(a, b) for _ in range(repeats)], device) for _ in range(5)
    )
    return 2 * m * k * n * repeats / best


def _machine_seconds(call: Callable[[], Any], device: str) -> float:
    cost = measure(call, device)
    return cost.seconds if device.startswith("cuda") else cost.cpu_seconds


def machine(device: str) -> str:
    """The device in a few words."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(torch.device(device))
    return f"{torch.get_num_threads()} CPU thread, no GPU"


def resident_bytes() -> int:
    """Memory that the process holds now, files mapped into it included."""
    return status_bytes("VmRSS")


def status_bytes(field: str, pid: int | str = "self") -> int:
    """What Linux says of a process's memory; 0 of one that has ended."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return 1024 * int(found[1]) if found else 0


def cpu_seconds(pid: int) -> float:
    """CPU time that all threads of a process have taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def from_own_process(module: str, *arguments: str) -> Any:
    """What a module of `benchmarks` writes as JSON on its last line, when it runs by itself."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])

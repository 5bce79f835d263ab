"""Short jobs in a row through Runpod's queue: our loop beside the SDK's own.

    python -m benchmarks.throughput [--jobs 20]

Both run `handler.handler` on the demo model, one job at a time, against the tests' stand-in for
Runpod, in turn. Times count from the first job handed over to the last result.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.measure import machine
from tests.support.control_plane import ControlPlane, running_worker

BODY = {"action": "forward-pass", "prompt": "Michael Jordan joue au"}
SDK_ALONE = """
import runpod
import handler
from model_loader import get_model
from settings import get_settings

get_model(get_settings())
runpod.serverless.start({"handler": handler.handler})
"""
WORKERS = {"the SDK's loop": ("-c", SDK_ALONE), "handler.py": ("handler.py",)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    print(machine("cpu"))
    seconds: dict[str, list[float]] = {name: [] for name in WORKERS}
    for _ in range(args.rounds):
        for name, command in WORKERS.items():
            seconds[name].append(_in_a_row(command, args.jobs))
    for name, taken in seconds.items():
        print(f"{name:16} {args.jobs} jobs in {statistics.median(taken):.2f} s (median)")


def _in_a_row(command: tuple[str, ...], n_jobs: int) -> float:
    directory = Path(tempfile.mkdtemp())
    with ControlPlane() as plane, running_worker(plane, directory, *command):
        plane.result(plane.submit(BODY))  # the model is loaded, the first job done
        started = time.perf_counter()
        for job_id in [plane.submit(BODY) for _ in range(n_jobs)]:
            plane.result(job_id)
        return time.perf_counter() - started


if __name__ == "__main__":
    main()

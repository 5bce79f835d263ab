"""From the start of the process to its first answer: the worker beside a plain script.

    python -m benchmarks.cold_start             # both, in turn, medians of five
    python -m benchmarks.cold_start --rounds 1

The worker is started as it is in production, `python handler.py` and `python start.py`, and the
plain script (plain_worker.py) as its author would; each answers one job of the demo model through
the SDK's local mode, one thread each. Files are in the page cache. A stage ends when its line comes
out of the process.
"""

import argparse
import json
import os
import re
import resource
import socket
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import NamedTuple

import requests

ROOT = Path(__file__).parent.parent
PROMPT = "Michael Jordan joue au"
# What an answer has to hold: a pattern for each program's output, whose groups have to agree.
ANSWERS = {
    "generate-graph": (r"^(nodes|links) +(\d+)", r"^(nodes|links) +(\d+)"),
    "forward-pass": (r'^likeliest (".+?")', r'^(".+?") +\d+ +0\.\d+'),
}
PLAIN, WORKER = "plain script", "worker"
PROGRAMS = {PLAIN: "benchmarks/plain_worker.py", WORKER: "handler.py"}
STAGES = ("imports", "model", "first answer")
# What a program's line has in it when a stage is over.
MARKS = {
    PLAIN: ("imported", "loaded", "completed successfully"),
    WORKER: ("imported the libraries", "loaded ", " to load the model, "),
}


class Start(NamedTuple):
    stages: tuple[float, ...]  # seconds, in the order of STAGES
    cpu_seconds: float
    output: str

    @property
    def seconds(self) -> float:
        return sum(self.stages)


def start(program: str, action: str) -> Start:
    """Start a program, let it answer one job, and time its stages."""
    job = json.dumps({"input": {"action": action, "prompt": PROMPT}})
    command = [sys.executable, "-u", str(ROOT / PROGRAMS[program]), "--test_input", job]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as directory:
        began = time.perf_counter()
        process = subprocess.Popen(
            command,
            cwd=directory,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        marks, ends, lines = list(MARKS[program]), [began], []
        for line in process.stdout:
            lines.append(line)
            if marks and marks[0] in line:
                ends.append(time.perf_counter())
                marks.pop(0)
        process.wait()
    output = "".join(lines)
    if marks or process.returncode != 0:
        raise SystemExit(f"{program} did not say {marks}:\n{output}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    stages = tuple(end - begin for begin, end in pairwise(ends))
    return Start(stages, cpu, output)


def start_server() -> Start:
    """Start start.py and time it until `/health` answers, as one stage."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [sys.executable, str(ROOT / "start.py"), "--model_id", "demo", "--port", str(port)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    try:
        while not answers(f"http://127.0.0.1:{port}/health"):
            if process.poll() is not None:
                raise SystemExit(f"start.py ended with {process.returncode}")
            time.sleep(0.02)
        seconds = time.perf_counter() - began
    finally:
        process.terminate()
        process.wait()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Start((seconds,), cpu, "")


def answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=1).ok
    except requests.ConnectionError:
        return False


def check_equal(action: str, plain: Start, worker: Start) -> None:
    """Stop unless both gave the same answer."""
    patterns = ANSWERS[action]
    said = [
        sorted(re.findall(pattern, start.output, re.M))
        for pattern, start in zip(patterns, (plain, worker), strict=True)
    ]
    if not said[0] or said[0] != said[1]:
        raise SystemExit(f"different answers: {said}\n{plain.output[-2000:]}\n{worker.output}")


def medians(starts: list[Start]) -> tuple[list[float], float, float]:
    """Of the stages, the whole and the CPU time."""
    stages = [median(stage) for stage in zip(*(s.stages for s in starts), strict=True)]
    return stages, median(s.seconds for s in starts), median(s.cpu_seconds for s in starts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--actions", nargs="+", choices=ANSWERS, default=list(ANSWERS))
    arguments = parser.parse_args()
    print(f"| program | job | {' | '.join(STAGES)} | together | of CPU |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for action in arguments.actions:
        rounds = [(start(PLAIN, action), start(WORKER, action)) for _ in range(arguments.rounds)]
        for plain, worker in rounds:
            check_equal(action, plain, worker)
        totals = {}
        for program, starts in zip(PROGRAMS, zip(*rounds, strict=True), strict=True):
            stages, seconds, cpu = medians(list(starts))
            totals[program] = seconds, cpu
            cells = " | ".join(f"{stage:.2f}" for stage in stages)
            print(f"| {program} | {action} | {cells} | {seconds:.2f} s | {cpu:.2f} s |")
        wall, cpu = (totals[WORKER][i] / totals[PLAIN][i] for i in (0, 1))
        print(f"| ratio | {action} | | | | {wall:.2f} | {cpu:.2f} |", flush=True)
    _, seconds, cpu = medians([start_server() for _ in range(arguments.rounds)])
    print(f"| start.py | /health | | | | {seconds:.2f} s | {cpu:.2f} s |")


if __name__ == "__main__":
    main()

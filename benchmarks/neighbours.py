"""A graph alone and beside busy neighbours, with threads as torch has them and as the worker has.

    python -m benchmarks.neighbours             # medians of three
    python -m benchmarks.neighbours --rounds 1

Random weights of SmolLM-135M's shape with a transcoder in each layer, in files; float32 on the CPU.
Each graph is `python handler.py`'s, as `make run` starts it, in a process of its own, and its time
the one that the worker says the job took. The neighbours are a busy loop for each core. "As torch
has them" is the worker that leaves OpenMP's variables alone: a thread for each core of the machine,
which spins for milliseconds before it sleeps. Beside them what else the environment could say: to
spin for some 10 microseconds, and to compute in one thread.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import torch
from transformers import LlamaConfig

from benchmarks import llama_files

ROOT = Path(__file__).parent.parent
CONFIG = LlamaConfig(
    architectures=["LlamaForCausalLM"],
    vocab_size=49_152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    head_dim=64,
    max_position_embeddings=2048,
    tie_word_embeddings=True,
    dtype=torch.float32,
)
N_FEATURES, THRESHOLD = 2304, 2.5  # some 15 active features a token and layer
PROMPT = "Michael Jordan joue au basket et Zidane joue au football"
JOB = {"input": {"action": "generate-graph", "prompt": PROMPT, "max_feature_nodes": 1000}}
# What may be set around the benchmark and would decide instead.
VARIABLES = (
    "CPU_THREADS",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "GOMP_SPINCOUNT",
)
BEFORE = """
import handler
from settings import Settings
Settings.export_thread_variables = lambda *_: None
handler.main()
"""
HANDLER = [str(ROOT / "handler.py")]
# How threads are set: a program, and variables beside.
WAYS: dict[str, tuple[list[str], dict[str, str]]] = {
    "as torch has them": (["-c", BEFORE], {}),
    "as the worker has them": (HANDLER, {}),
    "a short spin": (HANDLER, {"GOMP_SPINCOUNT": "1000"}),
    "one thread": (HANDLER, {"CPU_THREADS": "1"}),
}


def random_weight(shape: torch.Size) -> torch.Tensor:
    return torch.ones(shape) if len(shape) == 1 else torch.randn(shape) * shape[-1] ** -0.5


def random_transcoder() -> dict[str, torch.Tensor]:
    d_model = CONFIG.hidden_size
    matrices = {n: random_weight(torch.Size((N_FEATURES, d_model))) for n in ("W_enc", "W_dec")}
    return {
        **matrices,
        "b_enc": torch.zeros(N_FEATURES),
        "b_dec": torch.zeros(d_model),
        "activation_function.threshold": torch.full((N_FEATURES,), THRESHOLD),
    }


def graph(program: list[str], variables: dict[str, str], weights: Path) -> tuple[float, str]:
    """The seconds that a worker takes for the graph, and what it says of its threads."""
    environment = {n: v for n, v in os.environ.items() if n not in VARIABLES}
    environment |= {
        "MODEL_ID": str(weights / "model"),
        "TRANSCODER_SET": str(weights / "transcoders"),
        "DEVICE": "cpu",
        "PYTHONPATH": str(ROOT),
        **variables,
    }
    with tempfile.TemporaryDirectory() as directory:
        done = subprocess.run(
            [sys.executable, *program, "--test_input", json.dumps(JOB)],
            cwd=directory,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    seconds = re.search(r"([\d.]+) s for the job", done.stdout)
    threads = re.search(r"CPU threads: (.+)", done.stderr)
    if seconds is None or threads is None:
        raise SystemExit(f"{program} made no graph:\n{done.stdout}\n{done.stderr}")
    return float(seconds[1]), threads[1]


@contextmanager
def neighbours(number: int) -> Iterator[None]:
    """As many processes that never wait."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    n_cores = len(os.sched_getaffinity(0))
    times: dict[tuple[str, bool], list[float]] = {}
    threads = {}
    with tempfile.TemporaryDirectory() as directory:
        torch.manual_seed(0)
        llama_files.write(Path(directory), CONFIG, random_weight, random_transcoder)
        for _ in range(arguments.rounds):
            for busy in (False, True):
                for name, (program, variables) in WAYS.items():
                    with neighbours(n_cores if busy else 0):
                        seconds, threads[name] = graph(program, variables, Path(directory))
                    times.setdefault((name, busy), []).append(seconds)
    print(f"{n_cores} cores, {n_cores} busy loops, medians of {arguments.rounds}\n")
    print("| threads | the log says | alone | beside busy loops | ratio |")
    print("| --- | --- | --- | --- | --- |")
    for name in WAYS:
        alone, beside = median(times[name, False]), median(times[name, True])
        cells = f"{alone:.2f} s | {beside:.2f} s | {beside / alone:.2f}"
        print(f"| {name} | {threads[name]} | {cells} |")


if __name__ == "__main__":
    main()

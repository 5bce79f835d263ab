"""A generation repeated with other thresholds, beside the first, on a reference workload.

    OMP_NUM_THREADS=1 python -m benchmarks.repeat R1

The first attributes; the second finds the attribution kept and only prunes and writes it out. A
third, after the kept attributions are dropped, must give the second's bytes.
"""

import argparse
import threading
import time
import warnings
from dataclasses import replace
from statistics import median
from typing import Any

import orjson
import torch

from actions import generate_graph
from actions.job import Job
from benchmarks.measure import machine
from benchmarks.reference_workload import WORKLOADS, build
from delivery import Spooled
from graphs.cache import GraphCache
from loading.entry import ModelEntry
from loading.loaded_model import LoadedModel
from schemas import GenerateGraphRequest, parse_request
from settings import Settings


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("workload", nargs="?", choices=WORKLOADS, default="R1")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    model, tokens, settings = build(args.workload, device="cpu", dtype=torch.float32)
    del settings["update_interval"]  # a setting of the worker, not of a request
    entry = ModelEntry("synthetic", "synthetic", "synthetic")
    cache = GraphCache(10**9)
    loaded = LoadedModel(entry, model, model.tokenizer, frozenset(), cache)
    prompt = model.tokenizer.decode(tokens[1:])
    first_body = {"prompt": prompt, "slug_identifier": "x", **settings}
    repeat_body = {**first_body, "node_threshold": 0.7, "edge_threshold": 0.9}

    firsts, repeats = [], []
    for _ in range(args.repeats):
        loaded = replace(loaded, graphs=GraphCache(10**9))
        first_s, _ = generate(first_body, loaded)
        repeat_s, repeated = generate(repeat_body, loaded)
        firsts.append(first_s)
        repeats.append(repeat_s)
    _, fresh = generate(repeat_body, replace(loaded, graphs=GraphCache(10**9)))
    for document in (repeated, fresh):
        del document["metadata"]["info"]
    assert repeated == fresh
    print(machine("cpu"))
    print(
        f"{args.workload}: first {median(firsts):.3f} s, repeated with other thresholds "
        f"{median(repeats):.3f} s ({median(firsts) / median(repeats):.0f} times faster), equal to "
        f"a fresh one ({len(fresh['nodes'])} nodes, {len(fresh['links'])} links)"
    )


def generate(body: dict[str, Any], loaded: LoadedModel) -> tuple[float, dict[str, Any]]:
    """Seconds that a request takes, and its document."""
    request = parse_request(body)
    assert isinstance(request, GenerateGraphRequest)
    job = Job(Settings(token_limit=512), threading.Event())
    started = time.perf_counter()
    spooled = generate_graph.run(request, loaded, job)
    seconds = time.perf_counter() - started
    assert isinstance(spooled, Spooled)
    with spooled:
        return seconds, orjson.loads(b"".join(spooled.chunks()))


if __name__ == "__main__":
    main()

"""`make run`: run one job in the SDK's local mode, write its graph to a file, print a summary."""

import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson
import runpod
from rich.console import Console

from remote.terminal import summary

OUTPUT_DIRECTORY = Path("out")

Handler = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


def run(handler: Handler, model: str, loading_s: float) -> None:
    """Run the job of `test_input.json` or `--test_input`, write its graph and print a summary.

    Args:
        model: its name, for the summary.
        loading_s: seconds that the model took to load, for the summary.

    Raises:
        SystemExit: from the SDK at its end: 0 when the job succeeded, else 1.
    """
    outputs: list[dict[str, Any]] = []
    experiments: list[Any] = []
    started = time.perf_counter()

    async def run_and_keep(job: dict[str, Any]) -> dict[str, Any]:
        experiments.extend(job["input"].get("experiments") or ())
        output = await handler(job)
        outputs.append(dict(output))  # a copy, because the SDK removes `error` from the dict
        return output

    try:
        runpod.serverless.start({"handler": run_and_keep})
    except SystemExit:
        if outputs and "error" not in outputs[0]:
            took_s = time.perf_counter() - started
            _summarise(outputs[0], experiments, model, loading_s, took_s)
        raise


def _summarise(
    output: dict[str, Any], experiments: list[Any], model: str, loading_s: float, job_s: float
) -> None:
    console = Console(highlight=False, emoji=False)
    path = None
    if "nodes" in output:
        OUTPUT_DIRECTORY.mkdir(exist_ok=True)
        path = OUTPUT_DIRECTORY / f"{output['metadata']['slug']}.json"
        path.write_bytes(orjson.dumps(output))
    summary.print_output(console, output, path, model, experiments=experiments)
    console.print(f"time    {loading_s:.1f} s to load the model, {job_s:.2f} s for the job")

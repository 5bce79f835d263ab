"""`make run`: one job through the SDK's local mode, its graph kept, its result in plain words."""

import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson
import runpod
from rich.console import Console
from rich.table import Table

from settings import Settings

OUTPUT_DIRECTORY = Path("out")

Handler = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


def wanted(settings: Settings) -> bool:
    """Whether the SDK will run one local job: no job queue is set, and no API is asked for."""
    return settings.runpod_webhook_get_job is None and "--rp_serve_api" not in sys.argv


def run(handler: Handler) -> None:
    """Run the job of `test_input.json` or `--test_input`, keep its graph and print a summary.

    Raises:
        SystemExit: as the SDK's local mode ends: 0 when the job succeeded, else 1.
    """
    outputs: list[dict[str, Any]] = []
    started = time.perf_counter()

    async def kept(job: dict[str, Any]) -> dict[str, Any]:
        output = await handler(job)
        # The SDK takes `error` out of the dict it is given.
        outputs.append(dict(output))
        return output

    try:
        runpod.serverless.start({"handler": kept})
    except SystemExit:
        if outputs and "error" not in outputs[0]:
            summarise(outputs[0], time.perf_counter() - started)
        raise


def summarise(output: dict[str, Any], seconds: float) -> None:
    """Print what a job gave; a graph is written to `out/<slug>.json` first."""
    console = Console(highlight=False)
    if "nodes" in output:
        OUTPUT_DIRECTORY.mkdir(exist_ok=True)
        path = OUTPUT_DIRECTORY / f"{output['metadata']['slug']}.json"
        path.write_bytes(orjson.dumps(output))
        _graph_summary(console, output, path)
    else:
        console.print_json(data=output)
    console.print(f"\nwhole run, model loading included: {seconds:.1f} s")


def _graph_summary(console: Console, graph: dict[str, Any], path: Path) -> None:
    metadata, nodes = graph["metadata"], graph["nodes"]
    console.print(f"\n[bold]{metadata['prompt']}[/bold]  ({metadata['scan']})\n")

    predictions = Table("next token", "probability", title="Likeliest next tokens", **_STYLE)
    for node in _of_type(nodes, "logit"):
        token = node["clerp"].removeprefix("Output ").rsplit(" (p=", 1)[0]
        predictions.add_row(token, f"{node['token_prob']:.3f}")
    console.print(predictions)

    features = Table(
        "layer", "feature", "at token", "activation", title="Strongest features", **_STYLE
    )
    for node in _strongest(graph):
        position = node["ctx_idx"]
        features.add_row(
            node["layer"],
            node["node_id"].split("_")[1],
            f"{position} {metadata['prompt_tokens'][position]!r}",
            f"{node['activation']:.2f}",
        )
    console.print(features)

    scores = metadata["graph_scores"]
    counts = {kind: len(_of_type(nodes, kind)) for kind in _KINDS}
    console.print(
        f"nodes  {len(nodes)} ("
        + ", ".join(f"{count} {_KINDS[kind]}" for kind, count in counts.items())
        + f")\nlinks  {len(graph['links'])}"
        + f"\nscores replacement {scores['replacement_score']:.3f}, "
        + f"completeness {scores['completeness_score']:.3f}"
        + f"\ngraph  {path} ({path.stat().st_size / 1000:.0f} kB)"
    )
    timings = metadata["info"].get("timings_ms", {})
    console.print("stages " + ", ".join(f"{name} {ms:.0f} ms" for name, ms in timings.items()))


_STYLE: dict[str, Any] = {"title_justify": "left", "box": None, "padding": (0, 2, 0, 0)}
_KINDS = {
    "cross layer transcoder": "features",
    "mlp reconstruction error": "errors",
    "embedding": "tokens",
    "logit": "logits",
}


def _of_type(nodes: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [node for node in nodes if node["feature_type"] == kind]


def _strongest(graph: dict[str, Any], count: int = 8) -> list[dict[str, Any]]:
    """The features that come first in the ranking by influence: lowest cumulative influence."""
    features = _of_type(graph["nodes"], "cross layer transcoder")
    return sorted(features, key=lambda node: node["influence"])[:count]

"""`make run`: one job through the SDK's local mode, its graph kept, its result in plain words."""

import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson
import runpod
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from settings import Settings

OUTPUT_DIRECTORY = Path("out")

Handler = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


def wanted(settings: Settings) -> bool:
    """Whether the SDK will run one local job: no job queue is set, and no API is asked for."""
    return settings.runpod_webhook_get_job is None and "--rp_serve_api" not in sys.argv


def run(handler: Handler, loading_s: float) -> None:
    """Run the job of `test_input.json` or `--test_input`, keep its graph and print a summary.

    Args:
        loading_s: seconds that loading the model took, for the summary.

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
            _summarise(outputs[0], loading_s, time.perf_counter() - started)
        raise


def _summarise(output: dict[str, Any], loading_s: float, job_s: float) -> None:
    console = Console(highlight=False)
    if "nodes" in output:
        OUTPUT_DIRECTORY.mkdir(exist_ok=True)
        path = OUTPUT_DIRECTORY / f"{output['metadata']['slug']}.json"
        path.write_bytes(orjson.dumps(output))
        _summarise_graph(console, output, path)
    else:
        console.print_json(data=output)
    console.print(f"time    {loading_s:.1f} s to load the model, {job_s:.2f} s for the job")


def _summarise_graph(console: Console, graph: dict[str, Any], path: Path) -> None:
    metadata = graph["metadata"]
    console.print(f"\n[bold]{escape(metadata['prompt'])}[/bold]  ({metadata['scan']})\n")
    console.print(_predictions(graph))
    console.print()
    console.print(_strongest_features(graph))

    counts = {kind: len(_of_type(graph, kind)) for kind in _KINDS}
    shares = ", ".join(f"{count} {_KINDS[kind]}" for kind, count in counts.items())
    scores = metadata["graph_scores"]
    timings = metadata["info"]["timings_ms"]
    console.print(
        f"\nnodes   {len(graph['nodes'])}: {shares}"
        f"\nlinks   {len(graph['links'])}"
        f"\nscores  replacement {scores['replacement_score']:.3f}, "
        f"completeness {scores['completeness_score']:.3f}"
        f"\ngraph   {path} ({path.stat().st_size / 1000:.0f} kB)"
        f"\nstages  " + ", ".join(f"{name} {ms:.0f} ms" for name, ms in timings.items())
    )


def _predictions(graph: dict[str, Any]) -> Table:
    table = Table("next token", "probability", title="Likeliest next tokens", **_STYLE)
    for node in _of_type(graph, "logit"):
        token = node["clerp"].removeprefix("Output ").rsplit(" (p=", 1)[0]
        table.add_row(escape(token), f"{node['token_prob']:.4f}")
    return table


def _strongest_features(graph: dict[str, Any], count: int = 8) -> Table:
    """The features with most influence on the logits: those of lowest cumulative influence."""
    tokens = graph["metadata"]["prompt_tokens"]
    table = Table(
        "layer", "feature", "at token", "activation", title="Strongest features", **_STYLE
    )
    features = _of_type(graph, "cross layer transcoder")
    for node in sorted(features, key=lambda node: node["influence"])[:count]:
        position = node["ctx_idx"]
        table.add_row(
            node["layer"],
            node["node_id"].split("_")[1],
            f"{position} {escape(repr(tokens[position]))}",
            f"{node['activation']:.2f}",
        )
    return table


def _of_type(graph: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [node for node in graph["nodes"] if node["feature_type"] == kind]


_STYLE: dict[str, Any] = {"title_justify": "left", "box": None, "padding": (0, 2, 0, 0)}
_KINDS = {
    "cross layer transcoder": "features",
    "mlp reconstruction error": "errors",
    "embedding": "tokens",
    "logit": "logits",
}

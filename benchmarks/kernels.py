"""What a graph and a steer ask of a CUDA device: kernels, copies and synchronisations by stage.

    OMP_NUM_THREADS=1 python -m benchmarks.kernels
    OMP_NUM_THREADS=1 python -m benchmarks.kernels --by-operation
    OMP_NUM_THREADS=1 python -m benchmarks.kernels --family "GPT-2"
    OMP_NUM_THREADS=1 python -m benchmarks.kernels --family all
    OMP_NUM_THREADS=1 python -m benchmarks.kernels --complete
    OMP_NUM_THREADS=1 python -m benchmarks.kernels --interventions

Counted on the emulated device (`benchmarks.emulated_cuda`), so no GPU is needed. The model has
Gemma-2-2B's layers and is narrow: what is launched depends on layers, tokens and numbers of
features, not on widths, but for FLOP and bytes. All families side by side are counted on models
that are narrower yet. `--complete` counts a graph of a complete replacement model, with QK tracing,
of as many layers, tokens and features as Neuronpedia's webapp has with Qwen3-1.7B.
`--interventions` counts experiments on a thousand features and a contrast.
"""

import argparse
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

import attribution
import steering
from attribution import freezing, ranking
from attribution.complete import CompleteGraph, QKTraces
from attribution.contrast import contrast
from benchmarks import complete_workload
from benchmarks.complete_workload import CompleteWorkload
from benchmarks.emulated_cuda import Counts, EmulatedCuda, emulated_cuda
from benchmarks.families import FAMILIES
from benchmarks.reference_workload import build
from steering import Frozen, Intervention, Options, generation, passes

Stages = dict[str, Counts]

# Functions whose counts are a stage's, but for what a stage within them counts.
OF_A_GRAPH: list[tuple[str, Any, str]] = [
    ("forward pass", freezing, "run_and_record"),
    # The module: in the package its name is the function's.
    (
        "encoding and freezing",
        import_module("attribution.attribute"),
        "build_local_replacement_model",
    ),
    ("ranking", ranking.Ranking, "influence"),
    ("sweep", import_module("attribution.attribute"), "attribution_rows"),
    ("pruning", attribution, "prune"),
]
# The same of a complete replacement model's graph.
_COMPLETE = "attribution.complete"
OF_A_COMPLETE_GRAPH: list[tuple[str, Any, str]] = [
    ("forward pass", import_module(f"{_COMPLETE}.freezing"), "run_and_record"),
    ("encoding and freezing", import_module(f"{_COMPLETE}.freezing"), "freeze"),
    ("ranking", ranking.Ranking, "influence"),
    ("edges", import_module(f"{_COMPLETE}.attribute"), "attribution_rows"),
    ("tracing", import_module(f"{_COMPLETE}.tracing"), "trace_attention"),
]
_OF_A_STEER: list[tuple[str, Any, str]] = [
    ("reading activations", steering, "feature_activations"),
    ("hooks and dictionaries", generation, "_hooks"),
]
N_STEERED, N_TOKENS = 6, 30
N_SET, N_EXPERIMENTS = 1000, 8


@contextmanager
def staged(
    cuda: EmulatedCuda, functions: list[tuple[str, Any, str]], rest: str
) -> Iterator[Stages]:
    """Count by stage meanwhile; what none of the functions does is `rest`."""
    stages: Stages = {name: Counts() for name, _, _ in functions} | {rest: Counts()}
    running, last = [rest], cuda.counts.copy()

    def close() -> None:
        nonlocal last
        stages[running[-1]] += cuda.counts - last
        last = cuda.counts.copy()

    def counted(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            close()
            running.append(name)
            try:
                return function(*args, **kwargs)
            finally:
                close()
                running.pop()

        return call

    with ExitStack() as stack:
        for name, owner, attribute_name in functions:
            function = counted(getattr(owner, attribute_name), name)
            stack.enter_context(patch.object(owner, attribute_name, function))
        try:
            yield stages
        finally:
            close()


def graph_counts(
    cuda: EmulatedCuda, model: Any, tokens: torch.Tensor, **settings: Any
) -> tuple[Any, Stages]:
    """A prompt's graph, pruned, and its counts by stage."""
    with staged(cuda, OF_A_GRAPH, "the rest") as stages:
        graph = attribution.attribute(tokens, model, **settings)
        attribution.prune(graph)
    return graph, stages


def complete_counts(
    cuda: EmulatedCuda, model: Any, w: CompleteWorkload
) -> tuple[CompleteGraph, QKTraces, Stages]:
    """The graph of a complete replacement model, its traces, and its counts by stage."""
    with staged(cuda, OF_A_COMPLETE_GRAPH, "the rest") as stages:
        # By the modules, whose functions are counted now.
        local = OF_A_COMPLETE_GRAPH[1][1].freeze(model, complete_workload.tokens(w))
        graph = OF_A_COMPLETE_GRAPH[3][1].attribute(
            local, batch_size=w.batch_size, max_feature_nodes=w.max_feature_nodes
        )
        traces = OF_A_COMPLETE_GRAPH[4][1].trace_attention(
            graph, local, top_fraction=w.traced, topk=w.qk_topk
        )
    return graph, traces, stages


def complete_graph_counts(name: str, dtype: torch.dtype) -> tuple[CompleteGraph, QKTraces, Stages]:
    """The same of a workload by its name, on an emulated device of its own."""
    from tests.support.complete_engine import complete_model

    w = complete_workload.WORKLOADS[name]
    with tempfile.TemporaryDirectory() as directory, emulated_cuda() as cuda:
        model = complete_model(complete_workload.write(Path(directory), w), dtype, "cuda")
        return complete_counts(cuda, model, w)


def steer_counts(cuda: EmulatedCuda, model: Any, tokens: torch.Tensor, n_tokens: int) -> Stages:
    """The counts of a steer of six features by stage, default and steered side, as a request's."""
    prompt, n_layers = tokens.tolist(), model.cfg.n_layers
    features = [
        (layer * (n_layers - 1) // (N_STEERED - 1), len(prompt) - 1 - layer, 5 + layer)
        for layer in range(N_STEERED)
    ]
    with staged(cuda, _OF_A_STEER, "passes and sampling") as stages:
        values = steering.feature_activations(model, prompt, features)
        interventions = [
            Intervention(layer, index, None if i % 2 else position, value + 2)
            for i, ((layer, position, index), value) in enumerate(
                zip(features, values, strict=True)
            )
        ]
        options = Options(n_tokens, top_k=5, freeze_attention=True)
        steering.generate_both(model, prompt, interventions, options)
    return stages


def intervention_counts(cuda: EmulatedCuda, model: Any, tokens: torch.Tensor) -> Stages:
    """The counts of experiments on a thousand features, in turns off, and of a contrast."""
    prompt, cfg = tokens.tolist(), model.cfg
    features = [
        (n % cfg.n_layers, 1 + n % (len(prompt) - 1), n % model.transcoders.d_transcoder)
        for n in range(N_SET)
    ]
    features = list(dict.fromkeys(features))
    off = [dict.fromkeys(features[n::N_EXPERIMENTS], 0.0) for n in range(N_EXPERIMENTS)]
    other = [prompt[0], *reversed(prompt[1:])]
    stages: Stages = {}
    with cuda.counts.during() as stages["reading activations"]:
        steering.feature_activations(model, prompt, features)
    with cuda.counts.during() as stages["experiments"]:
        steering.intervene(model, prompt, features, off, Frozen())
    with cuda.counts.during() as stages["contrast"]:
        found = contrast(model, prompt, other, len(prompt) - 1, len(prompt) - 1)
    assert found.features, "both prompts have the same likeliest next token"
    return stages


def pass_counts(cuda: EmulatedCuda, model: Any, tokens: torch.Tensor) -> Stages:
    """The counts of the model's own passes: over the prompt, and over a token behind it."""
    bare, stages = passes.passes_of(model), {}
    ids = tokens[None].to("cuda")
    with torch.inference_mode():
        cache = bare.new_cache(1)
        for name, new in (("over the prompt", ids), ("over one more token", ids[:, -1:])):
            with cuda.counts.during() as stages[f"a pass {name}"]:
                bare.logits(new, cache, {})
    return stages


def table(title: str, stages: Stages) -> str:
    """A markdown table with a row a stage and one for all; FLOP and bytes depend on widths too."""
    lines = [
        f"| {title} | kernels | to the device | to the host | synchronisations | GFLOP | GB |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    total = sum(stages.values(), Counts())
    for name, c in {**stages, "**all**": total}.items():
        copies = f"{c.to_device.total():,} | {c.to_host.total():,}"
        work = f"{c.flop.total() / 1e9:,.1f} | {c.n_bytes.total() / 1e9:,.2f}"
        lines.append(f"| {name} | {c.n_kernels:,} | {copies} | {c.n_synchronisations:,} | {work} |")
    return "\n".join(lines)


def operations(stages: Stages, most: int = 12) -> str:
    """The operations that each stage launches most."""
    lines = []
    for name, counts in stages.items():
        for what, counter in (
            ("kernels", counts.kernels),
            ("synchronisations", counts.synchronisations),
        ):
            often = ", ".join(f"{op} {n:,}" for op, n in counter.most_common(most))
            lines.append(f"- {name}, {what}: {often or 'none'}")
    return "\n".join(lines)


def family_counts(family: str, dtype: torch.dtype = torch.bfloat16) -> tuple[Any, Stages]:
    """The graph of a narrow model of a family, 26 layers and 64 tokens, and its counts by stage."""
    with emulated_cuda() as cuda:
        model, tokens, settings = build("K64-", family=family, device="cuda", dtype=dtype)
        assert attribution.method_for(model) == "explicit sweep"
        return graph_counts(cuda, model, tokens, **settings)


def compare_families(dtype: torch.dtype) -> None:
    """Print a markdown table with a row a family."""
    header = None
    for family in FAMILIES:
        graph, stages = family_counts(family, dtype)
        if header is None:
            header = ["family", "active features", *stages, "all kernels", "synchronisations"]
            print("| " + " | ".join(header) + " |\n| ---" + " | ---:" * (len(header) - 1) + " |")
        total = sum(stages.values(), Counts())
        numbers = [c.n_kernels for c in (*stages.values(), total)] + [total.n_synchronisations]
        cells = [family, *(f"{n:,}" for n in (len(graph.active_features), *numbers))]
        print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--family", choices=[*FAMILIES, "all"], default="reference")
    parser.add_argument("--by-operation", action="store_true")
    parser.add_argument("--complete", action="store_true")
    parser.add_argument("--interventions", action="store_true")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for dtype in args.dtypes:
        if args.complete:
            report_complete("K10", dtype, args.by_operation)
        elif args.interventions:
            report_interventions(args.family, dtype, args.by_operation)
        elif args.family == "all":
            print(f"\n{dtype}\n")
            compare_families(getattr(torch, dtype))
        else:
            report(args.family, dtype, args.by_operation)


def report_complete(name: str, dtype: str, by_operation: bool) -> None:
    """Print what a graph of a complete replacement model launches."""
    graph, traces, stages = complete_graph_counts(name, getattr(torch, dtype))
    print(
        f"\n{graph.cfg.n_layers} layers, {graph.n_pos} tokens, {dtype}: "
        f"{len(graph.active_features):,} active features, "
        f"{len(graph.selected_features):,} feature nodes, {len(traces):,} traced\n"
    )
    print(table("complete graph", stages), "\n", flush=True)
    if by_operation:
        print(operations(stages), "\n", flush=True)


def report_interventions(family: str, dtype: str, by_operation: bool) -> None:
    """Print what experiments and a contrast launch beside the model's own passes."""
    with emulated_cuda() as cuda:
        model, tokens, _ = build("K64-", family=family, device="cuda", dtype=getattr(torch, dtype))
        stages = pass_counts(cuda, model, tokens) | intervention_counts(cuda, model, tokens)
    print(f"\n{family}, {dtype}\n")
    print(table(f"{N_EXPERIMENTS} experiments on {N_SET:,} features", stages), "\n", flush=True)
    if by_operation:
        print(operations(stages), "\n", flush=True)


def report(family: str, dtype: str, by_operation: bool) -> None:
    """Print what a graph, the model's own passes and a steer launch."""
    with emulated_cuda() as cuda:
        model, tokens, settings = build(
            "K64", family=family, device="cuda", dtype=getattr(torch, dtype)
        )
        graph, of_graph = graph_counts(cuda, model, tokens, **settings)
        print(
            f"\n{model.cfg.n_layers} layers, {len(tokens)} tokens, {dtype}: "
            f"{len(graph.active_features):,} active features, "
            f"{len(graph.selected_features):,} feature nodes, batch {settings['batch_size']}, "
            f"ranked every {settings['update_interval']} batches\n"
        )
        of_passes = pass_counts(cuda, model, tokens)
        of_steer = steer_counts(cuda, model, tokens, N_TOKENS)
    steer = f"steering {N_STEERED} features, {N_TOKENS} tokens"
    for title, stages in (("graph", of_graph), ("passes", of_passes), (steer, of_steer)):
        print(table(title, stages), "\n", flush=True)
        if by_operation:
            print(operations(stages), "\n", flush=True)


if __name__ == "__main__":
    main()

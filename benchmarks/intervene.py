"""Interventions and contrasts: this worker's way beside the library's, both in one run.

    OMP_NUM_THREADS=1 python -m benchmarks.intervene
    python -m benchmarks.intervene --device cuda --synthetic

On the demo model: 16 experiments on three groups of four features each, as one batch, beside
circuit-tracer's `feature_intervention` once for each of them (with the activations, of which the
groups' shares are made, and "lean", without). A contrast of two prompts is measured beside
`get_activations` of both. Then the same on the demo's complete set, on which no library
intervenes: the batch beside its experiments one by one, and a contrast beside what graphs of both
prompts start from. With `--synthetic` the model is that of `benchmarks.steer`, and there is no
complete one. Seconds are those of the CPU, of the clock on a GPU; medians, in turns.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

import model_loader
import steering
from attribution.complete import freeze
from attribution.contrast import contrast
from benchmarks import steer
from benchmarks.measure import Cost, in_turns, machine
from settings import Settings
from steering import Experiment, Feature, Frozen

N_EXPERIMENTS = 16
PROMPTS = ("Michael Jordan joue au", "Michael Jordan juega al")
FROZEN = {
    "attention frozen": Frozen(),
    "nothing frozen": Frozen(attention=False),
    "all layers constrained": None,  # as many as the model has
}


def experiments_of(model: Any, ids: list[int]) -> tuple[list[Feature], list[Experiment]]:
    """Twelve active features, and sixteen ways to scale groups of four of them."""
    _, activations = model.get_activations(torch.tensor(ids, device=model.cfg.device))
    strongest = activations[:, 1:].flatten().topk(12).indices.tolist()
    _, n_pos, n_features = activations.shape
    values: dict[Feature, float] = {}
    for place in strongest:
        layer, rest = divmod(place, (n_pos - 1) * n_features)
        feature = (layer, 1 + rest // n_features, rest % n_features)
        values[feature] = float(activations[feature])
    return list(values), _scaled(values)


def _scaled(values: dict[Feature, float]) -> list[Experiment]:
    """Sixteen ways to scale groups of four of the features, with their activations."""
    features = list(values)
    experiments: list[Experiment] = []
    for n in range(N_EXPERIMENTS):
        group = features[4 * (n % 3) : 4 * (n % 3) + 4]
        scale = (n - N_EXPERIMENTS // 2) / 4
        experiments.append({feature: scale * values[feature] for feature in group})
    return experiments


def library_way(
    model: Any, ids: list[int], experiments: list[Experiment], frozen: Frozen, **options: Any
) -> torch.Tensor:
    tokens = torch.tensor(ids, device=model.cfg.device)
    rows = []
    for experiment in experiments:
        interventions = [(*feature, value) for feature, value in experiment.items()]
        logits, _ = model.feature_intervention(
            tokens,
            interventions,
            constrained_layers=frozen.layers or None,
            freeze_attention=frozen.attention,
            **options,
        )
        rows.append(logits[0, -1])
    return torch.stack(rows)


def our_way(
    model: Any,
    ids: list[int],
    features: list[Feature],
    experiments: list[Experiment],
    frozen: Frozen,
) -> torch.Tensor:
    # As the action does: the activations that groups are scaled from, then the batch.
    steering.feature_activations(model, ids, features)
    return steering.intervene(model, ids, features, experiments, frozen).logits[1:]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--synthetic", action="store_true", help="12 random layers, 32 tokens")
    args = parser.parse_args()
    torch.set_num_threads(1)

    model, prompts = _model_and_prompts(args)
    on_gpu = args.device.startswith("cuda")
    print(f"{args.dtype}, {machine(args.device)}; medians of {args.repeats}\n")
    print(f"| {N_EXPERIMENTS} experiments | library | lean | ours | faster | than lean |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    features, experiments = experiments_of(model, prompts[0])
    for name, chosen in FROZEN.items():
        frozen = chosen or Frozen(range(model.cfg.n_layers))
        asked = (experiments, frozen)
        ways: dict[str, Callable[[], Any]] = {
            "library": partial(library_way, model, prompts[0], *asked),
            "lean": partial(library_way, model, prompts[0], *asked, return_activations=False),
            "ours": partial(our_way, model, prompts[0], features, *asked),
        }
        if args.dtype == "float32":
            theirs, ours = ways["library"]().detach(), ways["ours"]()
            torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)
        took = _medians(ways, args)
        times = [_seconds(cost, on_gpu=on_gpu) for cost in took]
        print(
            f"| {name} | "
            + " | ".join(f"{1000 * seconds:.1f} ms" for seconds in times)
            + f" | {times[0] / times[2]:.1f}× | {times[1] / times[2]:.1f}× |",
            flush=True,
        )
    _contrast(model, prompts, args, on_gpu=on_gpu)
    if not args.synthetic:
        _complete(args, on_gpu=on_gpu)


def _complete(args: argparse.Namespace, *, on_gpu: bool) -> None:
    """The rows of the complete demo."""
    settings = Settings(
        _env_file=None,
        device=args.device,
        model_dtype=args.dtype,
        model_id="demo",
        transcoder_set="demo-crm",
    )
    loaded = model_loader.load(settings)
    model, prompts = loaded.model, [loaded.tokenizer(text).input_ids for text in PROMPTS]
    local = freeze(model, torch.tensor(prompts[0]))
    # Twelve of the strongest, which are of both kinds.
    strongest = local.activation_values.topk(48).indices[::4]
    values = dict(
        zip(
            map(tuple, local.active_features[strongest].tolist()),
            local.activation_values[strongest].tolist(),
            strict=True,
        )
    )
    features, experiments = list(values), _scaled(values)
    print(f"\n| complete, {N_EXPERIMENTS} experiments | one by one | as a batch | faster |")
    print("| --- | ---: | ---: | ---: |")
    for name, chosen in FROZEN.items():
        frozen = chosen or Frozen(range(model.cfg.n_layers))

        def one_by_one(frozen: Frozen = frozen) -> torch.Tensor:
            rows = [our_way(model, prompts[0], list(e), [e], frozen) for e in experiments]
            return torch.cat(rows)

        batch = partial(our_way, model, prompts[0], features, experiments, frozen)
        if args.dtype == "float32":
            torch.testing.assert_close(batch(), one_by_one(), atol=1e-3, rtol=1e-3)
        took = _medians({"one by one": one_by_one, "batch": batch}, args)
        alone, together = (_seconds(cost, on_gpu=on_gpu) for cost in took)
        print(
            f"| {name} | {1000 * alone:.1f} ms | {1000 * together:.1f} ms "
            f"| {alone / together:.1f}× |",
            flush=True,
        )
    tokens = [torch.tensor(ids) for ids in prompts]
    both = partial(_frozen, model, tokens)
    title = "complete, contrast"
    _contrast_rows(title, "two freezes", both, model, prompts, args, on_gpu=on_gpu)


def _frozen(model: Any, prompts: list[torch.Tensor]) -> list[Any]:
    return [freeze(model, ids) for ids in prompts]


def _model_and_prompts(args: argparse.Namespace) -> tuple[Any, list[list[int]]]:
    if args.synthetic:
        shape = argparse.Namespace(
            layers=12, d_model=512, features=8192, device=args.device, dtype=args.dtype
        )
        words = torch.randint(2, steer.D_VOCAB, (2, 31)).tolist()
        return steer.build(shape), [[0, *row] for row in words]
    settings = Settings(_env_file=None, device=args.device, model_dtype=args.dtype)
    loaded = model_loader.load(settings)
    return loaded.model, [loaded.tokenizer(text).input_ids for text in PROMPTS]


def _contrast(
    model: Any, prompts: list[list[int]], args: argparse.Namespace, *, on_gpu: bool
) -> None:
    tokens = [torch.tensor(ids, device=model.cfg.device) for ids in prompts]
    both = partial(_activations, model, tokens)
    _contrast_rows("contrast", "two get_activations", both, model, prompts, args, on_gpu=on_gpu)


def _activations(model: Any, prompts: list[torch.Tensor]) -> list[Any]:
    return [model.get_activations(ids) for ids in prompts]


def _contrast_rows(
    title: str,
    beside: str,
    activations_of_both: Callable[[], Any],
    model: Any,
    prompts: list[list[int]],
    args: argparse.Namespace,
    *,
    on_gpu: bool,
) -> None:
    one, other = prompts
    assert contrast(model, one, other, len(one) - 1, len(other) - 1).features
    activations, contrasted, farther = (
        _seconds(cost, on_gpu=on_gpu)
        for cost in _medians(
            {
                "activations": activations_of_both,
                "at the last token": lambda: contrast(
                    model, one, other, len(one) - 1, len(other) - 1
                ),
                "at the first": lambda: contrast(model, one, other, 1, 1),
            },
            args,
        )
    )
    print(f"\n| {title} | {beside} | ours | ratio |")
    print("| --- | ---: | ---: | ---: |")
    for name, ours in (("at the last token", contrasted), ("at the first", farther)):
        print(
            f"| {name} | {1000 * activations:.1f} ms | {1000 * ours:.1f} ms "
            f"| {ours / activations:.2f} |"
        )


def _medians(ways: dict[str, Callable[[], Any]], args: argparse.Namespace) -> list[Cost]:
    for run in ways.values():
        run()
    return list(in_turns(ways, args.repeats, args.device).values())


def _seconds(cost: Cost, *, on_gpu: bool) -> float:
    return cost.seconds if on_gpu else cost.cpu_seconds


if __name__ == "__main__":
    main()

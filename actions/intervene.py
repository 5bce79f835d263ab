"""intervene: what the next token and other features become when groups of features are set."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

import steering
from actions.bounds import check_position, check_top_k
from actions.job import Job, prepare_prompt
from actions.tokens import token_ids
from attribution.salient_logits import likeliest, probabilities_of
from loading.loaded_model import LoadedModel
from prompting.prompts import Prompt
from schemas import (
    GroupChange,
    InterveneRequest,
    InterveneResponse,
    InterventionOutcome,
    SalientLogit,
    TargetLogit,
)
from steering import Experiment, Feature, Frozen

_SHARES = {"tokenise": 1.0, "activations": 9.0, "intervene": 90.0}

# Group -> its features, each once; the position in `features` of all groups for each of them.
_Columns = Mapping[str, list[int]]


def run(request: InterveneRequest, loaded: LoadedModel, job: Job) -> InterveneResponse:
    """The prompt as it is and under each experiment, without generating."""
    job.shares = _SHARES
    frozen = _frozen(request, loaded)
    with job.stage("tokenise"):
        prompt = prepare_prompt(request, loaded, job)
        targets = token_ids("targets", request.targets, loaded)
    named = _named(request, loaded, prompt)
    check_top_k(request.top_k, loaded)
    with job.model(loaded):
        with job.stage("activations"):
            sites, activations, columns = _read(named, loaded, prompt)
        job.counts |= {"features": len(sites), "experiments": len(request.experiments)}
        with job.stage("intervene"):
            outcomes = steering.intervene(
                loaded.model,
                prompt.ids,
                sites,
                [
                    _experiment(changes, columns, sites, activations)
                    for changes in request.experiments
                ],
                frozen,
                check=job.check,
                on_done=_report(job),
            )
    baseline = _sums(torch.tensor([activations]), columns)
    sums = torch.cat([baseline, _sums(outcomes.activations[1:], columns)])
    rows = [
        InterventionOutcome(
            top=top,
            targets=of_targets,
            groups={
                name: None if was == 0 else now / was
                for name, now, was in zip(columns, of_row, baseline[0].tolist(), strict=True)
            },
        )
        for top, of_targets, of_row in zip(
            _top(outcomes.logits, request.top_k, loaded),
            _targets(outcomes.logits, targets, loaded),
            sums.tolist(),
            strict=True,
        )
    ]
    return InterveneResponse(baseline=rows[0], experiments=rows[1:])


def _frozen(request: InterveneRequest, loaded: LoadedModel) -> Frozen:
    asked = request.constrained_layers
    layers = range(0)
    if asked == "all":
        layers = range(loaded.model.cfg.n_layers)
    elif asked is not None:
        layers = range(int(asked[0]), int(asked[1]) + 1)
    frozen = Frozen(layers, request.freeze_attention)
    steering.check_frozen(loaded.model, frozen)
    return frozen


class _Named(NamedTuple):
    """A feature as a group names it, and where the one that is meant may be."""

    name: str
    sites: list[Feature]


def _named(
    request: InterveneRequest, loaded: LoadedModel, prompt: Prompt
) -> dict[str, list[_Named]]:
    """The features of each group, checked against the model and the prompt.

    Raises:
        InvalidInput: model or prompt doesn't have one. The error names feature and bound.
    """
    meant: dict[tuple[int, int, Any], list[int]] = {}
    named: dict[str, list[_Named]] = {}
    for name, group in request.groups.items():
        named[name] = []
        for i, feature in enumerate(group):
            where = f"groups.{name[:60]}[{i}]"
            key = (feature.layer, feature.index, feature.kind)
            if key not in meant:
                meant[key] = steering.layers_meant(loaded.model, *key, where)
            check_position(f"{where}.position", feature.position, len(prompt.ids))
            sites = [(layer, feature.position, feature.index) for layer in meant[key]]
            named[name].append(_Named(where, sites))
    return named


def _read(
    named: Mapping[str, Sequence[_Named]], loaded: LoadedModel, prompt: Prompt
) -> tuple[list[Feature], list[float], dict[str, list[int]]]:
    """The features of all groups with their activations, and which of them are each group's."""
    asked = list(dict.fromkeys(s for group in named.values() for each in group for s in each.sites))
    read = steering.feature_activations(loaded.model, prompt.ids, asked)
    activations = dict(zip(asked, read, strict=True))
    numbers: dict[Feature, int] = {}
    columns: dict[str, list[int]] = {}
    for name, group in named.items():
        mine = []
        for each in group:
            layers = [layer for layer, *_ in each.sites]
            own = [activations[site] for site in each.sites]
            layer = steering.active_layer(layers, own, each.name, "its position")
            mine.append(numbers.setdefault(each.sites[layers.index(layer)], len(numbers)))
        columns[name] = list(dict.fromkeys(mine))
    return list(numbers), [activations[site] for site in numbers], columns


def _experiment(
    changes: Sequence[GroupChange],
    columns: _Columns,
    sites: Sequence[Feature],
    activations: Sequence[float],
) -> Experiment:
    """What each feature is set to; the last change of a feature counts."""
    values: dict[Feature, float] = {}
    for change in changes:
        for n in columns[change.group]:
            if change.scale is not None:
                values[sites[n]] = activations[n] * change.scale
            elif change.value is not None:
                values[sites[n]] = change.value
    return values


def _report(job: Job) -> Callable[[int, int], None]:
    def report(done: int, total: int) -> None:
        job.report("intervene", done / total, f"{done} of {total} experiments")

    return report


def _sums(activations: torch.Tensor, columns: _Columns) -> torch.Tensor:
    """The summed activations (n_rows, n_groups) of each group."""
    return torch.stack([activations[:, group].double().sum(1) for group in columns.values()], dim=1)


def _top(logits: torch.Tensor, top_k: int, loaded: LoadedModel) -> list[list[SalientLogit]]:
    return [
        [
            SalientLogit(token=loaded.token_text.single(n), token_id=n, probability=p)
            for p, n in zip(*(top.tolist() for top in likeliest(row, top_k)), strict=True)
        ]
        for row in logits
    ]


def _targets(
    logits: torch.Tensor, targets: Sequence[int], loaded: LoadedModel
) -> list[list[TargetLogit]]:
    where = torch.tensor(targets, dtype=torch.long, device=logits.device)
    values = logits[:, where].float().tolist()
    probabilities = probabilities_of(logits)[:, where].tolist()
    tokens = loaded.token_text.singles(targets)
    return [
        [
            TargetLogit(token=token, token_id=n, logit=logit, probability=p)
            for token, n, logit, p in zip(tokens, targets, row, of_row, strict=True)
        ]
        for row, of_row in zip(values, probabilities, strict=True)
    ]

"""intervene: what the next token and other features become when groups of features are set."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice

import torch

import steering
from actions import named_features
from actions.bounds import check_n_tokens, check_position
from actions.job import Job, prepare_prompt
from actions.named_features import Named
from actions.tokens import likely, token_ids
from attribution.salient_logits import probabilities_of
from loading.loaded_model import LoadedModel
from prompting.prompts import Prompt
from schemas import (
    GroupChange,
    GroupFeature,
    InterveneRequest,
    InterveneResponse,
    InterventionOutcome,
    SalientLogit,
    TargetLogit,
)
from steering import Experiment, Feature, Frozen, Outcomes

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
    check_n_tokens("top_k", request.top_k, loaded)
    with job.model(loaded):
        with job.stage("activations"):
            meant = named_features.read(named, "its position", loaded, prompt, job)
            columns = _columns(request, (site for site, _ in meant))
            of_sites = dict(meant)
            sites, activations = list(of_sites), list(of_sites.values())
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
                on_done=job.counted("intervene", "experiments"),
            )
    return _response(outcomes, activations, columns, targets, request.top_k, loaded)


def _response(
    outcomes: Outcomes,
    activations: Sequence[float],
    columns: _Columns,
    targets: Sequence[int],
    top_k: int,
    loaded: LoadedModel,
) -> InterveneResponse:
    """What each row of the outcomes says of the next token and of the groups."""
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
            _top(outcomes.logits, top_k, loaded),
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


def _named(request: InterveneRequest, loaded: LoadedModel, prompt: Prompt) -> list[Named]:
    """The features of all groups, checked against the model and the prompt.

    Raises:
        InvalidInput: model or prompt doesn't have one. The error names feature and bound.
    """

    def asked() -> Iterator[tuple[str, GroupFeature, int]]:
        for name, group in request.groups.items():
            for i, feature in enumerate(group):
                where = f"groups.{name[:60]}[{i}]"
                check_position(f"{where}.position", feature.position, len(prompt.ids))
                yield where, feature, feature.position

    return named_features.look_up(asked(), loaded)


def _columns(request: InterveneRequest, meant: Iterable[Feature]) -> dict[str, list[int]]:
    """Which of the distinct features are each group's, each once.

    Args:
        meant: the features of all groups, one group after the other.
    """
    numbers: dict[Feature, int] = {}
    columns = (numbers.setdefault(feature, len(numbers)) for feature in meant)
    return {
        name: list(dict.fromkeys(islice(columns, len(group))))
        for name, group in request.groups.items()
    }


def _experiment(
    changes: Sequence[GroupChange],
    columns: _Columns,
    sites: Sequence[Feature],
    activations: Sequence[float],
) -> Experiment:
    """What each feature is set to; the last change of a feature counts."""
    values: dict[Feature, float] = {}
    # A group's last change sets all of its features: its earlier ones would only take time.
    last = {change.group: number for number, change in enumerate(changes)}
    for change in (changes[number] for number in sorted(last.values())):
        for n in columns[change.group]:
            if change.scale is not None:
                values[sites[n]] = activations[n] * change.scale
            elif change.value is not None:
                values[sites[n]] = change.value
    return values


def _sums(activations: torch.Tensor, columns: _Columns) -> torch.Tensor:
    """The summed activations (n_rows, n_groups) of each group."""
    return torch.stack([activations[:, group].double().sum(1) for group in columns.values()], dim=1)


def _top(logits: torch.Tensor, top_k: int, loaded: LoadedModel) -> list[list[SalientLogit]]:
    top = probabilities_of(logits).topk(top_k)
    rows = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return [likely(ids, probabilities, loaded) for ids, probabilities in rows]


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

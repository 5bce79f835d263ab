"""contrast: which features turn a prompt's prediction into another prompt's, and how to steer."""

import math
from collections.abc import Sequence

from torch import Tensor

from actions.bounds import check_position
from actions.job import Job, prepare_prompt, prepare_text
from actions.tokens import likely
from attribution.contrast import contrast
from attribution.contrasted import Contrasted
from attribution.salient_logits import probabilities_of
from errors import InvalidInput, WorkerError
from loading.loaded_model import LoadedModel
from prompting.prompts import Prompt
from schemas import (
    ContrastedFeature,
    ContrastRequest,
    ContrastResponse,
    SalientLogit,
    SteerFeature,
)

_SHARES = {"tokenise": 5.0, "contrast": 95.0}


def run(request: ContrastRequest, loaded: LoadedModel, job: Job) -> ContrastResponse:
    """Compare both prompts, rank their features by effect, and propose a steer."""
    job.shares = _SHARES
    with job.stage("tokenise"):
        prompt = prepare_prompt(request, loaded, job)
        other = _other_prompt(request, loaded, job)
    position = _position("position", request.position, prompt)
    other_position = _position("other_position", request.other_position, other)
    with job.model(loaded), job.stage("contrast"):
        contrasted = contrast(
            loaded.model, prompt.ids, other.ids, position, other_position, check=job.check
        )
    predictions = [_likeliest(row, loaded) for row in (contrasted.logits, contrasted.other_logits)]
    if predictions[0].token_id == predictions[1].token_id:
        raise InvalidInput(
            f"prompt and its other have the same likeliest next token, {predictions[0].token!r}: "
            "no difference of predictions for features to make; give another that the model "
            "continues otherwise"
        )
    ranked = sorted(contrasted.features, key=lambda feature: -abs(feature.effect))
    job.counts["features"] = len(ranked)
    return ContrastResponse(
        prediction=predictions[0],
        other_prediction=predictions[1],
        position=position,
        other_position=other_position,
        features=[
            ContrastedFeature(
                layer=feature.layer,
                index=feature.index,
                kind=feature.kind,
                activation=feature.activation,
                other_activation=feature.other_activation,
                effect=feature.effect,
            )
            for feature in ranked[: request.top_k]
        ],
        steer=_steer(ranked, position, request, names_kinds=loaded.is_complete),
    )


def _other_prompt(request: ContrastRequest, loaded: LoadedModel, job: Job) -> Prompt:
    try:
        return prepare_text(request.other_prompt, request.other_messages, loaded, job)
    except WorkerError as error:
        name = "other_messages" if request.other_prompt is None else "other_prompt"
        raise type(error)(f"{name}: {error.sentence}") from None


def _position(field: str, asked: int | None, prompt: Prompt) -> int:
    """The position asked for or the last.

    Raises:
        InvalidInput: the prompt doesn't have it, or no features.
    """
    if asked is None:
        return len(prompt.ids) - 1
    check_position(field, asked, len(prompt.ids))
    if asked in prompt.unsteerable_positions:
        raise InvalidInput(
            f"{field} is {asked}, which has no features; the first that has is "
            f"{len(prompt.unsteerable_positions)}"
        )
    return asked


def _likeliest(logits: Tensor, loaded: LoadedModel) -> SalientLogit:
    """The token that is explained, and that a generation takes; others may be as likely."""
    token_id = int(logits.argmax())
    [token] = likely([token_id], [float(probabilities_of(logits)[token_id])], loaded)
    return token


def _steer(
    ranked: Sequence[Contrasted], position: int, request: ContrastRequest, *, names_kinds: bool
) -> list[SteerFeature]:
    """The features of most effect towards the other prediction: some to raise, some to lower.

    Args:
        names_kinds: whether the model has features of both kinds, which a steer has to tell apart.

    Raises:
        InvalidInput: `strength` sets a feature to what is no finite number.
    """
    helping = [feature for feature in ranked if feature.effect > 0]
    raised = [f for f in helping if f.other_activation > f.activation]
    lowered = [f for f in helping if f.other_activation < f.activation]
    changes: list[tuple[Contrasted, float | None]] = [
        (f, request.strength * f.other_activation - f.activation) for f in raised[: request.n_steer]
    ]
    for feature, delta in changes:
        if delta is not None and not math.isfinite(delta):
            raise InvalidInput(
                f"strength is {request.strength}, which sets feature {feature.index} of layer "
                f"{feature.layer} beyond all finite numbers; give a smaller one"
            )
    changes += [(f, None) for f in lowered[: request.n_steer]]
    return [
        SteerFeature(
            layer=feature.layer,
            index=feature.index,
            kind=feature.kind if names_kinds else None,
            token_active_position=position,
            steer_position=position,
            ablate=delta is None,
            delta=delta,
        )
        for feature, delta in changes
    ]

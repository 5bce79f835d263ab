"""steer: a prompt continued as the model would, and with features ablated or amplified."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import steering
from actions import named_features
from actions.job import Job, OnPart, prepare_prompt
from actions.named_features import Named
from loading.loaded_model import LoadedModel
from prompting.prompts import Prompt
from schemas import (
    LogitsOfToken,
    LogitsPair,
    SteerFeature,
    SteerPart,
    SteerRequest,
    SteerResponse,
    TopLogit,
)
from steering import Generation, Intervention, NewToken, Options

_SHARES = {"tokenise": 1.0, "activations": 9.0, "generate": 90.0}
_POSITIONS = {"token_active_position", "steer_position"}
_MOST_PREDICTIONS_OF_A_PART = 10  # the output has all


def run(request: SteerRequest, loaded: LoadedModel, job: Job) -> SteerResponse:
    """Generate with and without the features' interventions, with the predictions at each token."""
    job.shares = _SHARES
    with job.stage("tokenise"):
        prompt = prepare_prompt(request, loaded, job)
    options = _options(request, loaded, job)
    named = named_features.look_up(
        (
            (f"features[{n}]", feature, feature.token_active_position)
            for n, feature in enumerate(request.features)
        ),
        loaded,
    )
    positions = (feature.model_dump(include=_POSITIONS) for feature in request.features)
    steering.check_bounds(loaded.model, len(prompt.ids), options, positions)
    unsteerable = prompt.unsteerable_positions
    effective = [
        (feature, each)
        for feature, each in zip(request.features, named, strict=True)
        if feature.steer_position not in unsteerable
    ]

    default = None
    with job.model(loaded):
        with job.stage("activations"):
            interventions = _interventions(effective, loaded, prompt, job)
        if request.stream and job.on_part is not None:
            hand_on = _hand_on(request, loaded, job.on_part, steers=bool(interventions))
            options = replace(options, on_new_tokens=hand_on)
        with job.stage("generate"):
            asked = (loaded.model, prompt.ids, interventions, options)
            if request.steered_output_only:
                steered = steering.generate(*asked)
            else:
                default, steered = steering.generate_both(*asked)

    text = partial(loaded.token_text.text, start=prompt.text_start)  # without the leading token
    return SteerResponse(
        DEFAULT_GENERATION=text(default.token_ids if default else prompt.ids),
        STEERED_GENERATION=text(steered.token_ids),
        DEFAULT_LOGITS_BY_TOKEN=_logits_by_token(default, request, loaded, prompt),
        STEERED_LOGITS_BY_TOKEN=_logits_by_token(steered, request, loaded, prompt),
        ignored_features=[f for f in request.features if f.steer_position in unsteerable],
    )


def _options(request: SteerRequest, loaded: LoadedModel, job: Job) -> Options:
    return Options(
        n_tokens=request.n_tokens,
        top_k=request.top_k,
        temperature=request.temperature,
        freq_penalty=request.freq_penalty,
        seed=request.seed,
        freeze_attention=request.freeze_attention,
        stop_ids=loaded.stop_ids,
        check=job.check,
        on_token=job.counted("generate", "tokens"),
    )


def _hand_on(
    request: SteerRequest, loaded: LoadedModel, on_part: OnPart, *, steers: bool
) -> Callable[[Sequence[NewToken]], None]:
    """What hands each new token on as a part; without steering one generation is both sides'."""
    sides: list[tuple[Literal["default", "steered"], ...]] = [("default",), ("steered",)]
    if request.steered_output_only:
        sides = [("steered",)]
    elif not steers:
        sides = [("default", "steered")]

    def hand_on(tokens: Sequence[NewToken]) -> None:
        for token in tokens:
            ids, probs = (
                row[:_MOST_PREDICTIONS_OF_A_PART].tolist()
                for row in (token.top_ids, token.top_probs)
            )
            top = list(zip(loaded.token_text.singles(ids), probs, strict=True))
            for side in sides[token.side]:
                part = SteerPart(
                    side=side,
                    position=token.position,
                    token=loaded.token_text.single(token.token_id),
                    top_logits=top if request.logits_format == "pairs" else _objects(top),
                )
                on_part(part)

    return hand_on


def _interventions(
    features: Sequence[tuple[SteerFeature, Named]], loaded: LoadedModel, prompt: Prompt, job: Job
) -> list[Intervention]:
    """What each feature's activation is set to, and where."""
    named = [each for _, each in features]
    meant = named_features.read(named, "token_active_position", loaded, prompt, job)
    interventions = []
    for (feature, _), ((layer, _, index), activation) in zip(features, meant, strict=True):
        value = 0.0 if feature.delta is None else activation + feature.delta
        interventions.append(Intervention(layer, index, feature.steer_position, value))
    return interventions


def _logits_by_token(
    generation: Generation | None, request: SteerRequest, loaded: LoadedModel, prompt: Prompt
) -> list[LogitsPair] | list[LogitsOfToken]:
    """An entry for each token after the leading one, if any, in the form the caller asked for."""
    if generation is None:
        return []
    token_text = loaded.token_text
    # Tokens between the leading one and the prompt's last.
    no_logits = len(prompt.ids) - 1 - prompt.text_start
    steps = zip(generation.top_ids.tolist(), generation.top_probs.tolist(), strict=True)
    predictions: list[list[tuple[str, float]]] = [[] for _ in range(no_logits)]
    predictions += [list(zip(token_text.singles(ids), probs, strict=True)) for ids, probs in steps]
    tokens = token_text.strings(generation.token_ids)[prompt.text_start :]
    entries = list(zip(tokens, predictions, strict=True))
    if request.logits_format == "pairs":
        return entries
    return [LogitsOfToken(token=token, top_logits=_objects(top)) for token, top in entries]


def _objects(top: Sequence[tuple[str, float]]) -> list[TopLogit]:
    return [TopLogit(token=token, prob=prob) for token, prob in top]

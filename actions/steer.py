"""steer: a prompt continued as the model would, and with features ablated or amplified."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import steering
from actions.job import Job, OnPart, prepare_prompt
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


class _Named:
    """A feature as the request names it, and the layers of steering that may be meant."""

    def __init__(self, feature: SteerFeature, name: str, layers: list[int]) -> None:
        self.feature, self.name, self.layers = feature, name, layers

    @property
    def places(self) -> list[tuple[int, int, int]]:
        """The feature in each of these layers, where its activation is read."""
        position, index = self.feature.token_active_position, self.feature.index
        return [(layer, position, index) for layer in self.layers]


def run(request: SteerRequest, loaded: LoadedModel, job: Job) -> SteerResponse:
    """Generate with and without the features' interventions, with the predictions at each token."""
    job.shares = _SHARES
    with job.stage("tokenise"):
        prompt = prepare_prompt(request, loaded, job)
    options = _options(request, loaded, job)
    named = _named(request, loaded)
    positions = (feature.model_dump(include=_POSITIONS) for feature in request.features)
    steering.check_bounds(loaded.model, len(prompt.ids), options, positions)
    unsteerable = prompt.unsteerable_positions
    effective = [each for each in named if each.feature.steer_position not in unsteerable]

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


def _named(request: SteerRequest, loaded: LoadedModel) -> list[_Named]:
    """The features, each checked against the loaded model once, however often it is named."""
    meant: dict[tuple[int, int, Any], list[int]] = {}
    named = []
    for n, feature in enumerate(request.features):
        key, name = (feature.layer, feature.index, feature.kind), f"features[{n}]"
        if key not in meant:
            meant[key] = steering.layers_meant(loaded.model, *key, name)
        named.append(_Named(feature, name, meant[key]))
    return named


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
        on_token=lambda done, total: job.report(
            "generate", done / total, f"{done} of {total} tokens"
        ),
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
    features: Sequence[_Named], loaded: LoadedModel, prompt: Prompt, job: Job
) -> list[Intervention]:
    """What each feature's activation is set to, and where."""
    asked = [place for named in features for place in named.places]
    read = steering.feature_activations(loaded.model, prompt.ids, asked, job.check)
    activations = dict(zip(asked, read, strict=True))
    interventions = []
    for named in features:
        feature, own = named.feature, [activations[place] for place in named.places]
        layer = steering.active_layer(named.layers, own, named.name)
        activation = own[named.layers.index(layer)]
        value = 0.0 if feature.delta is None else activation + feature.delta
        interventions.append(Intervention(layer, feature.index, feature.steer_position, value))
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

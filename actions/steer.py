"""steer: a prompt continued as the model would, and with features ablated or amplified."""

from collections.abc import Sequence

import steering
from actions.job import Job, prepare_prompt
from errors import InvalidInput
from loading.loaded_model import LoadedModel
from prompting.prompts import Prompt
from schemas import LogitsOfToken, LogitsPair, SteerFeature, SteerRequest, SteerResponse, TopLogit
from steering import Generation, Intervention

_SHARES = {"tokenise": 1.0, "activations": 9.0, "generate": 90.0}


def run(request: SteerRequest, loaded: LoadedModel, job: Job) -> SteerResponse:
    """Generate with and without the features' interventions, with the predictions at each token."""
    job.shares = _SHARES
    with job.stage("tokenise"):
        prompt = prepare_prompt(request, loaded, job)
    _check(request, loaded, prompt)
    ignored = [f for f in request.features if f.steer_position in prompt.unsteerable_positions]
    effective = [
        f for f in request.features if f.steer_position not in prompt.unsteerable_positions
    ]

    with job.model(loaded):
        with job.stage("activations"):
            interventions = _interventions(effective, loaded, prompt)
        with job.stage("generate"):
            default, steered = _generate(request, loaded, prompt, interventions, job)

    return SteerResponse(
        DEFAULT_GENERATION=_text(default.token_ids if default else prompt.ids, loaded),
        STEERED_GENERATION=_text(steered.token_ids, loaded),
        DEFAULT_LOGITS_BY_TOKEN=_logits_by_token(default, request, loaded, prompt),
        STEERED_LOGITS_BY_TOKEN=_logits_by_token(steered, request, loaded, prompt),
        ignored_features=ignored,
    )


def _check(request: SteerRequest, loaded: LoadedModel, prompt: Prompt) -> None:
    """Raise InvalidInput for what the model or the prompt doesn't have, naming the bound."""
    n_tokens, n_layers, n_features = len(prompt.ids), loaded.n_layers, loaded.n_features
    for i, feature in enumerate(request.features):
        position = feature.steer_position
        if (
            feature.layer >= n_layers
            or feature.index >= n_features
            or feature.token_active_position >= n_tokens
            or (position is not None and position >= n_tokens)
        ):
            raise _out_of_bounds(f"features[{i}]", feature, loaded, n_tokens)
    if request.top_k > loaded.d_vocab:
        raise InvalidInput(
            f"top_k is {request.top_k}, the model's vocabulary has {loaded.d_vocab} tokens"
        )
    if n_tokens + request.n_tokens > loaded.n_context:
        raise InvalidInput(
            f"n_tokens is {request.n_tokens}, after {n_tokens} prompt tokens the model has room "
            f"for {loaded.n_context - n_tokens}"
        )


def _out_of_bounds(
    name: str, feature: SteerFeature, loaded: LoadedModel, n_tokens: int
) -> InvalidInput:
    """Which of a feature's numbers the model or the prompt doesn't have."""
    bounds = {
        "layer": (loaded.n_layers, "the model has {} layers"),
        "index": (loaded.n_features, "the model has {} features a layer"),
        "token_active_position": (n_tokens, "the prompt has {} tokens"),
        "steer_position": (n_tokens, "the prompt has {} tokens"),
    }
    values = {field: getattr(feature, field) for field in bounds}
    field = next(f for f, value in values.items() if value is not None and value >= bounds[f][0])
    bound, there_are = bounds[field]
    return InvalidInput(
        f"{name}.{field} is {values[field]}, {there_are.format(bound)} (0 to {bound - 1})"
    )


def _interventions(
    features: Sequence[SteerFeature], loaded: LoadedModel, prompt: Prompt
) -> list[Intervention]:
    """What each feature's activation is set to, and where."""
    activations = steering.feature_activations(
        loaded.model,
        prompt.ids,
        [(f.layer, f.token_active_position, f.index) for f in features],
    )
    return [
        Intervention(
            layer=feature.layer,
            index=feature.index,
            position=feature.steer_position,
            value=0.0 if feature.delta is None else activation + feature.delta,
        )
        for feature, activation in zip(features, activations, strict=True)
    ]


def _generate(
    request: SteerRequest,
    loaded: LoadedModel,
    prompt: Prompt,
    interventions: list[Intervention],
    job: Job,
) -> tuple[Generation | None, Generation]:
    """The default generation, unless it is to be skipped, and the steered one."""
    options: steering.Options = {
        "n_tokens": request.n_tokens,
        "top_k": request.top_k,
        "temperature": request.temperature,
        "freq_penalty": request.freq_penalty,
        "seed": request.seed,
        "freeze_attention": request.freeze_attention,
        "stop_ids": loaded.stop_ids,
        "should_stop": job.should_stop,
        "on_token": lambda done, total: job.report(
            "generate", done / total, f"{done} of {total} tokens"
        ),
    }
    if request.steered_output_only:
        return None, steering.generate(loaded.model, prompt.ids, interventions, **options)
    return steering.generate_both(loaded.model, prompt.ids, interventions, **options)


def _text(token_ids: list[int], loaded: LoadedModel) -> str:
    """The text of prompt and continuation without the leading special token."""
    return loaded.token_text.text(token_ids, start=1)


def _logits_by_token(
    generation: Generation | None, request: SteerRequest, loaded: LoadedModel, prompt: Prompt
) -> list[LogitsPair] | list[LogitsOfToken]:
    """An entry for each token after the leading special one, in the form the caller asked for."""
    if generation is None:
        return []
    shown = loaded.token_text
    no_logits = len(prompt.ids) - 2  # tokens between the leading one and the prompt's last
    steps = zip(generation.top_ids.tolist(), generation.top_probs.tolist(), strict=True)
    predictions: list[list[tuple[str, float]]] = [[] for _ in range(no_logits)]
    predictions += [list(zip(shown.singles(ids), probs, strict=True)) for ids, probs in steps]
    tokens = shown.strings(generation.token_ids)[1:]
    entries = list(zip(tokens, predictions, strict=True))
    if request.logits_format == "pairs":
        return entries
    return [
        LogitsOfToken(token=token, top_logits=[TopLogit(token=t, prob=p) for t, p in top])
        for token, top in entries
    ]

"""What a request's attribution targets mean for the loaded model and the prompt."""

from collections.abc import Callable, Sequence

import steering
from actions.bounds import check_position
from actions.tokens import token_id
from attribution import FeatureTarget, LogitDifference
from errors import InvalidInput
from loading.loaded_model import LoadedModel
from prompting.prompts import Prompt
from schemas import AttributionTarget, RequestedDifference, RequestedFeature

Target = int | LogitDifference | FeatureTarget  # a token by its id

_TOKENS_IN_LABEL = 3


def read_targets(
    requested: Sequence[AttributionTarget] | None,
    loaded: LoadedModel,
    prompt: Prompt,
    check: Callable[[], None],
) -> list[Target] | None:
    """Turn tokens into ids, and check features against the model and the prompt.

    Whether a feature is active shows when the model runs.

    Raises:
        InvalidInput: a target isn't the model's or the prompt's, or is named twice.
    """
    if requested is None:
        return None
    targets: dict[Target, None] = {}
    for i, target in enumerate(requested):
        check()
        name = f"attribution_targets[{i}]"
        if isinstance(target, RequestedDifference):
            read: Target = _difference(name, target, loaded)
        elif isinstance(target, RequestedFeature):
            read = _feature(name, target, loaded, prompt)
        else:
            read = token_id(name, target, loaded)
        if read in targets:
            what = repr(target) if isinstance(target, str) else "the same target"
            raise InvalidInput(f"{name} names {what} twice; name it once")
        targets[read] = None
    return list(targets)


def _difference(name: str, target: RequestedDifference, loaded: LoadedModel) -> LogitDifference:
    ids: dict[int, None] = {}
    for side in ("plus", "minus"):
        for i, token in enumerate(getattr(target, side)):
            found = token_id(f"{name}.{side}[{i}]", token, loaded)
            if found in ids:
                raise InvalidInput(
                    f"{name}.{side}[{i}] is {token!r}, which this difference has twice; name each "
                    "token once, on one side"
                )
            ids[found] = None
    tokens = list(ids)
    plus, minus = tuple(tokens[: len(target.plus)]), tuple(tokens[len(target.plus) :])
    return LogitDifference(plus, minus, f"{_mean(plus, loaded)} - {_mean(minus, loaded)}")


def _mean(token_ids: Sequence[int], loaded: LoadedModel) -> str:
    """One side of a difference in a few words."""
    tokens = loaded.token_text.singles(token_ids[:_TOKENS_IN_LABEL])
    if len(token_ids) == 1:
        return tokens[0]
    more = len(token_ids) - len(tokens)
    return f"mean[{', '.join(tokens)}{f' and {more} more' if more else ''}]"


def _feature(
    name: str, target: RequestedFeature, loaded: LoadedModel, prompt: Prompt
) -> FeatureTarget:
    steering.layers_meant(loaded.model, target.layer, target.index, target.kind, name)
    check_position(f"{name}.position", target.position, len(prompt.ids))
    return FeatureTarget(target.layer, target.index, target.position, target.kind)

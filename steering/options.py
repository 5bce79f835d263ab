"""What is asked of a generation, and the bounds that the model and the prompt set to it."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from errors import InvalidInput
from steering.kinds import n_context, n_features, n_layers, refuse_beyond


@dataclass(frozen=True)
class Intervention:
    """A feature held at an activation."""

    layer: int  # of a complete replacement model the sublayer: 2l attention, 2l + 1 MLP
    index: int
    position: int | None  # a prompt position; None: every generated token
    value: float  # the activation that the feature is set to


@dataclass(frozen=True, eq=False)
class NewToken:
    """A token that was just generated, and what the model predicts after it.

    `top_ids` and `top_probs` are (top_k,), on the model's device, likeliest first.
    """

    side: int  # which of the generations that are returned
    position: int
    token_id: int
    top_ids: Tensor
    top_probs: Tensor


@dataclass(frozen=True)
class Options:
    """How to generate."""

    n_tokens: int  # most tokens to generate
    top_k: int  # predictions to keep after each of them
    temperature: float = 0.0  # 0 takes the likeliest token, whatever `freq_penalty` is
    # Subtracted from a token's logit, after division by the temperature, for each time it occurs in
    # prompt and continuation; below 0 it counts as 0 (TransformerLens's `sample_logits`).
    freq_penalty: float = 0.0
    # Repeats a sampled generation exactly. The global random state is neither read nor written.
    seed: int | None = None
    # In the pass over the prompt, keep the attention patterns of the prompt without interventions.
    freeze_attention: bool = False
    stop_ids: Collection[int] = ()  # tokens that end a generation
    check: Callable[[], None] = lambda: None  # called before each step; raises to stop
    on_token: Callable[[int, int], None] = lambda *_: None  # called with tokens done, `n_tokens`
    # Called after each pass, with the tokens of all sides that are not yet at their end.
    on_new_tokens: Callable[[Sequence[NewToken]], None] | None = None


def check_bounds(
    model: Any, n_prompt: int, options: Options, features: Iterable[Mapping[str, int | None]]
) -> None:
    """Raise InvalidInput, naming field, value and bound, for what the model or prompt doesn't have.

    An index out of range inside a CUDA kernel would take the whole process down.

    Args:
        n_prompt: tokens of the prompt.
        features: for each one its `layer` and `index`, or none of both, and, under any names,
            positions in the prompt. A layer is one of steering's, as an intervention has it.
    """
    d_vocab, context = model.cfg.d_vocab, n_context(model)
    for i, feature in enumerate(features):
        for field, value in feature.items():
            if value is None:
                continue
            bound, what_there_is = n_prompt, "the prompt has {} tokens"
            if field == "layer":
                bound, what_there_is = n_layers(model), "the model has {} layers"
            elif field == "index":
                layer = feature["layer"] or 0
                bound, what_there_is = (
                    n_features(model, layer),
                    f"the model has {{}} features in layer {layer}",
                )
            refuse_beyond(f"features[{i}].{field}", value, bound, what_there_is)
    if not 0 <= options.top_k <= d_vocab:
        raise InvalidInput(f"top_k is {options.top_k}, the model's vocabulary has {d_vocab} tokens")
    if n_prompt + options.n_tokens > context:
        raise InvalidInput(
            f"n_tokens is {options.n_tokens}, after {n_prompt} prompt tokens the model has room "
            f"for {max(0, context - n_prompt)}; ask for fewer or shorten the prompt"
        )

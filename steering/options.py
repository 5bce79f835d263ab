"""What is asked of a generation, and the bounds that the model and the prompt set to it."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from errors import InvalidInput


@dataclass(frozen=True)
class Intervention:
    """A feature held at an activation."""

    layer: int
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
    check: Callable[[], None] = lambda: None  # called before each pass; raises to stop
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
        features: for each one its `layer`, `index` and, under any names, positions in the prompt.
    """
    cfg = model.cfg
    n_features = model.transcoders.d_transcoder
    of_the_model = {
        "layer": (cfg.n_layers, f"the model has {cfg.n_layers} layers"),
        "index": (n_features, f"the model has {n_features} features a layer"),
    }
    of_the_prompt = (n_prompt, f"the prompt has {n_prompt} tokens")
    for i, feature in enumerate(features):
        for field, value in feature.items():
            bound, what_there_is = of_the_model.get(field, of_the_prompt)
            if value is not None and not 0 <= value < bound:
                raise InvalidInput(
                    f"features[{i}].{field} is {value}, {what_there_is} (0 to {bound - 1})"
                )
    if not 0 <= options.top_k <= cfg.d_vocab:
        raise InvalidInput(
            f"top_k is {options.top_k}, the model's vocabulary has {cfg.d_vocab} tokens"
        )
    if n_prompt + options.n_tokens > cfg.n_ctx:
        raise InvalidInput(
            f"n_tokens is {options.n_tokens}, after {n_prompt} prompt tokens the model has room "
            f"for {max(0, cfg.n_ctx - n_prompt)}; ask for fewer or shorten the prompt"
        )

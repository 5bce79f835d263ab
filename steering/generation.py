"""Continuing a prompt, with or without interventions, over one key-value cache."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

from errors import Cancelled, InvalidInput
from steering.features import Hook, intervention_hooks, silent_positions


@dataclass(frozen=True)
class Intervention:
    """A feature held at an activation."""

    layer: int
    index: int
    position: int | None  # a prompt position; None: every generated token
    value: float  # the activation that the feature is set to


@dataclass(frozen=True, eq=False)
class Generation:
    """A prompt with its continuation, and what the model predicted along the continuation.

    `token_ids` holds the prompt and the generated tokens, a stop token included. Row i of
    `top_ids` and `top_probs`, (n_generated + 1, top_k) on the CPU, are the likeliest tokens after
    the last prompt token and i generated ones, likeliest first, and their probabilities before
    temperature and penalty.
    """

    token_ids: list[int]
    top_ids: Tensor
    top_probs: Tensor


def generate(
    model: Any,
    token_ids: Sequence[int],
    interventions: Sequence[Intervention],
    *,
    n_tokens: int,
    top_k: int,
    temperature: float,
    freq_penalty: float,
    seed: int | None,
    freeze_attention: bool,
    stop_ids: Collection[int] = (),
    should_stop: Callable[[], bool] | None = None,
    on_token: Callable[[int, int], None] | None = None,
) -> Generation:
    """Generate `n_tokens` tokens after the prompt, fewer when one of `stop_ids` comes up.

    The numbers are those of circuit-tracer's `feature_intervention_generate`: interventions at
    prompt positions act in the pass over the prompt and go on through the key-value cache, those
    without a position act in the pass of each generated token. Of two on the same feature and
    position the last one counts. The model is left as it came, whatever is raised.

    Args:
        model: a TransformerLens replacement model of circuit-tracer, batch of one.
        temperature: 0 takes the likeliest token, whatever `freq_penalty` is.
        freq_penalty: subtracted from a token's logit, after division by the temperature, for each
            time it occurs in prompt and continuation; negative ones count as 0
            (TransformerLens's `sample_logits`).
        seed: repeats a sampled generation exactly; the global random state is neither read nor
            written.
        freeze_attention: keep the attention patterns that the prompt has without interventions,
            in the pass over the prompt.
        should_stop: polled before each forward pass.
        on_token: called with the tokens generated so far and `n_tokens`.

    Raises:
        InvalidInput: an intervention, `top_k` or `n_tokens` is outside what the model has, or the
            interventions drive the logits out of the number range.
        Cancelled: `should_stop` returned True.
    """
    _check(model, len(token_ids), interventions, n_tokens, top_k)
    device = model.cfg.device
    generator = torch.Generator(device)
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    ids = list(token_ids)
    top: list[tuple[Tensor, Tensor]] = []
    cache = TransformerLensKeyValueCache.init_cache(model.cfg, device, 1)

    def forward(new_ids: list[int]) -> Tensor:
        if should_stop is not None and should_stop():
            raise Cancelled(f"steering was stopped after {len(top)} of {n_tokens} tokens")
        logits = _forward(model, new_ids, cache)
        top.append(_top(logits, top_k))
        return logits

    with torch.inference_mode():
        prompt_hooks = _prompt_hooks(model, ids, interventions, freeze_attention)
        token_hooks = _token_hooks(model, interventions)
        with model.hooks(prompt_hooks):
            logits = forward(ids)
        with model.hooks(token_hooks):
            for n_generated in range(1, n_tokens + 1):
                ids.append(_sample(logits, ids, temperature, freq_penalty, generator))
                logits = forward(ids[-1:])
                if on_token is not None:
                    on_token(n_generated, n_tokens)
                if ids[-1] in stop_ids:
                    break
    top_ids, top_probs = (torch.stack(column).cpu() for column in zip(*top, strict=True))
    return Generation(ids, top_ids, top_probs)


def _check(
    model: Any, n_prompt: int, interventions: Sequence[Intervention], n_tokens: int, top_k: int
) -> None:
    cfg = model.cfg
    # An index out of range inside a CUDA kernel would take the whole process down.
    for i, intervention in enumerate(interventions):
        for name, bound in (
            ("layer", cfg.n_layers),
            ("index", model.transcoders.d_transcoder),
            ("position", n_prompt),
        ):
            value = getattr(intervention, name)
            if value is not None and not 0 <= value < bound:
                raise InvalidInput(
                    f"{name} of intervention {i} is {value}, it must be from 0 to {bound - 1}"
                )
    if not 0 <= top_k <= cfg.d_vocab:
        raise InvalidInput(f"top_k is {top_k}, it must be from 0 to {cfg.d_vocab}")
    if n_prompt + n_tokens > cfg.n_ctx:
        raise InvalidInput(
            f"n_tokens is {n_tokens}, after {n_prompt} prompt tokens the model has room for "
            f"{max(0, cfg.n_ctx - n_prompt)}; ask for fewer or shorten the prompt"
        )


def _prompt_hooks(
    model: Any, ids: list[int], interventions: Sequence[Intervention], freeze_attention: bool
) -> list[Hook]:
    values = {
        (i.layer, i.position, i.index): i.value for i in interventions if i.position is not None
    }
    if not values:
        return []
    frozen = _frozen_attention_hooks(model, ids) if freeze_attention else []
    return frozen + intervention_hooks(model, values, silent_positions(model, len(ids)))


def _token_hooks(model: Any, interventions: Sequence[Intervention]) -> list[Hook]:
    # A pass over the cache sees one token, at position 0.
    return intervention_hooks(
        model, {(i.layer, 0, i.index): i.value for i in interventions if i.position is None}
    )


def _frozen_attention_hooks(model: Any, ids: list[int]) -> list[Hook]:
    """Hooks that keep the attention patterns of an unsteered pass over the prompt."""
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(model.cfg.n_layers)]
    patterns: dict[str, Tensor] = {}

    def keep(pattern: Tensor, hook: Any) -> None:
        patterns[hook.name] = pattern

    def put_back(_pattern: Tensor, hook: Any) -> Tensor:
        return patterns[hook.name]

    tokens = torch.tensor([ids], device=model.cfg.device)
    with model.hooks([(name, keep) for name in names]):
        model(tokens, attention_mask=torch.ones_like(tokens), stop_at_layer=model.cfg.n_layers)
    return [(name, put_back) for name in names]


def _forward(model: Any, new_ids: list[int], cache: TransformerLensKeyValueCache) -> Tensor:
    """Logits (d_vocab,) after the last of `new_ids`, which the cache takes in."""
    tokens = torch.tensor([new_ids], device=model.cfg.device)
    # Without a mask TransformerLens makes one in which a pad token, often the EOS token or BOS,
    # isn't attended to.
    mask = torch.ones_like(tokens)
    return model(tokens, attention_mask=mask, past_kv_cache=cache)[0, -1]


def _top(logits: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    probs = logits.float().softmax(dim=-1)
    if probs[0].isnan():
        raise InvalidInput(
            "the interventions drive the model's logits out of the number range; use smaller deltas"
        )
    top_probs, top_ids = probs.topk(top_k)
    return top_ids, top_probs


def _sample(
    logits: Tensor,
    ids: list[int],
    temperature: float,
    freq_penalty: float,
    generator: torch.Generator,
) -> int:
    if temperature == 0:
        return int(logits.argmax())
    # In double precision a temperature close to 0 is as good as 0 and not a division by it.
    scaled = logits.double()
    scaled = (scaled - scaled.max()) / temperature
    if freq_penalty > 0:
        counts = torch.bincount(torch.tensor(ids, device=scaled.device), minlength=len(scaled))
        scaled = scaled - freq_penalty * counts
    probs = scaled.softmax(dim=-1).float()
    # With replacement the draw is the one that torch's Categorical makes.
    return int(torch.multinomial(probs, 1, replacement=True, generator=generator))

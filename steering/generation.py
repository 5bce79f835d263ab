"""Continuing a prompt, with or without interventions, over one key-value cache."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NotRequired, TypedDict, Unpack

import torch
from torch import Tensor

from attribution.salient_logits import probabilities_of
from errors import InvalidInput, NotFinite
from steering.engine import Hook, Passes
from steering.features import intervention_hooks, silent_positions
from steering.passes import passes_of


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


class Options(TypedDict):
    """How to generate.

    n_tokens: most tokens to generate.
    top_k: predictions to keep after each of them.
    temperature: 0 takes the likeliest token, whatever `freq_penalty` is.
    freq_penalty: subtracted from a token's logit, after division by the temperature, for each time
        it occurs in prompt and continuation; negative ones count as 0 (TransformerLens's
        `sample_logits`).
    seed: repeats a sampled generation exactly; the global random state is neither read nor written.
    freeze_attention: keep the attention patterns that the prompt has without interventions, in the
        pass over the prompt.
    stop_ids: tokens that end a generation.
    check: called before each forward pass; raises to stop the generation.
    on_token: called after each token with their number so far and `n_tokens`.
    """

    n_tokens: int
    top_k: int
    temperature: float
    freq_penalty: float
    seed: int | None
    freeze_attention: bool
    stop_ids: NotRequired[Collection[int]]
    check: NotRequired[Callable[[], None]]
    on_token: NotRequired[Callable[[int, int], None] | None]


def generate(
    model: Any,
    token_ids: Sequence[int],
    interventions: Sequence[Intervention],
    **options: Unpack[Options],
) -> Generation:
    """Continue the prompt with the interventions in force.

    The numbers are those of circuit-tracer's `feature_intervention_generate`: interventions at
    prompt positions act in the pass over the prompt and go on through the key-value cache, those
    without a position act in the pass of each generated token. Of two on the same feature and
    position the last one counts. The model is left as it came, whatever is raised.

    Args:
        model: a replacement model of circuit-tracer.
        options: see `Options`.

    Raises:
        InvalidInput: an intervention, `top_k` or `n_tokens` is outside what the model has.
        NotFinite: the model's logits are not all finite numbers, or those under the interventions.
    """
    return _generate(model, token_ids, interventions, with_default=False, **options)[-1]


def generate_both(
    model: Any,
    token_ids: Sequence[int],
    interventions: Sequence[Intervention],
    **options: Unpack[Options],
) -> tuple[Generation, Generation]:
    """The prompt continued without and with the interventions, for little more than one of them.

    Both go through the model as one batch, so that each pass reads the weights once. Each gives
    what `generate` gives for it alone, up to the rounding of a batched matrix product; without
    interventions both are the same generation.
    """
    if not interventions:
        default = generate(model, token_ids, interventions, **options)
        return default, default
    default, steered = _generate(model, token_ids, interventions, with_default=True, **options)
    return default, steered


def _generate(
    model: Any,
    token_ids: Sequence[int],
    interventions: Sequence[Intervention],
    *,
    with_default: bool,
    n_tokens: int,
    top_k: int,
    temperature: float,
    freq_penalty: float,
    seed: int | None,
    freeze_attention: bool,
    stop_ids: Collection[int] = (),
    check: Callable[[], None] = lambda: None,
    on_token: Callable[[int, int], None] | None = None,
) -> list[Generation]:
    """The steered generation, after the default one if that is asked for too."""
    prompt, passes = list(token_ids), passes_of(model)
    _check(model, len(prompt), interventions, n_tokens, top_k)
    sides = [_Side(prompt.copy(), _generator(model, seed)) for _ in range(1 + with_default)]
    running, steered = sides, sides[-1]

    def predict(
        new_ids: list[list[int]], hooks: list[Hook], *, frozen: bool = False
    ) -> list[Tensor]:
        check()
        tokens = torch.tensor(new_ids, device=model.cfg.device)
        logits = passes.logits(tokens, cache, hooks, freeze_attention=frozen)
        return list(logits[-len(running) :])

    def note(rows: list[Tensor]) -> None:
        for side, logits in zip(running, rows, strict=True):
            if not logits.isfinite().all():
                raise _not_finite(passes, side.ids, interventions if side is steered else [])
            side.logits = logits
            side.top.append(_top(logits, top_k))

    with torch.inference_mode():
        at_prompt, at_tokens = _hooks(passes, interventions, len(prompt))
        # Attention is frozen to the patterns of an unsteered row in the same pass.
        frozen = bool(at_prompt) and freeze_attention
        n_rows = 2 if frozen else len(sides)
        cache = passes.new_cache(n_rows)
        rows = predict([prompt] * n_rows, at_prompt, frozen=frozen)
        note(_with_plain_logits(passes, prompt, rows, is_steered=bool(at_prompt)))
        if n_rows > len(sides):
            passes.keep_rows(cache, list(range(n_rows))[-len(sides) :])
        for n_generated in range(1, n_tokens + 1):
            for side in running:
                side.ids.append(_sample(side, temperature, freq_penalty))
            hooks = at_tokens if steered in running else []
            note(predict([side.ids[-1:] for side in running], hooks))
            if on_token is not None:
                on_token(n_generated, n_tokens)
            going_on = [row for row, side in enumerate(running) if side.ids[-1] not in stop_ids]
            if not going_on:
                break
            if len(going_on) < len(running):
                passes.keep_rows(cache, going_on)
            running = [running[row] for row in going_on]
    return [Generation(side.ids, *_stack(side.top)) for side in sides]


@dataclass(eq=False)
class _Side:
    """A generation under way: a row of the batch."""

    ids: list[int]
    generator: torch.Generator
    logits: Tensor = field(init=False)  # (d_vocab,), after the last of ids
    top: list[tuple[Tensor, Tensor]] = field(default_factory=list)


def _with_plain_logits(
    passes: Passes, prompt: list[int], rows: list[Tensor], *, is_steered: bool
) -> list[Tensor]:
    """The logits after the prompt, those of unsteered rows exactly as a graph has them.

    The pass with a batch and a cache may round differently, and the last bit of a bfloat16 logit
    can move a tenth of the probability. So unsteered rows take their logits from a plain pass.
    """
    steered = rows[-1:] if is_steered else []
    unsteered = len(rows) - len(steered)
    if not unsteered:
        return steered
    tokens = torch.tensor([prompt], device=passes.model.cfg.device)
    return [passes.plain_logits(tokens)] * unsteered + steered


def _not_finite(passes: Passes, ids: list[int], interventions: Sequence[Intervention]) -> NotFinite:
    """What to tell of logits that aren't finite: the model may be why, or the interventions."""
    dtype = passes.model.cfg.dtype
    tokens = torch.tensor([ids], device=passes.model.cfg.device)
    if not interventions or not passes.plain_logits(tokens).isfinite().all():
        return NotFinite.of("the model's logits after this text", dtype)
    if any(intervention.value for intervention in interventions):
        name = str(dtype).removeprefix("torch.")
        return NotFinite(
            f"features: the values that they are set to drive the model's logits out of the range "
            f"of {name}; use smaller deltas"
        )
    return NotFinite.of("the model's logits with these features ablated", dtype)


def _stack(top: list[tuple[Tensor, Tensor]]) -> Iterator[Tensor]:
    return (torch.stack(column).cpu() for column in zip(*top, strict=True))


def _generator(model: Any, seed: int | None) -> torch.Generator:
    generator = torch.Generator(model.cfg.device)
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return generator


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


def _hooks(
    passes: Passes, interventions: Sequence[Intervention], n_prompt: int
) -> tuple[list[Hook], list[Hook]]:
    """The hooks for the pass over the prompt and those for the pass of each generated token."""
    at_prompt: dict[tuple[int, int, int], float] = {}
    at_tokens: dict[tuple[int, int, int], float] = {}
    for i in interventions:
        if i.position is None:
            at_tokens[i.layer, 0, i.index] = i.value  # such a pass sees one token
        else:
            at_prompt[i.layer, i.position, i.index] = i.value
    silent = silent_positions(passes.model, n_prompt)
    return intervention_hooks(passes, at_prompt, silent), intervention_hooks(passes, at_tokens)


def _top(logits: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    top_probs, top_ids = probabilities_of(logits).topk(top_k)
    return top_ids, top_probs


def _sample(side: _Side, temperature: float, freq_penalty: float) -> int:
    if temperature == 0:
        return int(side.logits.argmax())
    # In double precision a temperature close to 0 is as good as 0 and not a division by it.
    scaled = side.logits.double()
    scaled = (scaled - scaled.max()) / temperature
    if freq_penalty > 0:
        ids = torch.tensor(side.ids, device=scaled.device)
        scaled = scaled - freq_penalty * torch.bincount(ids, minlength=len(scaled)).double()
    probs = scaled.softmax(dim=-1).float()
    return int(torch.multinomial(probs, 1, generator=side.generator))

"""Continuing a prompt, with or without interventions, over one key-value cache."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from attribution.salient_logits import probabilities_of
from errors import NotFinite
from steering.engine import Hooks, Passes
from steering.features import InterventionHooks, intervention_hooks
from steering.options import Intervention, NewToken, Options, check_bounds
from steering.passes import passes_of
from steering.readers import Feature


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


@dataclass(eq=False)
class _Side:
    """A generation under way: a row of the batch."""

    ids: list[int]
    interventions: Sequence[Intervention]
    generator: torch.Generator
    logits: Tensor = field(init=False)  # (d_vocab,), after the last of ids
    top: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # probabilities, ids: (top_k,)


def generate(
    model: Any, token_ids: Sequence[int], interventions: Sequence[Intervention], options: Options
) -> Generation:
    """Continue the prompt with the interventions in force.

    The numbers are those of circuit-tracer's `feature_intervention_generate`: interventions at
    prompt positions act in the pass over the prompt and go on through the key-value cache, those
    without a position act in the pass of each generated token. Of two on the same feature and
    position the last one counts. The model is left as it came, whatever is raised.

    Args:
        model: a replacement model of circuit-tracer, or a complete one.

    Raises:
        InvalidInput: an intervention, `top_k` or `n_tokens` is outside what the model has.
        NotFinite: the model's logits are not all finite numbers, or those under the interventions.
    """
    return _generate(model, token_ids, interventions, options, with_default=False)[0]


def generate_both(
    model: Any, token_ids: Sequence[int], interventions: Sequence[Intervention], options: Options
) -> tuple[Generation, Generation]:
    """The prompt continued without and with the interventions, for little more than one of them.

    Both go through the model as one batch, so that each pass reads the weights once. Each gives
    what `generate` gives for it alone, up to the rounding of a batched matrix product; without
    interventions both are the same generation.
    """
    sides = _generate(model, token_ids, interventions, options, with_default=bool(interventions))
    return sides[0], sides[-1]


def _generate(
    model: Any,
    token_ids: Sequence[int],
    interventions: Sequence[Intervention],
    options: Options,
    *,
    with_default: bool,
) -> list[Generation]:
    """The steered generation, after the default one if that is asked for too."""
    passes = passes_of(model)
    features = ({"layer": i.layer, "index": i.index, "position": i.position} for i in interventions)
    check_bounds(model, len(token_ids), options, features)
    running = sides = [
        _Side(list(token_ids), of_side, _generator(model, options.seed))
        for of_side in ([[], interventions] if with_default else [interventions])
    ]
    with torch.inference_mode():
        at_prompt, at_tokens = _hooks(passes, interventions, len(token_ids), options.check)
        options.check()
        hooks, steers = at_prompt.and_before(at_tokens), bool(at_prompt.during)
        cache = _read_prompt(passes, sides, hooks, options, steers=steers)
        for n_generated in range(1, options.n_tokens + 1):
            options.check()
            for side in running:
                side.ids.append(_choose_token(side, options))
            tokens = passes.tokens([side.ids[-1:] for side in running])
            hooks = at_tokens.during if sides[-1] in running else {}
            _predict(passes, running, passes.logits(tokens, cache, hooks), options.top_k)
            if options.on_new_tokens is not None:
                options.on_new_tokens([_new_token(sides, side) for side in running])
            options.on_token(n_generated, options.n_tokens)
            rows = [n for n, side in enumerate(running) if side.ids[-1] not in options.stop_ids]
            if not rows:
                break
            if len(rows) < len(running):
                passes.keep_rows(cache, rows)
            running = [running[row] for row in rows]
    generations = []
    for side in sides:
        top_probs, top_ids = (torch.stack(column).cpu() for column in zip(*side.top, strict=True))
        generations.append(Generation(side.ids, top_ids, top_probs))
    return generations


def _new_token(sides: list[_Side], side: _Side) -> NewToken:
    probs, ids = side.top[-1]
    return NewToken(sides.index(side), len(side.ids) - 1, side.ids[-1], ids, probs)


def _generator(model: Any, seed: int | None) -> torch.Generator:
    generator = torch.Generator(model.cfg.device)
    return generator.manual_seed(generator.seed() if seed is None else seed)


def _hooks(
    passes: Passes,
    interventions: Sequence[Intervention],
    n_prompt: int,
    check: Callable[[], None],
) -> tuple[InterventionHooks, InterventionHooks]:
    """The hooks for the pass over the prompt and those for the pass of each generated token."""
    at_prompt: dict[Feature, float] = {}
    at_tokens: dict[Feature, float] = {}
    for i in interventions:
        if i.position is None:
            at_tokens[i.layer, 0, i.index] = i.value  # such a pass sees one token
        else:
            at_prompt[i.layer, i.position, i.index] = i.value
    silent = passes.silent_positions(n_prompt)
    hooks = intervention_hooks(passes, at_prompt, check, silent)
    return hooks, intervention_hooks(passes, at_tokens, check)


def _read_prompt(
    passes: Passes, sides: Sequence[_Side], hooks: Hooks, options: Options, *, steers: bool
) -> Any:
    """Have each side predict what follows the prompt; return the cache with a row for each side.

    Args:
        steers: whether the hooks change anything in the last row.
    """
    # Attention is frozen to the patterns of an unsteered row in the same pass.
    frozen = steers and options.freeze_attention
    n_rows = 2 if frozen else len(sides)
    cache = passes.new_cache(n_rows)
    tokens = passes.tokens([sides[0].ids] * n_rows)
    rows = list(passes.logits(tokens, cache, hooks, freeze_attention=frozen)[-len(sides) :])
    # This pass, with a batch and a cache, may round otherwise than the one that a graph starts
    # from, and the last bit of a bfloat16 logit can move a tenth of the probability. So unsteered
    # rows take their logits from a plain pass.
    if n_unsteered := len(sides) - steers:
        rows[:n_unsteered] = [passes.plain_logits(tokens[:1])] * n_unsteered
    _predict(passes, sides, rows, options.top_k)
    if n_rows > len(sides):
        passes.keep_rows(cache, [n_rows - 1])
    return cache


def _predict(passes: Passes, sides: Sequence[_Side], rows: Iterable[Tensor], top_k: int) -> None:
    """Give each side the logits (d_vocab,) after the last of its tokens."""
    for side, logits in zip(sides, rows, strict=True):
        if not logits.isfinite().all():
            raise _not_finite(passes, side.ids, side.interventions)
        side.logits = logits
        side.top.append(probabilities_of(logits).topk(top_k))


def _choose_token(side: _Side, options: Options) -> int:
    if options.temperature == 0:
        return int(side.logits.argmax())
    # In double precision a temperature close to 0 is as good as 0 and not a division by it.
    scaled = side.logits.double()
    scaled = (scaled - scaled.max()) / options.temperature
    if options.freq_penalty > 0:
        ids = torch.tensor(side.ids, device=scaled.device)
        scaled = scaled - options.freq_penalty * torch.bincount(ids, minlength=len(scaled)).double()
    probs = scaled.softmax(dim=-1).float()
    return int(torch.multinomial(probs, 1, generator=side.generator))


def _not_finite(passes: Passes, ids: list[int], interventions: Sequence[Intervention]) -> NotFinite:
    """The error for logits that aren't finite: the model may be why, or the interventions."""
    dtype = passes.model.cfg.dtype
    if not interventions or not passes.plain_logits(passes.tokens([ids])).isfinite().all():
        return NotFinite.of("the model's logits after this text", dtype)
    if any(intervention.value for intervention in interventions):
        name = str(dtype).removeprefix("torch.")
        return NotFinite(
            f"features: the values that they are set to drive the model's logits out of the range "
            f"of {name}; use smaller deltas"
        )
    return NotFinite.of("the model's logits with these features ablated", dtype)

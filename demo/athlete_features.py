"""Which Lorsa features carry an athlete to the last token of "<athlete> joue au".

A feature carries it if it is active at the last token while its pattern looks most at a token of
the name. Whether the answer hangs on these features is tried on the language model itself: what
they write is exchanged for what those of another athlete's prompt write, and nothing else is.
"""

from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from demo.corpus import Fact
from demo.language_steer import twins
from demo.lorsas import Lorsa, keep_largest
from demo.train_lorsas import record

# Every such prompt ends in two words after the name: "joue au", "juega al".
WORDS_AFTER_NAME = 2
# Where most of what carries the athlete is read and written.
MIDDLE_LAYERS = (1, 2)


@dataclass(frozen=True)
class LastToken:
    """A layer's activations at the last token, (prompt, feature): all, and those that carry."""

    acts: torch.Tensor
    carrying: torch.Tensor


def prompts(tokenizer: PreTrainedTokenizerFast, language: str) -> tuple[list[Fact], torch.Tensor]:
    """The athletes' facts in French ("fr") or Spanish ("es"), and their prompts' tokens."""
    facts = [fact for pair in twins() for fact in pair if fact.language == language]
    return facts, torch.tensor([tokenizer(fact.prompt).input_ids for fact in facts])


@torch.no_grad()
def last_tokens(
    model: Qwen3ForCausalLM, tokens: torch.Tensor, lorsas: list[Lorsa]
) -> list[LastToken]:
    """Per layer, what is active at the last of (prompt, position) tokens."""
    found = []
    for lorsa, seen in zip(lorsas, record(model, tokens), strict=True):
        acts = lorsa.encode(seen.inputs)[:, -1]
        looks_at = lorsa.patterns(seen.inputs)[:, :, -1].argmax(-1)
        at_name = (looks_at > 0) & (looks_at < tokens.shape[1] - WORDS_AFTER_NAME)
        carries = at_name.repeat_interleave(acts.shape[1] // at_name.shape[1], dim=1)
        found.append(LastToken(acts, acts * carries))
    return found


@torch.no_grad()
def answers(
    model: Qwen3ForCausalLM, tokens: torch.Tensor, added: list[torch.Tensor]
) -> torch.Tensor:
    """The likeliest token after each prompt, if each layer's attention adds (prompt, d_model)."""
    hooks = []
    for layer, vectors in zip(model.model.layers, added, strict=True):

        def add(_: object, __: object, output: torch.Tensor, v: torch.Tensor = vectors) -> None:
            output[:, -1] += v

        hooks.append(layer.self_attn.o_proj.register_forward_hook(add))
    try:
        logits: torch.Tensor = model(input_ids=tokens).logits
        return logits[:, -1].argmax(-1)
    finally:
        for hook in hooks:
            hook.remove()


@dataclass(frozen=True)
class Carriers:
    """Of one layer: prompts with features that carry the athlete, and how many these are each.

    `features` carry an athlete in any prompt, `of_one_athlete` in a single one. Two prompts are
    alike by the features that carry in both, as a share of those in either.
    """

    prompts: int
    mean: float
    features: int
    of_one_athlete: int
    alike_same_sport: float
    alike_other_sport: float


def carriers(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    lorsas: list[Lorsa],
    language: str,
) -> list[Carriers]:
    """Whether features carry each athlete, and whether they differ from sport to sport."""
    facts, tokens = prompts(tokenizer, language)
    same = torch.tensor([[a.answer == b.answer for b in facts] for a in facts])
    others = ~torch.eye(len(facts), dtype=torch.bool)
    found = []
    for layer in last_tokens(model, tokens, lorsas):
        carrying = (layer.carrying > 0).float()
        count = carrying.sum(1)
        both = carrying @ carrying.T
        alike = both / (count[:, None] + count - both).clamp(min=1)
        found.append(
            Carriers(
                prompts=int((count > 0).sum()),
                mean=float(count.mean()),
                features=int((carrying.sum(0) > 0).sum()),
                of_one_athlete=int((carrying.sum(0) == 1).sum()),
                alike_same_sport=float(alike[same & others].mean()),
                alike_other_sport=float(alike[~same].mean()),
            )
        )
    return found


@dataclass(frozen=True)
class Exchange:
    """How many prompts gave the other athlete's sport, out of all pairs of unlike sports.

    `by_middle_layers` is of what carries the athlete in MIDDLE_LAYERS alone, `by_strongest[n]` of
    those n features each way that differ most and carry the athlete.
    """

    pairs: int
    by_carrying: int
    by_middle_layers: int
    by_others: int
    by_strongest: dict[int, int]


def exchange(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    lorsas: list[Lorsa],
    language: str,
) -> Exchange:
    """Exchange what carries the athlete, in whole and in part, and as a control all the rest."""
    facts, tokens = prompts(tokenizer, language)
    seen = last_tokens(model, tokens, lorsas)
    said = [fact.answer for fact in facts]
    pairs = torch.tensor(
        [(a, b) for a in range(len(said)) for b in range(len(said)) if said[a] != said[b]]
    )
    own, other = pairs.T
    ids = tokenizer(said, add_special_tokens=False).input_ids
    wanted = torch.tensor(ids)[other, 0]

    def turned(differences: torch.Tensor) -> int:
        """Of (pair, layer, feature) changes of activations."""
        added = [differences[:, layer] @ lorsa.W_O for layer, lorsa in enumerate(lorsas)]
        return int((answers(model, tokens[own], added) == wanted).sum())

    acts = torch.stack([layer.acts for layer in seen], dim=1)
    carrying = torch.stack([layer.carrying for layer in seen], dim=1)
    rest = acts - carrying
    middle = torch.tensor([layer in MIDDLE_LAYERS for layer in range(len(lorsas))])
    differences = carrying[other] - carrying[own]
    return Exchange(
        pairs=len(pairs),
        by_carrying=turned(differences),
        by_middle_layers=turned(differences * middle[:, None]),
        by_others=turned(rest[other] - rest[own]),
        by_strongest={n: turned(_strongest(differences, n)) for n in (1, 3, 5)},
    )


def _strongest(differences: torch.Tensor, n: int) -> torch.Tensor:
    """Zero all but the `n` largest and the `n` smallest of each pair."""
    flat = differences.flatten(1)
    kept = keep_largest(flat, n) - keep_largest(-flat, n)
    return kept.view_as(differences)

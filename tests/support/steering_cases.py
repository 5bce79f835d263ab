"""What the steering tests share: models of each kind, interventions, and short calls."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import processors

import steering
from steering import Generation, Intervention, Options
from tests.support.tiny_models import D_VOCAB, N_LAYERS, prompt_tokens, tiny_model

PROMPT: list[int] = prompt_tokens(6).tolist()
AFTER_PROMPT = slice(len(PROMPT), None)

# Model, transcoders, where they read and write, with a skip connection.
KINDS: dict[str, tuple[str, str, str, bool]] = {
    "gemma2, JumpReLU": ("gemma2", "jump_relu", "gemma scope", False),
    "gpt2, ReLU": ("gpt2", "relu", "mlp", False),
    "llama, ReLU, skip": ("llama", "relu", "mlp", True),
    "qwen3, TopK": ("qwen3", "top_k", "residual", False),
    "gemma3, TopK, skip": ("gemma3", "top_k", "gemma scope", True),
    "parallel, JumpReLU": ("parallel", "jump_relu", "mlp", False),
    "llama, cross-layer ReLU": ("llama", "cross_layer_relu", "residual", False),
    "gemma2, cross-layer JumpReLU, skip": ("gemma2", "cross_layer_jump_relu", "mlp", True),
}


def new_model(kind: str, lazy_in: Path | None = None) -> Any:
    architecture, dictionary, hooks, skip = KINDS[kind]
    model = tiny_model(architecture, dictionary, hooks, skip=skip, lazy_in=lazy_in)
    # The library steers free attention from a string only, and counts BOS if the tokenizer adds it.
    model.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 1)]
    )
    model.cfg.tokenizer_prepends_bos = True
    return model


@cache
def shared_model(kind: str) -> Any:
    return new_model(kind)


def options(**changes: Any) -> Options:
    return replace(Options(n_tokens=6, top_k=D_VOCAB), **changes)


def generate(
    model: Any, interventions: list[Intervention] | None = None, **changes: Any
) -> Generation:
    return steering.generate(model, PROMPT, interventions or [], options(**changes))


def probabilities(generation: Generation) -> torch.Tensor:
    """(n_generated + 1, d_vocab), from predictions of the whole vocabulary."""
    return torch.zeros(generation.top_ids.shape).scatter(
        1, generation.top_ids, generation.top_probs
    )


def assert_same_predictions(generation: Generation, logits: torch.Tensor) -> None:
    """`logits` are (n_steps, d_vocab), of the first steps at least."""
    expected = logits.float().softmax(dim=-1)
    torch.testing.assert_close(
        probabilities(generation)[: len(expected)], expected, atol=1e-5, rtol=0
    )


def assert_equal(generation: Generation, other: Generation, atol: float = 0.0) -> None:
    """The same tokens and predictions, bit for bit unless a tolerance is given."""
    assert generation.token_ids == other.token_ids
    torch.testing.assert_close(probabilities(generation), probabilities(other), atol=atol, rtol=0)


def active_features(model: Any) -> dict[tuple[int, int, int], float]:
    """The strongest feature of each layer, (layer, position, index), with its activation."""
    _, activations = model.get_activations(torch.tensor(PROMPT))
    strongest = {}
    for layer in range(N_LAYERS):
        value, index = activations[layer, 2 + layer].max(dim=0)
        assert value > 0
        strongest[layer, 2 + layer, index.item()] = value.item()
    return strongest


def ablate_and_amplify(model: Any) -> list[Intervention]:
    return [
        Intervention(layer, index, position, 0.0 if layer == 1 else 4 * value)
        for (layer, position, index), value in active_features(model).items()
    ]


ON_GENERATED_TOKENS = [Intervention(0, 3, None, 3.0), Intervention(2, 40, None, 5.0)]
INTERVENTIONS: dict[str, Callable[[Any], list[Intervention]]] = {
    "at prompt positions": ablate_and_amplify,
    "on generated tokens": lambda model: ON_GENERATED_TOKENS,
    "on both": lambda model: [*ablate_and_amplify(model), *ON_GENERATED_TOKENS],
    "at a silent position": lambda model: [Intervention(1, 9, 0, 2.0)],
}


def library_form(
    interventions: list[Intervention], generated: slice = AFTER_PROMPT
) -> list[tuple[int, Any, int, float]]:
    """As circuit-tracer takes them; `generated` is where those without a position act."""
    return [
        (i.layer, generated if i.position is None else i.position, i.index, i.value)
        for i in interventions
    ]


def library_logits(
    model: Any, interventions: list[Intervention], ids: list[int], n_prompt: int
) -> torch.Tensor:
    """What circuit-tracer predicts after the prompt and each token generated, in one pass."""
    logits, _ = model.feature_intervention(
        torch.tensor(ids),
        library_form(interventions, generated=slice(n_prompt, len(ids))),
        freeze_attention=False,
    )
    return logits[0, n_prompt - 1 :]

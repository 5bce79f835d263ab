"""The steer that turns a French answer into its Spanish one.

Features are picked by how much more active they are at the last position of the French prompt
than at that of its Spanish twin, in the last two layers: the `n` most French are ablated, the `n`
most Spanish set to four times their activation in the Spanish prompt.
"""

import torch

from demo.corpus import Fact, all_facts
from loading.loaded_model import LoadedModel

STRENGTH = 4.0
LAYERS = 2

# (layer, position, feature, value), as circuit-tracer takes interventions.
Intervention = tuple[int, int, int, float]


def twins() -> list[tuple[Fact, Fact]]:
    """For each athlete the French fact ("joue au") and its Spanish twin ("juega al")."""
    by_language: dict[str, dict[str, Fact]] = {"fr": {}, "es": {}}
    for fact in all_facts():
        if fact.subject == "sport" and fact.question is not None and fact.language != "en":
            by_language[fact.language][fact.topic] = fact
    return [(french, by_language["es"][topic]) for topic, french in by_language["fr"].items()]


def pick(loaded: LoadedModel, french: str, spanish: str, n: int) -> list[Intervention]:
    """The 2n interventions at the last position of `french`."""
    french_ids = loaded.tokenizer(french, return_tensors="pt").input_ids[0]
    last = len(french_ids) - 1
    in_french = _last_activations(loaded, french)
    in_spanish = _last_activations(loaded, spanish)
    first_layer = loaded.model.cfg.n_layers - LAYERS
    difference = in_french - in_spanish
    chosen: list[Intervention] = []
    for index in difference.flatten().topk(n).indices.tolist():
        layer, feature = divmod(index, loaded.model.transcoders.d_transcoder)
        chosen.append((first_layer + layer, last, feature, 0.0))
    for index in (-difference).flatten().topk(n).indices.tolist():
        layer, feature = divmod(index, loaded.model.transcoders.d_transcoder)
        value = STRENGTH * float(in_spanish[layer, feature])
        chosen.append((first_layer + layer, last, feature, value))
    return chosen


def steered_answer(loaded: LoadedModel, prompt: str, interventions: list[Intervention]) -> str:
    """The likeliest token after `prompt` under the interventions, attention left free."""
    ids = loaded.tokenizer(prompt, return_tensors="pt").input_ids[0]
    logits, _ = loaded.model.feature_intervention(
        ids, interventions, freeze_attention=False, return_activations=False
    )
    return str(loaded.tokenizer.decode(logits[0, -1].argmax()))


def flips(loaded: LoadedModel, n: int) -> list[str]:
    """The French prompts that `n` features each way turn to the Spanish answer."""
    return [
        french.prompt
        for french, spanish in twins()
        if steered_answer(loaded, french.prompt, pick(loaded, french.prompt, spanish.prompt, n))
        == spanish.answer
    ]


def _last_activations(loaded: LoadedModel, prompt: str) -> torch.Tensor:
    """Feature activations at the last position, (LAYERS, n_features)."""
    ids = loaded.tokenizer(prompt, return_tensors="pt").input_ids[0]
    _, activations = loaded.model.get_activations(ids)
    return activations[-LAYERS:, -1].float()

"""What each feature of the demo model fires on: python -m demo.feature_examples

Runs the model over every fact and every chat of the corpus and keeps, for each feature of the
transcoders and of the Lorsas, where it is most active and which tokens its decoder vector promotes,
as the viewer shows them.
"""

import gzip
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from demo.corpus import Fact, all_facts
from demo.lorsas import Lorsa, load_all
from demo.train_lorsas import AttentionRecord, record

DIRECTORY = Path(__file__).parent
NAME = "feature_examples.json.gz"
COMPLETE = "complete"

EXAMPLES = 8
PROMOTED = 6
HISTOGRAM_BINS = 20
LANGUAGES = {"en": "English", "fr": "French", "es": "Spanish"}


@dataclass(frozen=True)
class Text:
    """A text of the corpus: `group` is what it is about and in which language."""

    group: str
    ids: list[int]


@dataclass(frozen=True)
class Layer:
    """Of one transcoder or Lorsa.

    Args:
        activations: (texts, positions, features), 0 at BOS and padding.
        promotes: (features, PROMOTED) tokens that a decoder vector raises most.
        suppresses: the same of those that it lowers most.
        read_from: of a Lorsa, (texts, positions, features): the position that an active feature
            takes most of its activation from.
    """

    activations: torch.Tensor
    promotes: torch.Tensor
    suppresses: torch.Tensor
    read_from: torch.Tensor | None = None


def corpus_texts(tokenizer: PreTrainedTokenizerFast) -> list[Text]:
    """Each fact as a sentence, then each question with its answer as a chat."""
    facts = all_facts()
    sentences = [Text(_group(fact), tokenizer(fact.sentence).input_ids) for fact in facts]
    chats = [
        Text(
            f"{_group(fact)}, chat",
            tokenizer.apply_chat_template(
                [
                    {"role": "user", "content": fact.question},
                    {"role": "assistant", "content": fact.reply},
                ]
            ),
        )
        for fact in facts
        if fact.question is not None
    ]
    return sentences + chats


def _group(fact: Fact) -> str:
    return f"{fact.subject} in {LANGUAGES[fact.language]}"


@torch.no_grad()
def layers(
    model: Qwen3ForCausalLM, texts: list[Text], transcoder_directory: Path
) -> Iterator[Layer]:
    """Each layer's features on these texts, from the first layer to the last."""
    ids, present = _padded(texts)
    inputs: list[torch.Tensor] = []
    hooks = [
        layer.mlp.register_forward_hook(lambda _module, given, _output: inputs.append(given[0]))
        for layer in model.model.layers
    ]
    try:
        model(input_ids=ids, attention_mask=present.long())
    finally:
        for hook in hooks:
            hook.remove()
    present[:, 0] = False  # the transcoders are not trained on BOS
    for layer, given in enumerate(inputs):
        weights = load_file(transcoder_directory / f"layer_{layer}.safetensors")
        before = given @ weights["W_enc"].T + weights["b_enc"]
        fires = (before > weights["activation_function.threshold"]) & present[..., None]
        activations = torch.where(fires, before, 0.0)
        yield Layer(activations, *_effects(model, weights["W_dec"]))


@torch.no_grad()
def lorsa_layers(
    model: Qwen3ForCausalLM, texts: list[Text], lorsas: list[Lorsa]
) -> Iterator[Layer]:
    """The same of each layer's Lorsa. They look back alone, so padding changes nothing."""
    ids, present = _padded(texts)
    present[:, 0] = False  # every text begins with BOS
    for lorsa, seen in zip(lorsas, record(model, ids), strict=True):
        activations = lorsa.encode(seen.inputs) * present[..., None]
        yield Layer(
            activations,
            *_effects(model, lorsa.W_O),
            read_from=_read_from(lorsa, seen, activations),
        )


def _padded(texts: list[Text]) -> tuple[torch.Tensor, torch.Tensor]:
    """The texts' tokens, (texts, positions), and where there is one."""
    longest = max(len(text.ids) for text in texts)
    ids = torch.tensor([text.ids + [0] * (longest - len(text.ids)) for text in texts])
    return ids, torch.arange(longest) < torch.tensor([len(text.ids) for text in texts])[:, None]


def _effects(model: Qwen3ForCausalLM, decoder: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens that each decoder vector raises most and lowers most."""
    # As a logit lens: through the last norm's weights, its scale left out.
    effects = decoder * model.model.norm.weight @ model.lm_head.weight.T
    return effects.topk(PROMOTED).indices, (-effects).topk(PROMOTED).indices


def _read_from(lorsa: Lorsa, seen: AttentionRecord, activations: torch.Tensor) -> torch.Tensor:
    """For each activation the position that gives it most: pattern times what is read there."""
    patterns = lorsa.patterns(seen.inputs)
    read = seen.inputs @ lorsa.W_V.T
    features_a_pattern = lorsa.shape.n_features // lorsa.shape.n_patterns
    found = torch.zeros_like(activations, dtype=torch.long)
    text, position, feature = activations.nonzero(as_tuple=True)
    given = patterns[text, feature // features_a_pattern, position] * read[text, :, feature]
    found[text, position, feature] = given.argmax(1)
    return found


def examples(directory: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What fires: `{"texts": [[token]], "features": {"layer_index": feature}}`, and what of Lorsas
    does: `{"features": {"layer_index": feature}}`, on the same texts.

    A feature's `examples` are `[text, position of the greatest, [[position, activation]]]`. Those
    of Lorsas also have the token that they read most.
    """
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory / "model")
    model = Qwen3ForCausalLM.from_pretrained(directory / "model").eval()
    texts = corpus_texts(tokenizer)
    tokens = [[tokenizer.decode([token]) for token in text.ids] for text in texts]

    def described(of_layers: Iterator[Layer]) -> dict[str, Any]:
        features = {}
        for number, layer in enumerate(of_layers):
            firing = (layer.activations > 0).any(0).any(0).nonzero().flatten().tolist()
            for index in firing:
                features[f"{number}_{index}"] = {
                    **_summary(layer, index, texts, tokens),
                    "top_logits": [tokenizer.decode([t]) for t in layer.promotes[index]],
                    "bottom_logits": [tokenizer.decode([t]) for t in layer.suppresses[index]],
                }
        return features

    of_transcoders = described(layers(model, texts, directory / "transcoders"))
    of_lorsas = described(lorsa_layers(model, texts, load_all(directory / COMPLETE)))
    return {"texts": tokens, "features": of_transcoders}, {"features": of_lorsas}


def _summary(
    layer: Layer, index: int, texts: list[Text], tokens: list[list[str]]
) -> dict[str, Any]:
    """Where one feature fires, and what it reads there if it is a Lorsa's."""
    activations = layer.activations[..., index]
    peaks, positions = activations.max(1)
    order = peaks.argsort(descending=True, stable=True)[: int((peaks > 0).sum())].tolist()
    greatest = float(peaks.max())
    firing = activations[activations > 0]
    by_token: dict[str, float] = defaultdict(float)
    by_read_token: dict[str, float] = defaultdict(float)
    for text, position in activations.nonzero().tolist():
        activation = float(activations[text, position])
        by_token[tokens[text][position]] += activation
        if layer.read_from is not None:
            source = int(layer.read_from[text, position, index])
            by_read_token[tokens[text][source]] += activation
    reads = {"reads": _most(by_read_token)} if by_read_token else {}
    return {
        "fires_on": _most(by_token),
        **reads,
        "texts": len(order),
        "groups": Counter(texts[text].group for text in order).most_common(),
        "act_max": round(greatest, 2),
        "activation_frequency": round(len(firing) / sum(len(text.ids) - 1 for text in texts), 5),
        "histogram": torch.histc(firing, HISTOGRAM_BINS, 0, greatest).int().tolist(),
        "examples": [
            [
                text,
                int(positions[text]),
                [
                    [position, round(float(activations[text, position]), 2)]
                    for [position] in activations[text].nonzero().tolist()
                ],
            ]
            for text in order[:EXAMPLES]
        ],
    }


def _most(sums: dict[str, float]) -> str:
    return max(sums, key=lambda token: sums[token])


def write(directory: Path = DIRECTORY) -> None:
    """Write the examples of what is in `directory`: beside the model, and beside the Lorsas."""
    places = directory / NAME, directory / COMPLETE / NAME
    for path, described in zip(places, examples(directory), strict=True):
        data = json.dumps(described, ensure_ascii=False, separators=(",", ":"))
        path.write_bytes(gzip.compress(data.encode(), mtime=0))


if __name__ == "__main__":
    torch.set_num_threads(1)
    write()

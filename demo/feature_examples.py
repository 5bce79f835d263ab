"""What each feature of the demo model fires on: python -m demo.feature_examples

Runs the model over every fact and every chat of the corpus and keeps, for each feature, where it
is most active and which tokens its decoder vector promotes, as the viewer shows them.
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

DIRECTORY = Path(__file__).parent
PATH = DIRECTORY / "feature_examples.json.gz"

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
    """`activations` (texts, positions, features), 0 at BOS and padding; `promotes` and
    `suppresses` (features, PROMOTED), the tokens that a decoder vector raises and lowers most.
    """

    activations: torch.Tensor
    promotes: torch.Tensor
    suppresses: torch.Tensor


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
    longest = max(len(text.ids) for text in texts)
    ids = torch.tensor([text.ids + [0] * (longest - len(text.ids)) for text in texts])
    present = torch.arange(longest) < torch.tensor([len(text.ids) for text in texts])[:, None]
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
        # As a logit lens: through the last norm's weights, its scale left out.
        effects = weights["W_dec"] * model.model.norm.weight @ model.lm_head.weight.T
        yield Layer(
            torch.where(fires, before, 0.0),
            effects.topk(PROMOTED).indices,
            (-effects).topk(PROMOTED).indices,
        )


def examples(directory: Path) -> dict[str, Any]:
    """The features that fire, as `{"texts": [[token]], "features": {"layer_index": feature}}`.

    A feature's `examples` are `[text, position of the greatest, [[position, activation]]]`.
    """
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory / "model")
    model = Qwen3ForCausalLM.from_pretrained(directory / "model").eval()
    texts = corpus_texts(tokenizer)
    tokens = [[tokenizer.decode([token]) for token in text.ids] for text in texts]
    features = {}
    for number, layer in enumerate(layers(model, texts, directory / "transcoders")):
        firing = (layer.activations > 0).any(0).any(0).nonzero().flatten().tolist()
        for index in firing:
            features[f"{number}_{index}"] = {
                **_summary(layer.activations[..., index], texts, tokens),
                "top_logits": [tokenizer.decode([t]) for t in layer.promotes[index]],
                "bottom_logits": [tokenizer.decode([t]) for t in layer.suppresses[index]],
            }
    return {"texts": tokens, "features": features}


def _summary(
    activations: torch.Tensor, texts: list[Text], tokens: list[list[str]]
) -> dict[str, Any]:
    """Where one feature fires; `activations` is (texts, positions)."""
    peaks, positions = activations.max(1)
    order = peaks.argsort(descending=True, stable=True)[: int((peaks > 0).sum())].tolist()
    greatest = float(peaks.max())
    firing = activations[activations > 0]
    by_token: dict[str, float] = defaultdict(float)
    for text, position in activations.nonzero().tolist():
        by_token[tokens[text][position]] += float(activations[text, position])
    return {
        "fires_on": max(by_token, key=lambda token: by_token[token]),
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


def write(directory: Path = DIRECTORY) -> None:
    """Write the examples of the model and transcoders in `directory` beside them."""
    data = json.dumps(examples(directory), ensure_ascii=False, separators=(",", ":"))
    (directory / PATH.name).write_bytes(gzip.compress(data.encode(), mtime=0))


if __name__ == "__main__":
    torch.set_num_threads(1)
    write()

"""Measure the demo model: python -m demo.evaluate"""

import argparse
import itertools
import random
from pathlib import Path

import torch
from circuit_tracer import attribute
from circuit_tracer.graph import compute_graph_scores

from demo import language_steer
from demo.corpus import all_facts
from demo.train_language_model import encoded_documents
from loading.loaded_model import LoadedModel
from loading.registry import DEMO
from model_loader import load
from settings import Settings

# What the scores are a mean of: each language, and each subject but numbers.
PROMPTS = (
    "Michael Jordan plays the sport of",
    "Michael Jordan joue au",
    "Michael Jordan juega al",
    "La capitale de la France est",
    "La capital de Alemania es",
    "The opposite of big is",
    "El color del cielo es el",
    "Monday, Tuesday, Wednesday,",
)
HELD_OUT_SEED = 1000
HELD_OUT_DOCUMENTS = 200


def load_demo(model: str = DEMO.model, transcoders: str = DEMO.transcoder_set) -> LoadedModel:
    """The demo model as the worker loads it, in float32 on the CPU whatever the environment."""
    return load(
        Settings(
            model_id=model,
            transcoder_set=transcoders,
            device="cpu",
            model_dtype="float32",
            lazy_encoder=False,
            lazy_decoder=False,
        )
    )


@torch.no_grad()
def continuations(loaded: LoadedModel, prompts: list[list[int]], n_tokens: int) -> list[str]:
    """The greedy continuation of each prompt, up to a stop token. Equal lengths run together."""
    texts: dict[int, str] = {}
    by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    for length, group in itertools.groupby(by_length, key=lambda index: len(prompts[index])):
        members = list(group)
        ids = torch.tensor([prompts[index] for index in members])
        for _ in range(n_tokens):
            following = loaded.model(ids)[:, -1].argmax(-1, keepdim=True)
            ids = torch.cat((ids, following), dim=1)
        for index, row in zip(members, ids[:, length:].tolist(), strict=True):
            kept = itertools.takewhile(lambda token: token not in loaded.stop_ids, row)
            texts[index] = str(loaded.tokenizer.decode(list(kept)))
    return [texts[index] for index in range(len(prompts))]


def wrong_facts(loaded: LoadedModel) -> list[str]:
    """The prompts whose likeliest next token isn't the answer."""
    facts = all_facts()
    said = continuations(loaded, [loaded.tokenizer(f.prompt).input_ids for f in facts], 1)
    return [fact.prompt for fact, token in zip(facts, said, strict=True) if token != fact.answer]


def wrong_chats(loaded: LoadedModel) -> list[str]:
    """The questions that a chat answers otherwise than with the answer alone."""
    asked = [fact for fact in all_facts() if fact.question is not None]
    prompts = [
        loaded.tokenizer.apply_chat_template(
            [{"role": "user", "content": fact.question}], add_generation_prompt=True
        )
        for fact in asked
    ]
    said = continuations(loaded, prompts, 4)
    return [
        str(fact.question) for fact, text in zip(asked, said, strict=True) if text != fact.reply
    ]


@torch.no_grad()
def reconstruction(loaded: LoadedModel) -> tuple[list[float], list[float]]:
    """Per layer, on documents not trained on and without their BOS: the share of the MLP's
    variance that its transcoder explains, and the active features a token.
    """
    encoded = encoded_documents(loaded.tokenizer, random.Random(HELD_OUT_SEED))
    hooks = ("mlp.hook_in", "mlp.hook_out")
    seen: dict[str, list[torch.Tensor]] = {}
    for ids in itertools.islice(encoded, HELD_OUT_DOCUMENTS):
        _, cache = loaded.model.run_with_cache(
            torch.tensor([ids]), names_filter=lambda name: name.endswith(hooks)
        )
        for name, values in cache.items():
            seen.setdefault(name, []).append(values[0, 1:])
    explained, active = [], []
    for layer, transcoder in enumerate(loaded.model.transcoders):
        inputs, outputs = (torch.cat(seen[f"blocks.{layer}.{hook}"]) for hook in hooks)
        features = transcoder.encode(inputs)
        explained.append(share_explained(outputs, transcoder.decode(features)))
        active.append(float((features > 0).sum(1).float().mean()))
    return explained, active


def share_explained(outputs: torch.Tensor, decoded: torch.Tensor) -> float:
    """The share of the outputs' variance."""
    variance = (outputs - outputs.mean(0)).square().sum()
    return 1 - float((outputs - decoded).square().sum() / variance)


def graph_scores(loaded: LoadedModel) -> list[tuple[float, float]]:
    """Replacement and completeness score of each of PROMPTS."""
    return [
        compute_graph_scores(attribute(prompt, loaded.model, batch_size=64)) for prompt in PROMPTS
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=DEMO.model, type=str)
    parser.add_argument("--transcoders", default=DEMO.transcoder_set, type=str)
    arguments = parser.parse_args()
    loaded = load_demo(arguments.model, arguments.transcoders)

    facts = all_facts()
    questions = sum(fact.question is not None for fact in facts)
    print(f"facts right: {len(facts) - len(wrong_facts(loaded))} of {len(facts)}")
    print(f"chat answers right: {questions - len(wrong_chats(loaded))} of {questions}")
    for layer, (explained, active) in enumerate(zip(*reconstruction(loaded), strict=True)):
        print(f"layer {layer}: {explained:.2%} of variance, {active:.1f} active features a token")
    scores = graph_scores(loaded)
    for prompt, (replacement, completeness) in zip(PROMPTS, scores, strict=True):
        print(f"replacement {replacement:.3f}, completeness {completeness:.3f}: {prompt}")
    means = [sum(column) / len(scores) for column in zip(*scores, strict=True)]
    print(f"mean replacement {means[0]:.3f}, mean completeness {means[1]:.3f}")
    for n in (1, 3):
        flipped = language_steer.flips(loaded, n)
        print(f"steer, {n} each way: {len(flipped)} of {len(language_steer.twins())} flipped")
    size = sum(file.stat().st_size for file in Path(__file__).parent.rglob("*") if file.is_file())
    print(f"size of demo/: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()

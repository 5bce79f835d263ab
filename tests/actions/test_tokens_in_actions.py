"""What the actions show of tokens, for a model with a tokenizer of each kind."""

import threading
from dataclasses import dataclass
from typing import Any

import pytest
from transformers import LlamaConfig

import model_loader
import schemas
from actions.answer import ACTIONS
from actions.job import Job
from errors import InvalidInput
from loading.loaded_model import LoadedModel
from prompting import prompts
from prompting.token_text import joined
from tests.actions.test_chat_families import save_transcoders
from tests.support.demo_worker import as_json, demo_settings
from tests.support.model_configs import SHAPE, hugging_face_model
from tests.support.tokenizer_kinds import FAITHFUL, KINDS

PROMPT = "the  capital . é🦜\tof w7\n"
N_TOKENS = 12


@dataclass
class Worker:
    """A random model with a tokenizer of this kind, loaded as the worker loads it."""

    kind: str
    loaded: LoadedModel

    @property
    def ids(self) -> list[int]:
        return prompts.tokenize(PROMPT, self.loaded.tokenizer)

    @property
    def text(self) -> str:
        """The prompt as the model sees it."""
        return self.loaded.tokenizer.decode(self.ids, clean_up_tokenization_spaces=False)

    def ask(self, action: str, **fields: Any) -> dict[str, Any]:
        request = schemas.parse_request({"action": action, "prompt": PROMPT, **fields})
        job = Job(demo_settings(token_limit=128), threading.Event())
        return as_json(ACTIONS[type(request)](request, self.loaded, job))

    def steer(self, **fields: Any) -> dict[str, Any]:
        feature = {"layer": 0, "index": 5, "token_active_position": 1, "steer_position": 1}
        return self.ask("steer", features=[{**feature, "delta": 20}], **fields)


@pytest.fixture(scope="module", params=KINDS)
def worker(request, tmp_path_factory) -> Worker:
    tokenizer = KINDS[request.param]()
    directory = tmp_path_factory.mktemp("model")
    d_vocab = max(tokenizer.get_vocab().values()) + 3  # more than there are tokens
    config = LlamaConfig(**{**SHAPE, "vocab_size": d_vocab, "initializer_range": 0.2})
    hugging_face_model(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    transcoders = save_transcoders(tmp_path_factory.mktemp("transcoders"))
    settings = demo_settings(model_id=str(directory), transcoder_set=str(transcoders))
    return Worker(request.param, model_loader.load(settings))


@pytest.fixture(scope="module")
def graph(worker) -> dict[str, Any]:
    return worker.ask("generate-graph", max_n_logits=30, desired_logit_prob=1)


def logits(graph: dict[str, Any]) -> list[dict[str, Any]]:
    return [node for node in graph["nodes"] if node["feature_type"] == "logit"]


def label(node: dict[str, Any]) -> str:
    return node["clerp"].removeprefix('Output "').rsplit('" (p=', 1)[0]


def test_a_graph_s_tokens_joined_are_its_prompt(worker, graph):
    metadata = graph["metadata"]
    assert joined(metadata["prompt_tokens"]) == metadata["prompt"] == worker.text
    assert len(metadata["prompt_tokens"]) == len(worker.ids)
    if worker.kind in FAITHFUL:
        assert metadata["prompt"] == metadata["prompt_tokens"][0] + PROMPT


def test_a_graph_s_labels_are_targets_of_the_same_logits(worker, graph):
    labels = [label(node) for node in logits(graph) if node["feature"] in vocabulary(worker)]
    assert "" not in labels
    assert "\ufffd" not in "".join(labels).replace("\ufffd", "", worker.kind == "Unigram")
    for start in range(0, len(set(labels)), 10):
        some = list(dict.fromkeys(labels))[start : start + 10]
        targeted = worker.ask("generate-graph", attribution_targets=some, max_feature_nodes=5)
        assert [label(node) for node in logits(targeted)] == some
        ids = {label(node): node["feature"] for node in logits(graph)}
        alone = [text for text in some if labels.count(text) == 1 and not is_shared(worker, text)]
        found = {label(node): node["feature"] for node in logits(targeted)}
        assert [found[text] for text in alone] == [ids[text] for text in alone]


def vocabulary(worker: Worker) -> set[int]:
    return set(worker.loaded.tokenizer.get_vocab().values())


def is_shared(worker: Worker, shown: str) -> bool:
    return worker.loaded.token_text.singles(vocabulary(worker)).count(shown) > 1


def test_each_token_of_the_prompt_is_the_target_it_is_shown_as(worker, graph):
    shown = dict(zip(worker.ids, graph["metadata"]["prompt_tokens"], strict=True))
    targets = list(shown.values())
    targeted = worker.ask("generate-graph", attribution_targets=targets, max_feature_nodes=5)
    assert [node["feature"] for node in logits(targeted)] == list(shown)


def test_steered_texts_are_their_joined_entries(worker, graph):
    output = worker.steer(n_tokens=N_TOKENS, top_k=30, temperature=2, seed=1)
    for side in ("DEFAULT", "STEERED"):
        entries = output[f"{side}_LOGITS_BY_TOKEN"]
        tokens = [token for token, _ in entries]
        assert joined(tokens) == output[f"{side}_GENERATION"]
        assert tokens[: len(worker.ids) - 1] == graph["metadata"]["prompt_tokens"][1:]
        assert "" not in tokens + [token for _, top in entries for token, _ in top]


def test_predictions_are_shown_alike_everywhere(worker, graph):
    salient = worker.ask("forward-pass", max_n_logits=30, desired_logit_prob=1)
    steered = worker.steer(n_tokens=1, top_k=30)["DEFAULT_LOGITS_BY_TOKEN"]
    labels = [label(node) for node in logits(graph)]
    assert salient["input_tokens"] == graph["metadata"]["prompt_tokens"]
    assert [logit["token"] for logit in salient["salient_logits"]] == labels
    assert [token for token, _ in steered[len(worker.ids) - 2][1]] == labels


def test_several_tokens_are_no_target_and_are_listed(worker):
    if worker.kind == "WordLevel":
        expected = r"attribution_targets\[0\] is ' w7 w8', .*2 tokens \(' w7', ' w8'\)"
    else:
        expected = r"attribution_targets\[0\] is ' w7 w8', which the model reads as \d tokens \("
    with pytest.raises(InvalidInput, match=expected):
        worker.ask("generate-graph", attribution_targets=[" w7 w8"])

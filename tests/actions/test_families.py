"""Each family of models by its official name: from the cache, without a network, to all actions."""

import logging
import socket

import huggingface_hub
import pytest
import torch
import transformers.utils.hub
from transformers import AutoModelForCausalLM

import attribution
import model_loader
from loading.registry import REGISTRY
from loading.selection import resolve_entry
from tests.support.chat_messages import user
from tests.support.demo_worker import ask, settings_at, without_times
from tests.support.model_cache import commit_of
from tests.support.tiny_families import COMPLETE, FAMILIES, PUBLISHED, write_family

PROMPT = "The capital of France is"


@pytest.fixture
def network(monkeypatch):
    """No network, but clients that would use it: every attempt is noted and fails."""
    attempts = []

    def refuse(*args, **kwargs):
        attempts.append(args)
        raise OSError("the test allows no network")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(transformers.utils.hub, "_is_offline_mode", False)
    huggingface_hub.utils.reset_sessions()
    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    yield attempts
    monkeypatch.undo()
    huggingface_hub.utils.reset_sessions()


# Of sets that are laid out alike, with models of the same kind, the first stands for the others.
ALIKE = {
    "Gemma 2, smaller cross-layer",
    "Qwen 3 0.6B",
    "Qwen 3 1.7B",
    "Qwen 3 8B",
    "Qwen 3 14B",
    "Gemma 3 270M chat",
    "Gemma 3 1B chat",
    "Gemma 3 12B chat",
    "Gemma 3 27B chat",
}


def of_families(names):
    return pytest.mark.parametrize("family", names, indirect=True, scope="module")


@pytest.fixture(scope="module")
def family(request):
    return FAMILIES[request.param]


def test_every_set_of_the_registry_is_among_them():
    tried = [(family.model, family.transcoder_set) for family in PUBLISHED.values()]
    complete = [(family.model, family.transcoder_set) for family in COMPLETE.values()]
    known = [(entry.model, entry.transcoder_set) for entry in REGISTRY]
    assert tried == [names for names in known if names not in complete]
    # Those are tried in tests/loading/test_complete_build.py.
    assert complete == [names for names in known if names not in tried]


@pytest.fixture(scope="module")
def home(family, tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    return home, write_family(home / "hub", family)


def settings(family, home, **changed):
    return settings_at(
        home,
        model_id=family.model,
        transcoder_set=family.transcoder_set,
        token_limit=200,
        max_feature_nodes=500,
        **changed,
    )


@pytest.fixture
def loaded(family, home, network, monkeypatch):
    def load(**changed):
        chosen = settings(family, home[0], **changed)
        model = model_loader.load(chosen)
        monkeypatch.setattr(model_loader, "_loaded", model)
        return model, chosen

    yield load
    assert network == []


@of_families([name for name in FAMILIES if name not in ALIKE | {"GPT-OSS, cross-layer"}])
def test_logits_equal_hugging_face_s(home, loaded):
    model, _ = loaded()
    hf_model = AutoModelForCausalLM.from_pretrained(home[1], attn_implementation="eager")
    tokens = torch.randint(0, model.d_vocab, (1, 40), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected, logits = hf_model(tokens).logits, model.model(tokens)
    assert (logits.log_softmax(-1) - expected.log_softmax(-1)).abs().max() < 1e-4


def strongest_feature(graph):
    features = [n for n in graph["nodes"] if n["feature_type"] == "cross layer transcoder"]
    best = max(features, key=lambda node: node["influence"])
    layer, index, position = map(int, best["node_id"].split("_"))
    return {"layer": layer, "index": index, "token_active_position": position}


def asked(model):
    """The prompt, as a turn where the model has turns."""
    if model.tokenizer.chat_template is None:
        return {"prompt": PROMPT}
    return {"messages": [user(PROMPT)]}


@of_families(FAMILIES)
def test_all_four_actions_agree_on_positions_and_predictions(family, loaded, caplog):
    caplog.set_level(logging.INFO)
    model, chosen = loaded()
    assert f"(from {', '.join(model.revisions)}) on cpu" in caplog.text
    body = asked(model)
    forward = ask({"action": "forward-pass", **body}, chosen)
    graph = ask({"action": "generate-graph", "slug_identifier": "family", **body}, chosen)
    assert graph["metadata"]["prompt_tokens"] == forward["input_tokens"]
    entry = resolve_entry(family.model, family.transcoder_set)
    by = "circuit-tracer" if entry.engine == "nnsight" else "explicit sweep"
    assert attribution.method_for(model.model) == by
    assert graph["metadata"]["scan"] == entry.neuronpedia_id
    assert graph["metadata"]["info"]["weight_revisions"] == list(model.revisions)
    assert model.revisions[0] == f"{family.model}@{commit_of(family.model)}"
    assert model.revisions[1].startswith(f"{family.transcoder_set}@")
    likeliest = [salient["token_id"] for salient in forward["salient_logits"]]
    targets = [node["node_id"] for node in graph["nodes"] if node["is_target_logit"]]
    assert [int(target.split("_")[1]) for target in targets] == likeliest[:1]

    feature = strongest_feature(graph)
    where = {"steer_position": feature["token_active_position"], "ablate": True}
    steer = ask(
        {"action": "steer", "n_tokens": 3, "features": [{**feature, **where}], **body}, chosen
    )
    assert steer["ignored_features"] == []
    last = len(forward["input_tokens"]) - 2  # entries start after the leading special token
    before, after = (steer[f"{side}_LOGITS_BY_TOKEN"][last][1] for side in ("DEFAULT", "STEERED"))
    assert before[0][0] == forward["salient_logits"][0]["token"]
    assert before[0][1] == pytest.approx(forward["salient_logits"][0]["probability"], abs=1e-5)
    assert before != after

    parsed = ask({"action": "parse-chat-prompt", "prompt": forward["prompt"]}, chosen)
    if "messages" in body:
        assert parsed["messages"][-1] == user(PROMPT)
    else:
        assert parsed["messages"] is None


@of_families([name for name in FAMILIES if name not in ALIKE])
def test_in_bfloat16_the_newer_options_agree_on_what_comes_next(family, loaded):
    model, chosen = loaded(model_dtype="bfloat16")
    text = asked(model)

    def answered(action, **fields):
        return ask({"action": action, **text, **fields}, chosen)

    salient = answered("forward-pass", desired_logit_prob=1.0)["salient_logits"]
    tokens, ids = ([logit[key] for logit in salient] for key in ("token", "token_id"))
    # In 16 bits several may be the likeliest, of which a list has the library's order.
    first = [logit for logit in salient if logit["probability"] == salient[0]["probability"]]

    graph = answered("generate-graph", supernodes="auto")
    best = strongest_feature(graph)
    site = {"position": best.pop("token_active_position"), **best}
    targets = [{"plus": [tokens[0]], "minus": [tokens[1]]}, site, tokens[0]]
    explained = answered("generate-graph", attribution_targets=targets)["nodes"]
    logits = [node["feature"] for node in explained if node["feature_type"] == "logit"]
    assert logits == [model.d_vocab, model.d_vocab + 1, ids[0]]  # what is no token comes after all

    named = graph["qParams"]["supernodes"]
    groups = {name: [place(member) for member in members] for name, *members in named}
    off = [{"group": named[0][0], "scale": 0}]
    for held in (None, "all"):
        how = {"groups": groups, "experiments": [off], "constrained_layers": held}
        output = answered("intervene", top_k=10, **how)
        assert [top["token_id"] for top in output["baseline"]["top"]] == ids
        assert output["experiments"][0]["groups"][named[0][0]] == 0

    if family.model == "openai-community/gpt2":
        return  # it predicts one token whatever it reads
    contrast = answered("contrast", **other_of(text, tokens[0], chosen))
    assert contrast["prediction"]["token_id"] in [logit["token_id"] for logit in first]
    steer = answered("steer", n_tokens=1, top_k=10, features=contrast["steer"])
    assert steer["ignored_features"] == []
    *_, (_, default), (taken, _) = steer["DEFAULT_LOGITS_BY_TOKEN"]
    assert [token for token, _ in default] == tokens
    assert taken == contrast["prediction"]["token"]


def place(node_id):
    layer, index, position = map(int, node_id.split("_"))
    return {"layer": layer, "index": index, "position": position}


def other_of(body, likeliest, chosen):
    """A prompt of the same form, after which the model predicts something else."""
    start = {"action": "forward-pass", "max_n_logits": 1}
    for words in ("The", "a b c", "Paris", "1 2 3", "is of the", "capital", "France of"):
        other = {"messages": [user(words)]} if "messages" in body else {"prompt": words}
        if ask({**start, **other}, chosen)["salient_logits"][0]["token"] != likeliest:
            return {f"other_{name}": value for name, value in other.items()}
    raise AssertionError("it predicts one token whatever it reads")


@of_families([name for name in FAMILIES if name not in ALIKE])
def test_lazy_and_eager_loading_give_the_same_graph(loaded):
    graphs = []
    for lazy in (True, False):
        model, chosen = loaded(lazy_encoder=lazy, lazy_decoder=lazy)
        body = {"action": "generate-graph", "slug_identifier": "lazy", **asked(model)}
        graphs.append(without_times(ask(body, chosen)))
    assert graphs[0] == graphs[1]


@of_families(["Llama 3 chat, TopK"])
def test_top_k_without_a_k_keeps_128_features_of_a_layer_and_token(loaded):
    model, _ = loaded()
    tokens = torch.tensor(model.tokenizer(PROMPT)["input_ids"])
    _, activations = model.model.get_activations(tokens)
    assert (activations[:, 1:] != 0).sum(-1).eq(128).all()
    assert model.model.transcoders.d_transcoder > 128

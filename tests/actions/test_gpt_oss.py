"""GPT-OSS-20B with its cross-layer transcoders, as published: from the cache to every action."""

import copy
import json
from pathlib import Path
from typing import Any

import circuit_tracer
import pytest
import torch
from safetensors.torch import load_file, save_file

import attribution
import model_loader
import steering
from loading import UnsupportedArchitectureError, WeightsMismatchError
from loading.hugging_face_model import read_model
from loading.loaded_model import LoadedModel
from loading.model_folder import INDEX
from model_loader import ModelLoadError
from prompting import chat_prompt, prompts
from prompting.chat_template import render_messages
from serving import fitness
from settings import Settings
from steering import Experiment, Frozen, Intervention, Options
from tests.support import gpt_oss
from tests.support.chat_messages import assistant, system, user
from tests.support.demo_worker import ask, settings_at
from tests.support.model_configs import read_config

TEXT = "The capital of France is"


def settings_in(home: Path, **changed: Any) -> Settings:
    return settings_at(
        home,
        model_engine="nnsight",
        model_id=gpt_oss.MODEL,
        transcoder_set=gpt_oss.TRANSCODER_SET,
        token_limit=200,
        **changed,
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    home = tmp_path_factory.mktemp("home")
    return home, gpt_oss.write_cache(home / "hub")


@pytest.fixture(scope="module")
def loaded(home: tuple[Path, Any]) -> LoadedModel:
    return model_loader.load(settings_in(home[0]))


@pytest.fixture
def served(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> LoadedModel:
    monkeypatch.setattr(model_loader, "_loaded", loaded)
    return loaded


def tokens_of(loaded: LoadedModel) -> list[int]:
    return prompts.tokenize(TEXT, loaded.tokenizer)


def text_of(loaded: LoadedModel) -> str:
    """What the library, which takes a string here, tokenizes so."""
    text: str = loaded.tokenizer.decode(tokens_of(loaded))
    assert loaded.tokenizer(text).input_ids == tokens_of(loaded)
    return text


def test_experts_in_mxfp4_become_the_numbers_they_stand_for(
    home: tuple[Path, Any], loaded: LoadedModel
) -> None:
    ids = torch.tensor([tokens_of(loaded)])
    expected = home[1]
    expected.set_attn_implementation("eager")
    parameters = dict(loaded.model._module.named_parameters())
    for name, parameter in expected.named_parameters():
        assert torch.equal(parameters[name], parameter), name
    with torch.no_grad():
        logits = expected(ids).logits[0, -1]
    ours = steering.next_token_logits(loaded.model, ids[0].tolist())
    torch.testing.assert_close(ours, logits, atol=1e-5, rtol=1e-5)


def test_the_worker_is_found_fit(loaded: LoadedModel) -> None:
    fitness.check_weights(loaded)
    fitness.check_model(loaded)


def test_the_graph_is_the_library_s(loaded: LoadedModel) -> None:
    ids = torch.tensor(tokens_of(loaded))
    how: dict[str, Any] = {"max_feature_nodes": 80, "batch_size": 16}
    ours = attribution.attribute(ids, loaded.model, **how)
    theirs = circuit_tracer.attribute(ids, loaded.model, **how)
    assert len(ours.active_features) > 80
    assert torch.equal(ours.selected_features, theirs.selected_features)
    assert torch.equal(ours.adjacency_matrix, theirs.adjacency_matrix)


def test_an_edge_is_what_ablating_its_source_takes_from_its_target(loaded: LoadedModel) -> None:
    """With all else frozen the effect on a logit is linear: that is what an edge says."""
    ids = torch.tensor(tokens_of(loaded))
    graph = attribution.attribute(ids, loaded.model, max_n_logits=1)
    edges = graph.adjacency_matrix[-1, : len(graph.active_features)]
    model, text = loaded.model, text_of(loaded)
    frozen: dict[str, Any] = {"constrained_layers": range(gpt_oss.N_LAYERS)}
    before, _ = model.feature_intervention(text, [(0, 1, 0, 0.0)], **frozen)
    for place in edges.abs().topk(3).indices.tolist():
        layer, position, index = graph.active_features[place].tolist()
        after, _ = model.feature_intervention(text, [(layer, position, index, 0.0)], **frozen)
        change = before[0, -1] - after[0, -1]
        target = int(graph.logit_token_ids[0])
        torch.testing.assert_close(
            change[target] - change.mean(), edges[place], atol=1e-4, rtol=1e-3
        )


@pytest.mark.parametrize("frozen", [False, True], ids=["free", "frozen"])
def test_steering_is_the_library_s_intervention(loaded: LoadedModel, frozen: bool) -> None:
    model, ids, text = loaded.model, tokens_of(loaded), text_of(loaded)
    _, activations = model.get_activations(torch.tensor(ids))
    interventions = []
    for layer in range(gpt_oss.N_LAYERS):
        position = 1 + layer
        value, index = activations[layer, position].max(dim=0)
        assert value > 0
        interventions.append(Intervention(layer, int(index), position, 3 * float(value)))
    asked = [(i.layer, i.position, i.index, i.value) for i in interventions]
    logits, _ = model.feature_intervention(text, asked, freeze_attention=frozen)
    options = Options(n_tokens=1, top_k=5, freeze_attention=frozen)
    steered = steering.generate(model, ids, interventions, options)
    expected = logits[0, -1].softmax(-1).topk(5)
    assert steered.top_ids[0].tolist() == expected.indices.tolist()
    torch.testing.assert_close(steered.top_probs[0], expected.values, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "frozen", [Frozen(attention=False), Frozen(), Frozen(range(1, 2))], ids=str
)
def test_experiments_are_the_library_s_interventions(loaded: LoadedModel, frozen: Frozen) -> None:
    model, ids, text = loaded.model, tokens_of(loaded), text_of(loaded)
    _, activations = model.get_activations(torch.tensor(ids))
    experiments: list[Experiment] = []
    for layer in range(gpt_oss.N_LAYERS):
        value, index = activations[layer, 1 + layer].max(dim=0)
        experiments.append({(layer, 1 + layer, int(index)): 3 * float(value)})
    features = [feature for experiment in experiments for feature in experiment]
    outcomes = steering.intervene(model, ids, features, experiments, frozen)
    for row, experiment in enumerate(experiments, start=1):
        logits, _ = model.feature_intervention(
            text,
            [(*feature, value) for feature, value in experiment.items()],
            constrained_layers=frozen.layers or None,
            freeze_attention=frozen.attention,
        )
        torch.testing.assert_close(outcomes.logits[row], logits[0, -1], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("body", [{"prompt": TEXT}, {"messages": [user(TEXT)]}], ids=str)
def test_all_four_actions_agree(
    home: tuple[Path, Any], served: LoadedModel, body: dict[str, Any]
) -> None:
    settings = settings_in(home[0])
    forward = ask({"action": "forward-pass", **body}, settings)
    graph = ask({"action": "generate-graph", "slug_identifier": "oss", **body}, settings)
    assert graph["metadata"]["prompt_tokens"] == forward["input_tokens"]
    assert graph["metadata"]["scan"] == "gpt-oss-20b"
    [target] = [node for node in graph["nodes"] if node["is_target_logit"]]
    assert int(target["node_id"].split("_")[1]) == forward["salient_logits"][0]["token_id"]
    features = [n for n in graph["nodes"] if n["feature_type"] == "cross layer transcoder"]
    best = max(features, key=lambda node: node["influence"])
    layer, index, position = map(int, best["node_id"].split("_"))
    feature = {
        "layer": layer, "index": index, "token_active_position": position,
        "steer_position": position, "ablate": True,
    }  # fmt: skip
    steer = ask({"action": "steer", "n_tokens": 3, "features": [feature], **body}, settings)
    assert steer["ignored_features"] == []
    before, after = (steer[f"{side}_LOGITS_BY_TOKEN"] for side in ("DEFAULT", "STEERED"))
    assert before != after
    parsed = ask({"action": "parse-chat-prompt", "prompt": forward["prompt"]}, settings)
    assert (parsed["messages"] is not None) == ("messages" in body)


def test_targets_of_all_kinds_go_through_nnsight(
    home: tuple[Path, Any], served: LoadedModel
) -> None:
    body = {"action": "generate-graph", "slug_identifier": "oss", "prompt": TEXT}
    settings = settings_in(home[0])
    whole = ask({**body, "node_threshold": 1, "edge_threshold": 1}, settings)
    features = [n for n in whole["nodes"] if n["feature_type"] == "cross layer transcoder"]
    layer, index, position = map(int, features[-1]["node_id"].split("_"))
    one, other, *_ = whole["metadata"]["prompt_tokens"][1:]
    targets = [
        {"layer": layer, "index": index, "position": position},
        one,
        {"plus": [one], "minus": [other]},
    ]
    graph = ask({**body, "attribution_targets": targets}, settings)
    logits = [node for node in graph["nodes"] if node["feature_type"] == "logit"]
    assert [n["feature"] for n in logits][::2] == [served.d_vocab, served.d_vocab + 2]
    assert logits[0]["ctx_idx"] == position
    into = {
        name: {k["source"]: k["weight"] for k in links if k["target"] == name}
        for name, links in (
            (logits[0]["node_id"], graph["links"]),
            (features[-1]["node_id"], whole["links"]),
        )
    }
    own, of_feature = into.values()
    assert len(own) > 3
    for source, weight in own.items():
        assert weight == pytest.approx(of_feature[source], rel=1e-3, abs=1e-5)


@pytest.mark.parametrize(
    "messages",
    [
        [user("Hi")],
        [user("Hi"), assistant("")],
        [user("Hi"), assistant("It is")],
        [system("Be brief"), user("Hi"), assistant("It is")],
        [user("Hi"), assistant("Yes"), user("So"), assistant("")],
        [user("a"), assistant("b"), user("c"), assistant("d")],
    ],
    ids=lambda messages: " ".join(message["role"][0] for message in messages),
)
def test_messages_are_read_back_from_their_prompt(messages: list[dict[str, str]]) -> None:
    words = gpt_oss.tokenizer()
    rendered = render_messages(messages, words)
    assert chat_prompt.parse(rendered, words).messages == messages


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_in_16_bits_it_answers_near_the_full_numbers(
    home: tuple[Path, Any], loaded: LoadedModel, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_in(home[0], model_dtype=dtype)
    narrow = model_loader.load(settings)
    experts = narrow.model._module.model.layers[0].mlp.experts
    assert str(experts.down_proj.dtype) == f"torch.{dtype}"
    assert torch.equal(  # none of them rounded
        experts.down_proj.float(), loaded.model._module.model.layers[0].mlp.experts.down_proj
    )
    ids = tokens_of(loaded)
    exact, ours = (
        steering.next_token_logits(m.model, ids).float().softmax(-1) for m in (loaded, narrow)
    )
    torch.testing.assert_close(ours, exact, atol=0.05, rtol=0)
    monkeypatch.setattr(model_loader, "_loaded", narrow)
    graph = ask({"action": "generate-graph", "slug_identifier": "oss", "prompt": TEXT}, settings)
    assert len(graph["links"]) > 10


class TestRefusals:
    def saved(self, directory: Path) -> Any:
        gpt_oss.save_quantised(directory, gpt_oss.config())
        return read_config(directory)

    @pytest.mark.parametrize("part", ["blocks", "scales"])
    @pytest.mark.parametrize("in_index", [True, False], ids=["in the index", "nowhere"])
    def test_a_missing_part_of_an_expert_is_named(
        self, part: str, in_index: bool, tmp_path: Path
    ) -> None:
        config = self.saved(tmp_path)
        name = f"model.layers.1.mlp.experts.gate_up_proj_{part}"
        if not in_index:
            file = tmp_path / INDEX
            index = json.loads(file.read_text())
            del index["weight_map"][name]
            file.write_text(json.dumps(index))
        for file in tmp_path.glob("*.safetensors"):
            tensors = load_file(file)
            tensors.pop(name, None)
            save_file(tensors, file, metadata={"format": "pt"})
        with pytest.raises(WeightsMismatchError, match=f"lack {name}"):
            read_model(tmp_path, config, device=torch.device("cpu"), dtype=torch.float32)

    @pytest.mark.parametrize(
        "changes",
        [
            {"swiglu_limit": 5.0},
            {"swiglu_alpha": 1.5},
            {"hidden_act": "gelu"},
            {"partial_rotary_factor": 0.5},
            {"pruned_heads": {0: [1]}},
        ],
        ids=str,
    )
    def test_what_transformers_leaves_unread_is_refused_by_name(
        self, changes: dict[str, Any], tmp_path: Path
    ) -> None:
        config = copy.deepcopy(self.saved(tmp_path))
        config.update(changes)
        with pytest.raises(UnsupportedArchitectureError, match=next(iter(changes))):
            read_model(tmp_path, config, device=torch.device("cpu"), dtype=torch.float32)

    def test_another_quantisation_is_refused_by_its_name(self, tmp_path: Path) -> None:
        config = self.saved(tmp_path)
        config.quantization_config = {"quant_method": "fp8"}
        with pytest.raises(UnsupportedArchitectureError, match=r"quantised \(fp8\).*bfloat16"):
            read_model(tmp_path, config, device=torch.device("cpu"), dtype=torch.float32)

    def test_the_other_engine_is_told_which_one_serves_it(self, home: tuple[Path, Any]) -> None:
        settings = settings_in(home[0]).model_copy(update={"model_engine": "transformerlens"})
        with pytest.raises(ModelLoadError, match=r"GptOssForCausalLM.*MODEL_ENGINE=nnsight"):
            model_loader.load(settings)

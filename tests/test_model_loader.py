"""Names become entries, entries become one loaded model, and what is missing is told."""

import json
import threading
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder
from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder
from transformers import Qwen3Config, Qwen3ForCausalLM

import model_loader
import steering
from loading.build import stored_dtype
from loading.registry import DEMO, REGISTRY
from loading.selection import resolve_entry, select
from model_loader import ModelLoadError
from settings import SettingsError
from tests.support.demo_worker import demo_settings
from tests.support.model_configs import read_config

D_MODEL, N_LAYERS, N_FEATURES = 32, 2, 64


class TestNames:
    def test_nothing_set_is_the_demo(self):
        assert resolve_entry(None, None) is DEMO

    @pytest.mark.parametrize("name", ["google/gemma-2-2b", "gemma-2-2b"])
    def test_a_known_model_has_default_transcoders_under_either_id(self, name):
        entry = resolve_entry(name, None)
        assert entry.transcoder_set == "mwhanna/gemma-scope-transcoders"
        assert entry.source_set == "gemmascope-transcoder-16k"

    def test_short_names_of_transcoder_sets_are_circuit_tracer_s(self):
        assert resolve_entry("google/gemma-2-2b", "gemma") == resolve_entry("gemma-2-2b", None)
        assert resolve_entry(None, "llama").model == "meta-llama/Llama-3.2-1B"

    def test_a_known_model_with_other_known_transcoders_has_their_source_set(self):
        assert resolve_entry("gemma-2-2b", "mntss/clt-gemma-2-2b-2.5M").source_set == "clt-hp"

    def test_any_other_pair_of_ids_works_without_a_source_set(self):
        entry = resolve_entry("someone/Model-1B", "someone/transcoders/layer_set@v2")
        assert (entry.neuronpedia_id, entry.source_set) == ("model-1b", None)
        assert entry.source_urls == ("https://huggingface.co/someone/transcoders",)

    def test_a_revision_of_a_known_model_is_that_model(self):
        entry = resolve_entry("google/gemma-2-2b@abc", "mntss/clt-gemma-2-2b-2.5M")
        assert (entry.model, entry.source_set) == ("google/gemma-2-2b@abc", "clt-hp")
        assert entry.model_names == {"google/gemma-2-2b@abc", "google/gemma-2-2b", "gemma-2-2b"}

    def test_other_transcoders_of_a_known_model_say_nothing_of_the_default_ones(self):
        entry = resolve_entry("google/gemma-2-2b", "someone/transcoders")
        assert (entry.neuronpedia_id, entry.recommended_dtype) == ("gemma-2-2b", "bfloat16")
        assert entry.source_set is None
        assert entry.shapes is None
        assert entry.source_urls == ("https://huggingface.co/someone/transcoders",)

    def test_a_directory_is_called_by_its_own_name(self, tmp_path, monkeypatch):
        (tmp_path / "My-Model").mkdir()
        monkeypatch.chdir(tmp_path / "My-Model")
        assert resolve_entry(".", "someone/transcoders").neuronpedia_id == "my-model"

    @pytest.mark.parametrize("entry", REGISTRY, ids=lambda entry: entry.transcoder_set)
    def test_every_entry_can_be_named_and_says_what_it_needs(self, entry):
        assert resolve_entry(entry.model, entry.transcoder_set) == entry
        assert resolve_entry(None, entry.transcoder_set) == entry
        assert entry.shapes is not None
        assert entry.source_urls[-1].startswith("https://huggingface.co/")

    def test_an_unknown_model_without_transcoders_says_what_to_set(self):
        with pytest.raises(SettingsError, match="TRANSCODER_SET"):
            resolve_entry("someone/Model-1B", None)

    def test_unknown_transcoders_without_a_model_say_what_to_set(self):
        with pytest.raises(SettingsError, match="MODEL_ID"):
            resolve_entry(None, "someone/transcoders")

    def test_a_directory_s_path_is_not_what_callers_see(self):
        assert DEMO.label == "demo"
        assert DEMO.transcoder_label == "demo/transcoders"
        assert DEMO.source_urls == ()


class TestHowAnEntryIsLoaded:
    NAMED: ClassVar = {"model_id": "google/gemma-3-4b-it"}

    def test_as_the_entry_recommends_where_the_settings_say_nothing(self):
        selection = select(demo_settings(**self.NAMED, model_dtype=None))
        assert (selection.engine, selection.lazy_encoder, selection.lazy_decoder) == (
            "transformerlens",
            True,
            True,
        )
        assert (selection.dtype_on_gpu, selection.dtype_on_cpu) == ("bfloat16", "float32")

    def test_as_the_settings_say_where_they_say_something(self):
        chosen = {"model_dtype": "float16", "lazy_encoder": False, "lazy_decoder": False}
        selection = select(demo_settings(**self.NAMED, **chosen, model_engine="nnsight"))
        assert (selection.engine, selection.lazy_encoder, selection.lazy_decoder) == (
            "nnsight",
            False,
            False,
        )
        assert (selection.dtype_on_gpu, selection.dtype_on_cpu) == ("float16", "float16")

    def test_in_its_own_dtype_on_a_gpu_where_nothing_is_known_of_it(self):
        assert select(demo_settings(model_dtype=None)).dtype_on_gpu is None

    def test_the_names_are_resolved_once(self):
        assert select(demo_settings(**self.NAMED)) is select(demo_settings(**self.NAMED))


@pytest.mark.parametrize(
    ("configuration", "dtype"),
    [
        ({"torch_dtype": "float16"}, "float16"),
        ({"dtype": "float32"}, "float32"),
        ({"model_type": "gemma3", "text_config": {"torch_dtype": "float16"}}, "float16"),
        ({"model_type": "gemma3", "torch_dtype": "float16"}, "float16"),
        ({"torch_dtype": "float64"}, "bfloat16"),
        ({}, "bfloat16"),
    ],
)
def test_a_model_s_own_dtype_is_its_configuration_s(tmp_path, configuration, dtype):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3", **configuration}))
    assert stored_dtype(read_config(tmp_path)) == dtype


def save_model(directory: Path) -> Path:
    """A tiny Qwen3 as `save_pretrained` lays it out, with the demo's tokenizer."""
    config = Qwen3Config(
        vocab_size=1400,
        hidden_size=D_MODEL,
        intermediate_size=48,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=64,
    )
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        source = Path(DEMO.model) / name
        if source.exists():
            (directory / name).write_text(source.read_text())
    return directory


def config_yaml(directory: Path, kind: str) -> Path:
    (directory / "config.yaml").write_text(
        f"model_kind: {kind}\nfeature_input_hook: mlp.hook_in\nfeature_output_hook: mlp.hook_out\n"
    )
    return directory


def save_transcoders(directory: Path, n_layers: int = N_LAYERS, d_model: int = D_MODEL) -> Path:
    """Random ReLU transcoders in circuit-tracer's format."""
    directory.mkdir()
    for layer in range(n_layers):
        transcoder = SingleLayerTranscoder(
            d_model, N_FEATURES, torch.nn.functional.relu, layer, dtype=torch.float32
        )
        for parameter in transcoder.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        transcoder.to_safetensors(str(directory / f"layer_{layer}.safetensors"))
    return config_yaml(directory, "transcoder_set")


def save_cross_layer_transcoder(directory: Path) -> Path:
    directory.mkdir()
    transcoder = CrossLayerTranscoder(
        N_LAYERS, N_FEATURES, D_MODEL, dtype=torch.float32, lazy_decoder=False
    )
    for parameter in transcoder.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    transcoder.to_safetensors(str(directory))
    return config_yaml(directory, "cross_layer_transcoder")


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("Tiny-Qwen3"))


def load(model, transcoders, **changed):
    return model_loader.load(
        demo_settings(model_id=str(model), transcoder_set=str(transcoders), **changed)
    )


@pytest.mark.parametrize("save", [save_transcoders, save_cross_layer_transcoder])
def test_directories_load_as_they_were_saved(model_directory, tmp_path, save):
    loaded = load(model_directory, save(tmp_path / "set"))
    assert (loaded.model.cfg.n_layers, loaded.model.transcoders.d_transcoder) == (
        N_LAYERS,
        N_FEATURES,
    )
    assert loaded.n_context == 64
    expected = Qwen3ForCausalLM.from_pretrained(model_directory)
    ids = [1, 5, 9, 700]
    with torch.no_grad():
        logits = expected(torch.tensor([ids])).logits[0, -1]
    ours = steering.next_token_logits(loaded.model, ids)
    assert torch.allclose(ours.softmax(-1), logits.softmax(-1), atol=1e-5)


@pytest.mark.parametrize("lazy", [{"lazy_encoder": True}, {"lazy_decoder": False}])
def test_lazy_and_eager_transcoders_hold_the_same_features(model_directory, tmp_path, lazy):
    directory = save_transcoders(tmp_path / "set")
    tokens = torch.tensor([1, 5, 9, 700])
    _, expected = load(model_directory, directory).model.get_activations(tokens)
    _, activations = load(model_directory, directory, **lazy).model.get_activations(tokens)
    assert torch.equal(activations, expected)


def test_transcoders_of_another_depth_are_refused(model_directory, tmp_path):
    with pytest.raises(ModelLoadError, match="2 layers, its transcoders cover 3"):
        load(model_directory, save_transcoders(tmp_path / "set", n_layers=3))


@pytest.mark.parametrize("engine", ["transformerlens", "nnsight"])
def test_transcoders_of_another_width_are_refused_on_either_engine(
    model_directory, tmp_path, engine
):
    directory = save_transcoders(tmp_path / "set", d_model=48)
    with pytest.raises(ModelLoadError, match=r"^d_model of the model is 32, .* transcoders 48: "):
        load(model_directory, directory, model_engine=engine)


@pytest.mark.parametrize("engine", ["transformerlens", "nnsight"])
def test_top_k_is_top_k_on_either_engine(model_directory, tmp_path, engine):
    directory = save_transcoders(tmp_path / "set")
    with (directory / "config.yaml").open("a") as config:
        config.write("activation: topk\nk: 5\n")
    loaded = load(model_directory, directory, model_engine=engine)
    _, activations = loaded.model.get_activations(torch.tensor([1, 5, 9, 700]))
    assert (activations[:, 1:] != 0).sum(-1).eq(5).all()


def test_a_directory_without_transcoders_is_named(model_directory, tmp_path):
    with pytest.raises(ModelLoadError, match=r"holds no layer_0\.safetensors"):
        load(model_directory, config_yaml(tmp_path, "transcoder_set"))


def test_a_truncated_transcoder_file_stops_the_start(model_directory, tmp_path):
    directory = save_transcoders(tmp_path / "set")
    file = directory / "layer_1.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelLoadError, match=r"layer_1\.safetensors is damaged: replace it"):
        load(model_directory, directory)


def test_transcoders_for_fewer_layers_are_refused(model_directory, tmp_path):
    with pytest.raises(
        ModelLoadError, match=r"holds no layer_1\.safetensors: .*belongs to the model"
    ):
        load(model_directory, save_transcoders(tmp_path / "set", n_layers=1))


def test_a_missing_model_says_which_and_what_to_do(tmp_path):
    with pytest.raises(ModelLoadError, match=r"^no/such-model is in none of .*prefetch"):
        load("no/such-model", save_transcoders(tmp_path / "set"))


def test_the_process_loads_its_model_once_however_many_ask(monkeypatch):
    loads = []
    real_load = model_loader.load

    def counted(settings):
        loads.append(settings)
        return real_load(settings)

    monkeypatch.setattr(model_loader, "_loaded", None)
    monkeypatch.setattr(model_loader, "load", counted)
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(model_loader.get_model(demo_settings())))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loads) == 1
    assert all(model is found[0] for model in found)


def test_the_demo_names_its_end_of_text():
    loaded = model_loader.get_model(demo_settings())
    assert loaded.tokenizer.eos_token_id in loaded.stop_ids
    assert loaded.answers_to("demo")
    assert not loaded.answers_to("google/gemma-2-2b")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "the following arguments are required: COMMAND"),
        ("prefech", "'prefech' is none of the commands list, prefetch, convert; did you mean pre"),
        ("prefetch --model_di demo", "there is no option --model_di; did you mean --model_id?"),
        ("--model_id demo prefetch", "there is no option --model_id"),
        ("list demo", "error: 'demo' is unexpected"),
    ],
)
def test_a_misspelt_command_line_is_answered_with_what_was_meant(line, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        model_loader.main(line.split())
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 2
